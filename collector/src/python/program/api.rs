//! The part of CPython's C API that our `_tracemalloc` is written with, found at run time.

use crate::platform::symbols::Scope;
use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::ptr;

/// `PyObject *`.
pub type Object = *mut c_void;

macro_rules! api {
    ($($name:ident: $symbol:literal, $type:ty;)*) => {
        /// The functions and objects, by their documented names and signatures.
        #[derive(Clone, Copy)]
        pub struct Api {
            $(pub $name: $type,)*
        }

        impl Api {
            /// Looks for all of them.
            pub fn find(scope: Scope) -> Option<Api> {
                // SAFETY: each symbol is CPython's, of the type that its documentation gives.
                unsafe {
                    Some(Api { $($name: core::mem::transmute::<*const u8, $type>(scope.find($symbol)? as *const u8),)* })
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
    list: b"PyList_New", unsafe extern "C" fn(isize) -> Object;
    append: b"PyList_Append", unsafe extern "C" fn(Object, Object) -> c_int;
    set_in_list: b"PyList_SetItem", unsafe extern "C" fn(Object, isize, Object) -> c_int;
    in_list: b"PyList_GetItem", unsafe extern "C" fn(Object, isize) -> Object;
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
    /// `None`.
    pub fn none(&self) -> Object {
        // SAFETY: with the interpreter's lock, as all of our module runs.
        unsafe { (self.retain)(self.none) };
        self.none
    }

    /// Raises; the null that functions return then.
    pub fn raise(&self, kind: *const Object, text: &CStr) -> Object {
        // SAFETY: as above; the variable holds an exception's type from the interpreter's start on.
        unsafe { (self.fail)(kind.read(), text.as_ptr()) };
        ptr::null_mut()
    }

    /// Takes a new reference over; none for null, for which an exception is set.
    pub fn own(&self, object: Object) -> Option<Owned<'_>> {
        (!object.is_null()).then_some(Owned { api: self, object })
    }
}

/// A reference that is given up when this is dropped.
pub struct Owned<'a> {
    api: &'a Api,
    object: Object,
}

impl Owned<'_> {
    /// The object.
    pub fn get(&self) -> Object {
        self.object
    }

    /// The reference.
    pub fn into_object(self) -> Object {
        let object = self.object;
        core::mem::forget(self);
        object
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: with the interpreter's lock.
        unsafe { (self.api.release)(self.object) };
    }
}
