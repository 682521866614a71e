//! C++ operators new and delete, for direct calls of the operators of a program with its own
//! allocator.

use crate::arch::direct::{direct_delete, direct_new};

direct_new!(0, "_Znwm");
direct_new!(1, "_Znam");
direct_new!(2, "_ZnwmRKSt9nothrow_t");
direct_new!(3, "_ZnamRKSt9nothrow_t");
direct_new!(4, "_ZnwmSt11align_val_t");
direct_new!(5, "_ZnamSt11align_val_t");
direct_new!(6, "_ZnwmSt11align_val_tRKSt9nothrow_t");
direct_new!(7, "_ZnamSt11align_val_tRKSt9nothrow_t");
direct_delete!(8, "_ZdlPv");
direct_delete!(9, "_ZdaPv");
direct_delete!(10, "_ZdlPvm");
direct_delete!(11, "_ZdaPvm");
direct_delete!(12, "_ZdlPvSt11align_val_t");
direct_delete!(13, "_ZdaPvSt11align_val_t");
direct_delete!(14, "_ZdlPvmSt11align_val_t");
direct_delete!(15, "_ZdaPvmSt11align_val_t");
direct_delete!(16, "_ZdlPvRKSt9nothrow_t");
direct_delete!(17, "_ZdaPvRKSt9nothrow_t");
direct_delete!(18, "_ZdlPvSt11align_val_tRKSt9nothrow_t");
direct_delete!(19, "_ZdaPvSt11align_val_tRKSt9nothrow_t");
