//! The way from a frame to its caller, as the machine code of a function tells the way
//! (`epilogue.rs` of an architecture).

/// The way from a frame to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The return address, and the saved base pointer if the function has saved one.
    Returns {
        /// Place of the return address.
        slot: Place,
        /// Place of the caller's base pointer; none where the register is the caller's still.
        bp: Option<Place>,
    },
    /// The function never returns: the frame is the root of its stack.
    Never,
}

/// A place on the stack: a register at the asked address, plus a distance in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The register.
    pub base: Base,
    /// The distance.
    pub distance: i32,
}

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The stack pointer.
    StackPointer,
    /// The base pointer, also called the frame pointer.
    BasePointer,
}

/// Names of functions of the C library that never return. A function that hands a result on to one
/// of them (`exit(main())`) is a root.
pub const NEVER: [&[u8]; 11] = [
    b"_Exit",
    b"__assert_fail",
    b"__stack_chk_fail",
    b"_exit",
    b"abort",
    b"exit",
    b"longjmp",
    b"pthread_exit",
    b"quick_exit",
    b"siglongjmp",
    b"thrd_exit",
];
