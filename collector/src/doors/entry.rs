//! The code of the doors.

use super::{Call, DOORS, ENTRY_BYTES, MOST, after, before};
use crate::process;
use heapline_shared_format::arena::state;

const _: () = assert!(ENTRY_BYTES == size_of::<super::Door>(), "an entry's place is its door's");
const _: () = assert!(core::mem::offset_of!(Call, door) == 48 && core::mem::offset_of!(Call, note) == 56);
const _: () = assert!(state::IDLE == 0);

door_entries!(most = MOST, doors = DOORS, state = process::STATE, before = before, after = after);
