//! Object files and addresses of x86-64.

/// The machine of an object file (`EM_X86_64`).
pub const MACHINE: u16 = 62;

/// Bits of an address: user space without five-level paging.
pub const ADDRESS_BITS: u32 = 48;
/// Bits of an address of code: the upper half of the addresses is the kernel's.
pub const CODE_ADDRESS_BITS: u32 = 47;

/// Kinds of relocations (`R_X86_64_*`).
pub mod relocation {
    /// The address of a symbol, in data.
    pub const ADDRESS: u32 = 1;
    /// The address of a symbol, in the table of addresses.
    pub const TABLE: u32 = 6;
    /// The address of a function, in the table of jumps. The loader may look the function up late.
    pub const JUMP: u32 = 7;
    /// The number of a library among the objects with thread-local storage.
    pub const THREAD_MODULE: u32 = 16;
    /// A distance from the thread pointer.
    pub const THREAD_DISTANCE: u32 = 18;
}

/// The own name of glibc's loader (`DT_SONAME`), independent of the name and folder of the loader's
/// file.
pub const GLIBCS_LOADER: &[u8] = b"ld-linux-x86-64.so.2";
/// The usual beginning of the name of the file of musl's loader. The loader has no own name.
pub const MUSLS_LOADER: &[u8] = b"ld-musl-x86_64.so.";
