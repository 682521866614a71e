//! The native blocks of a process at one instant, with their addresses.

use crate::snapshot::cut::Figures;
use crate::table::births::Birth;
use crate::table::copy::HeapCopy;
use crate::table::stacks::Tree;

/// Native blocks of an instant, while they are copied.
pub struct NativeCut {
    /// The copy of the blocks.
    pub copy: HeapCopy,
    /// The stacks, for the sizes of samples.
    pub tree: Tree,
    /// Ranges of memory mapped by recorded calls: first address, and first address behind.
    pub ranges: Vec<(u64, u64)>,
    /// Places of the loaded objects.
    pub objects: Vec<(u64, u64)>,
    /// Blocks of the native domain inside of realloc.
    pub in_realloc: u64,
    /// Birth of blocks that are born at the instant; none where births are not known.
    pub present: Option<Birth>,
    /// The numbers of the instant.
    pub figures: Figures,
}
