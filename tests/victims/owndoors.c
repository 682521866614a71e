/* The functions that allocators have besides the C library's: each pair of lines keeps one block of
   a known size. */
#include <stddef.h>
#include <stdio.h>

#ifdef JEMALLOC
void *mallocx(size_t, int);
void *rallocx(void *, size_t, int);
size_t xallocx(void *, size_t, size_t, int);
void dallocx(void *, int);
void sdallocx(void *, size_t, int);
static void *churn(void) { return rallocx(mallocx(100, 0), 200, 0); }
static void drop(void *block, int i) { if (i % 2) dallocx(block, 0); else sdallocx(block, 200, 0); }
static size_t keep(void) {
    void *block = mallocx(5000, 0); /* keep */
    return xallocx(block, 5050, 0, 0) >= 5050 ? 5050 : 5000; /* resized */
}
#endif
#ifdef TCMALLOC
void *tc_malloc(size_t);
void *tc_realloc(void *, size_t);
void *tc_new(size_t);
void tc_free(void *);
void tc_delete(void *);
int tc_posix_memalign(void **, size_t, size_t);
static void *churn(void) { return tc_realloc(tc_malloc(100), 200); }
static void drop(void *block, int i) { if (i % 2) tc_free(block); else tc_delete(block); }
static size_t keep(void) {
    void *block;
    tc_posix_memalign(&block, 64, 4000); void *other = tc_new(1000); /* keep */
    return block && other ? 5000 : 0;
}
#endif
#ifdef MIMALLOC
void *mi_malloc(size_t);
void *mi_realloc(void *, size_t);
void *mi_calloc(size_t, size_t);
char *mi_strdup(const char *);
void *mi_heap_new(void);
void *mi_heap_malloc(void *, size_t);
void mi_free(void *);
/* Long enough to be a sample where the interval is a byte: 5 bytes are missed once in 150 runs. */
#define TEXT "0123456789012345678901234567890123456789"
static void *churn(void) { return mi_realloc(mi_malloc(100), 200); }
static void drop(void *block, int i) { (void)i; mi_free(block); }
static size_t keep(void) {
    void *block = mi_heap_malloc(mi_heap_new(), 3000), *other = mi_calloc(20, 100); char *text = mi_strdup(TEXT); /* keep */
    return block && other && text ? 5000 + sizeof TEXT : 0;
}
#endif

int main(void) {
    for (int i = 0; i < 50; i++) drop(churn(), i); /* churn */
    printf("kept %zu\n", keep());
    return 0;
}
