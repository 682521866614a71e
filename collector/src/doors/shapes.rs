//! Functions by which allocators give and take blocks, by name: the functions of the C library, and
//! the additional functions of jemalloc, tcmalloc and mimalloc.

/// Effect of a function on blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Returns a new block, or null.
    Allocates,
    /// Stores a new block at the address in the first argument, and returns 0.
    AllocatesTo,
    /// Returns a new block with a text.
    AllocatesText,
    /// Takes a block.
    Frees,
    /// Returns a block in the place of another block, or null.
    Reallocates,
    /// Returns the same block with the new size, or null.
    Expands,
    /// Returns the present size of the block: the new size or more after a success.
    Resizes,
}

/// Effect of a function, and the positions of its arguments, by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Effect of the function.
    pub act: Act,
    /// Position of the block given to the function.
    pub block: u8,
    /// Position of the requested size. For a text: position of the place given by the caller, if
    /// any.
    pub size: u8,
    /// Position of the factor of the size. [`ONCE`] for no factor, and for a text without a place
    /// from the caller.
    pub count: u8,
}

/// [`Shape::count`] of a function with a size alone.
pub const ONCE: u8 = u8::MAX;

const fn shape(act: Act, block: u8, size: u8, count: u8) -> Shape {
    Shape { act, block, size, count }
}

/// Returns the shape of a function with the size in this argument.
const fn sized(size: u8) -> Shape {
    shape(Act::Allocates, 0, size, ONCE)
}

/// Returns the shape of a function with the product of this argument and the next as the size.
const fn counted(count: u8) -> Shape {
    shape(Act::Allocates, 0, count + 1, count)
}

/// Returns the shape of a function with the block in this argument, and the size in the next.
const fn moved(block: u8) -> Shape {
    shape(Act::Reallocates, block, block + 1, ONCE)
}

/// Returns the shape of a function with the block in this argument, and the product of the next two
/// as the size.
const fn moved_counted(block: u8) -> Shape {
    shape(Act::Reallocates, block, block + 2, block + 1)
}

const FREED: Shape = shape(Act::Frees, 0, 0, ONCE);
const TO: Shape = shape(Act::AllocatesTo, 0, 2, ONCE);
const TEXT: Shape = shape(Act::AllocatesText, 0, 0, ONCE);

/// Returns the shape of a function with a text in a new block, unless this argument is a place for
/// the text.
const fn text_unless(place: u8) -> Shape {
    shape(Act::AllocatesText, 0, place, 0)
}

