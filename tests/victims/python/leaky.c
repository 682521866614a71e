/* An extension module that leaks, and one that calls Python again. */
#include <Python.h>
#include <stdlib.h>

static void *volatile kept;

static PyObject *leak(PyObject *self, PyObject *size)
{
    (void)self;
    kept = malloc(PyLong_AsSize_t(size)); /* LINE leak */
    Py_RETURN_NONE;
}

static PyObject *call(PyObject *self, PyObject *function)
{
    (void)self;
    return PyObject_CallObject(function, NULL);
}

static PyMethodDef methods[] = {{"leak", leak, METH_O, NULL}, {"call", call, METH_O, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "leaky", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_leaky(void)
{
    return PyModule_Create(&definition);
}
