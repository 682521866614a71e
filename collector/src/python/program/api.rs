//! The functions of CPython's C API used by Heapline's `_tracemalloc`, looked up at run time.

use crate::platform::symbols::Scope;
use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::ptr;

/// `PyObject *`.
pub type Object = *mut c_void;

/// `PyUnstable_Module_SetGIL`, only in free-threaded builds: whether a module needs the
/// interpreter's lock.
pub type SetNeedOfLock = unsafe extern "C" fn(Object, *const c_void) -> c_int;

macro_rules! api {
    ($($name:ident: $symbol:literal, $type:ty;)*) => {
        /// The functions and objects, by their documented names and signatures.
        #[derive(Clone, Copy)]
        pub struct Api {
            $(pub $name: $type,)*
            pub set_need_of_lock: Option<SetNeedOfLock>,
        }

        impl Api {
            /// Looks all functions up. None if one is missing.
            pub fn find(scope: Scope) -> Option<Api> {
                // SAFETY: each symbol is CPython's, of the documented type.
                unsafe {
                    let set_need_of_lock = scope.find(b"PyUnstable_Module_SetGIL");
                    Some(Api {
                        $($name: core::mem::transmute::<*const u8, $type>(scope.find($symbol)? as *const u8),)*
                        set_need_of_lock: set_need_of_lock.map(|found| core::mem::transmute::<usize, SetNeedOfLock>(found)),
                    })
                }
            }
        }
    };
}

api! {
    create_module: b"PyModule_Create2", unsafe extern "C" fn(*mut c_void, c_int) -> Object;
    index: b"PyNumber_Index", unsafe extern "C" fn(Object) -> Object;
    as_long: b"PyLong_AsLong", unsafe extern "C" fn(Object) -> c_long;
    build: b"Py_BuildValue", unsafe extern "C" fn(*const c_char, ...) -> Object;
    call: b"PyObject_Call", unsafe extern "C" fn(Object, Object, Object) -> Object;
    attribute: b"PyObject_GetAttrString", unsafe extern "C" fn(Object, *const c_char) -> Object;
    bool: b"PyBool_FromLong", unsafe extern "C" fn(c_long) -> Object;
    number: b"PyLong_FromUnsignedLongLong", unsafe extern "C" fn(u64) -> Object;
    text: b"PyUnicode_FromKindAndData", unsafe extern "C" fn(c_int, *const c_void, isize) -> Object;
    tuple: b"PyTuple_New", unsafe extern "C" fn(isize) -> Object;
    set_in_tuple: b"PyTuple_SetItem", unsafe extern "C" fn(Object, isize, Object) -> c_int;
    in_tuple: b"PyTuple_GetItem", unsafe extern "C" fn(Object, isize) -> Object;
    list: b"PyList_New", unsafe extern "C" fn(isize) -> Object;
    append: b"PyList_Append", unsafe extern "C" fn(Object, Object) -> c_int;
    retain: b"Py_IncRef", unsafe extern "C" fn(Object);
    release: b"Py_DecRef", unsafe extern "C" fn(Object);
    fail: b"PyErr_SetString", unsafe extern "C" fn(Object, *const c_char);
    occurred: b"PyErr_Occurred", unsafe extern "C" fn() -> Object;
    none: b"_Py_NoneStruct", Object;
    type_error: b"PyExc_TypeError", *const Object;
    value_error: b"PyExc_ValueError", *const Object;
    runtime_error: b"PyExc_RuntimeError", *const Object;
}

impl Api {
    /// Returns a new reference to `None`.
    pub fn none(&self) -> Object {
        // SAFETY: the calling thread holds the interpreter's lock, as everywhere in this module.
        unsafe { (self.retain)(self.none) };
        self.none
    }

    /// Raises an exception. Returns null, the result of a failed function.
    pub fn raise(&self, kind: *const Object, text: &CStr) -> Object {
        // SAFETY: the lock is held. The variable holds an exception type from the interpreter's
        // start on.
        unsafe { (self.fail)(kind.read(), text.as_ptr()) };
        ptr::null_mut()
    }

    /// Takes ownership of a new reference. None for null; an exception is set then.
    pub fn own(&self, object: Object) -> Option<Owned<'_>> {
        (!object.is_null()).then_some(Owned { api: self, object })
    }
}

/// An owned reference, released on drop.
pub struct Owned<'a> {
    api: &'a Api,
    object: Object,
}

impl Owned<'_> {
    /// Borrows the object.
    pub fn get(&self) -> Object {
        self.object
    }

    /// Returns the reference without releasing it.
    pub fn into_object(self) -> Object {
        let object = self.object;
        core::mem::forget(self);
        object
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: the calling thread holds the interpreter's lock; the reference is owned.
        unsafe { (self.api.release)(self.object) };
    }
}
