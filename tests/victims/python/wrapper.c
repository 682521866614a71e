/* An extension module that wraps CPython's allocators, as profilers do: wrap(), unwrap(), and calls
   of its own (count()). */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static PyMemAllocatorEx before[3];
static const PyMemAllocatorDomain domains[3] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
static long calls;

static void *wrapped_malloc(void *context, size_t size)
{
    PyMemAllocatorEx *next = context;
    calls++;
    return next->malloc(next->ctx, size);
}

static void *wrapped_calloc(void *context, size_t count, size_t size)
{
    PyMemAllocatorEx *next = context;
    calls++;
    return next->calloc(next->ctx, count, size);
}

static void *wrapped_realloc(void *context, void *block, size_t size)
{
    PyMemAllocatorEx *next = context;
    calls++;
    return next->realloc(next->ctx, block, size);
}

static void wrapped_free(void *context, void *block)
{
    PyMemAllocatorEx *next = context;
    next->free(next->ctx, block);
}

static PyObject *wrap(PyObject *module, PyObject *none)
{
    for (int i = 0; i < 3; i++) {
        PyMemAllocatorEx ours = {&before[i], wrapped_malloc, wrapped_calloc, wrapped_realloc, wrapped_free};
        PyMem_GetAllocator(domains[i], &before[i]);
        PyMem_SetAllocator(domains[i], &ours);
    }
    Py_RETURN_NONE;
}

static PyObject *unwrap(PyObject *module, PyObject *none)
{
    for (int i = 0; i < 3; i++)
        PyMem_SetAllocator(domains[i], &before[i]);
    Py_RETURN_NONE;
}

static PyObject *count(PyObject *module, PyObject *none)
{
    return PyLong_FromLong(calls);
}

static PyMethodDef methods[] = {
    {"wrap", wrap, METH_NOARGS, NULL},
    {"unwrap", unwrap, METH_NOARGS, NULL},
    {"count", count, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "wrapper", NULL, -1, methods};

PyMODINIT_FUNC PyInit_wrapper(void)
{
    return PyModule_Create(&definition);
}