/// All functions, in the order of their names.
static SHAPES: &[(&str, Shape)] = &[
    ("_ZdaPv", FREED),
    ("_ZdaPvRKSt9nothrow_t", FREED),
    ("_ZdaPvSt11align_val_t", FREED),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", FREED),
    ("_ZdaPvm", FREED),
    ("_ZdaPvmSt11align_val_t", FREED),
    ("_ZdlPv", FREED),
    ("_ZdlPvRKSt9nothrow_t", FREED),
    ("_ZdlPvSt11align_val_t", FREED),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", FREED),
    ("_ZdlPvm", FREED),
    ("_ZdlPvmSt11align_val_t", FREED),
    ("_Znam", sized(0)),
    ("_ZnamRKSt9nothrow_t", sized(0)),
    ("_ZnamSt11align_val_t", sized(0)),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", sized(0)),
    ("_Znwm", sized(0)),
    ("_ZnwmRKSt9nothrow_t", sized(0)),
    ("_ZnwmSt11align_val_t", sized(0)),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", sized(0)),
    ("aligned_alloc", sized(1)),
    ("calloc", counted(0)),
    ("cfree", FREED),
    ("dallocx", FREED),
    ("free", FREED),
    ("free_aligned_sized", FREED),
    ("free_sized", FREED),
    ("malloc", sized(0)),
    ("mallocx", sized(0)),
    ("memalign", sized(1)),
    ("mi_aligned_alloc", sized(1)),
    ("mi_calloc", counted(0)),
    ("mi_calloc_aligned", counted(0)),
    ("mi_calloc_aligned_at", counted(0)),
    ("mi_cfree", FREED),
    ("mi_expand", shape(Act::Expands, 0, 1, ONCE)),
    ("mi_free", FREED),
    ("mi_free_aligned", FREED),
    ("mi_free_size", FREED),
    ("mi_free_size_aligned", FREED),
    ("mi_heap_alloc_new", sized(1)),
    ("mi_heap_alloc_new_n", counted(1)),
    ("mi_heap_calloc", counted(1)),
    ("mi_heap_calloc_aligned", counted(1)),
    ("mi_heap_calloc_aligned_at", counted(1)),
    ("mi_heap_malloc", sized(1)),
    ("mi_heap_malloc_aligned", sized(1)),
    ("mi_heap_malloc_aligned_at", sized(1)),
    ("mi_heap_malloc_small", sized(1)),
    ("mi_heap_mallocn", counted(1)),
    ("mi_heap_realloc", moved(1)),
    ("mi_heap_realloc_aligned", moved(1)),
    ("mi_heap_realloc_aligned_at", moved(1)),
    ("mi_heap_reallocf", moved(1)),
    ("mi_heap_reallocn", moved_counted(1)),
    ("mi_heap_realpath", text_unless(2)),
    ("mi_heap_recalloc", moved_counted(1)),
    ("mi_heap_rezalloc", moved(1)),
    ("mi_heap_strdup", TEXT),
    ("mi_heap_strndup", TEXT),
    ("mi_heap_zalloc", sized(1)),
    ("mi_heap_zalloc_aligned", sized(1)),
    ("mi_heap_zalloc_aligned_at", sized(1)),
    ("mi_malloc", sized(0)),
    ("mi_malloc_aligned", sized(0)),
    ("mi_malloc_aligned_at", sized(0)),
    ("mi_malloc_small", sized(0)),
    ("mi_mallocn", counted(0)),
    ("mi_memalign", sized(1)),
    ("mi_new", sized(0)),
    ("mi_new_aligned", sized(0)),
    ("mi_new_aligned_nothrow", sized(0)),
    ("mi_new_n", counted(0)),
    ("mi_new_nothrow", sized(0)),
    ("mi_new_realloc", moved(0)),
    ("mi_new_reallocn", moved_counted(0)),
    ("mi_posix_memalign", TO),
    ("mi_pvalloc", sized(0)),
    ("mi_realloc", moved(0)),
    ("mi_realloc_aligned", moved(0)),
    ("mi_realloc_aligned_at", moved(0)),
    ("mi_reallocarray", moved_counted(0)),
    ("mi_reallocf", moved(0)),
    ("mi_reallocn", moved_counted(0)),
    ("mi_realpath", text_unless(1)),
    ("mi_recalloc", moved_counted(0)),
    ("mi_recalloc_aligned", moved_counted(0)),
    ("mi_recalloc_aligned_at", moved_counted(0)),
    ("mi_rezalloc", moved(0)),
    ("mi_rezalloc_aligned", moved(0)),
    ("mi_rezalloc_aligned_at", moved(0)),
    ("mi_strdup", TEXT),
    ("mi_strndup", TEXT),
    ("mi_valloc", sized(0)),
    ("mi_zalloc", sized(0)),
    ("mi_zalloc_aligned", sized(0)),
    ("mi_zalloc_aligned_at", sized(0)),
    ("mi_zalloc_small", sized(0)),
    ("posix_memalign", TO),
    ("pvalloc", sized(0)),
    ("rallocx", moved(0)),
    ("realloc", moved(0)),
    ("reallocarray", moved_counted(0)),
    ("sdallocx", FREED),
    ("tc_calloc", counted(0)),
    ("tc_cfree", FREED),
    ("tc_delete", FREED),
    ("tc_delete_aligned", FREED),
    ("tc_delete_aligned_nothrow", FREED),
    ("tc_delete_nothrow", FREED),
    ("tc_delete_sized", FREED),
    ("tc_delete_sized_aligned", FREED),
    ("tc_deletearray", FREED),
    ("tc_deletearray_aligned", FREED),
    ("tc_deletearray_aligned_nothrow", FREED),
    ("tc_deletearray_nothrow", FREED),
    ("tc_deletearray_sized", FREED),
    ("tc_deletearray_sized_aligned", FREED),
    ("tc_free", FREED),
    ("tc_free_sized", FREED),
    ("tc_malloc", sized(0)),
    ("tc_malloc_skip_new_handler", sized(0)),
    ("tc_memalign", sized(1)),
    ("tc_new", sized(0)),
    ("tc_new_aligned", sized(0)),
    ("tc_new_aligned_nothrow", sized(0)),
    ("tc_new_nothrow", sized(0)),
    ("tc_newarray", sized(0)),
    ("tc_newarray_aligned", sized(0)),
    ("tc_newarray_aligned_nothrow", sized(0)),
    ("tc_newarray_nothrow", sized(0)),
    ("tc_posix_memalign", TO),
    ("tc_pvalloc", sized(0)),
    ("tc_realloc", moved(0)),
    ("tc_valloc", sized(0)),
    ("valloc", sized(0)),
    ("xallocx", shape(Act::Resizes, 0, 1, ONCE)),
];

/// Prefix of jemalloc's functions in a jemalloc that does not take malloc's place.
const PREFIX: &[u8] = b"je_";

/// Functions that mark an allocator with the prefix.
pub const PREFIXED: [&[u8]; 3] = [b"je_malloc", b"je_mallocx", b"je_free"];

/// Returns the shape of a function with this name; `None` for a name of no allocator.
pub fn of(name: &[u8]) -> Option<&'static Shape> {
    let base = name.strip_prefix(PREFIX).unwrap_or(name);
    let at = SHAPES.binary_search_by(|(known, _)| known.as_bytes().cmp(base)).ok()?;
    Some(&SHAPES[at].1)
}

/// Returns all names, without the prefix.
pub fn names() -> impl Iterator<Item = &'static [u8]> {
    SHAPES.iter().map(|(name, _)| name.as_bytes()).chain([PREFIX])
}

/// Returns whether the name belongs to a C++ operator. The operators of the C++ library end in
/// `malloc`, where the hook of `malloc` records the call.
pub fn is_operator(name: &[u8]) -> bool {
    name.starts_with(b"_Zn") || name.starts_with(b"_Zd")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_found() {
        assert!(SHAPES.is_sorted_by_key(|(name, _)| *name));
        assert_eq!(of(b"mi_heap_reallocn"), Some(&Shape { act: Act::Reallocates, block: 1, size: 3, count: 2 }));
        assert_eq!(of(b"je_sdallocx"), of(b"free"));
        assert_eq!(of(b"mallo"), None);
    }

    #[test]
    fn operators_are_told_from_functions() {
        assert_eq!(names().filter(|name| is_operator(name)).count(), 20);
    }
}
