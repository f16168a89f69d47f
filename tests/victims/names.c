/* Functions that only one allocator has, each called once: `jemalloc`, `mimalloc` or `tcmalloc`, whichever is preloaded or
 * linked; `release` gives everything back. */
#define _GNU_SOURCE
#include "victim.h"

#include "rows.h"

#include <dlfcn.h>

/* A function that the preloaded allocator must have. */
static void *find(const char *name)
{
    void *function = dlsym(RTLD_DEFAULT, name);
    if (!function) {
        victim_say("broken: there is no %s\n", name);
        _exit(99);
    }
    return function;
}

#define CALL(result, name, parameters, ...) (((result(*) parameters)find(#name))(__VA_ARGS__))

/* A row of one size; of a number of elements; of an alignment; a reallocation. */
#define ONE(name, size) GIVES(name, size, CALL(void *, name, (size_t), size))
#define MANY(name, count, size)                                                  \
    GIVES(name, (count) * (size), CALL(void *, name, (size_t, size_t), count, size))
#define SIZED_FIRST(name, size, other)                                           \
    GIVES(name, size, CALL(void *, name, (size_t, size_t), size, other))
#define SIZED_SECOND(name, other, size)                                          \
    GIVES(name, size, CALL(void *, name, (size_t, size_t), other, size))
#define AGAIN(name, size)                                                        \
    SETUP(name, 40)                                                              \
    REALLOCATES(name, size, CALL(void *, name, (void *, size_t), old, size), 1)
#define AGAIN_MANY(name, count, size)                                            \
    SETUP(name, 41)                                                              \
    REALLOCATES(name, (count) * (size),                                          \
                CALL(void *, name, (void *, size_t, size_t), old, count, size), 1)

/* A block that is given back by a function with one more argument, or none. */
#define GIVES_BACK(name, parameters, ...)                                        \
    SETUP(name, 64)                                                              \
    OWN_FRAME static void row_##name(void *block)                                \
    {                                                                            \
        book_lose(block);                                                        \
        CALL(void, name, parameters, __VA_ARGS__);                               \
        book_site("row_" #name);                                                 \
    }

GIVES(mallocx, 100, CALL(void *, mallocx, (size_t, int), 100, 0))
/* MALLOCX_LG_ALIGN(8) | MALLOCX_ZERO */
GIVES(mallocx_flags, 130, CALL(void *, mallocx, (size_t, int), 130, 8 | 0x40))
SETUP(rallocx, 50)
REALLOCATES(rallocx, 9000, CALL(void *, rallocx, (void *, size_t, int), old, 9000, 0), 1)
GIVES_BACK(dallocx, (void *, int), block, 0)
GIVES_BACK(sdallocx, (void *, size_t, int), block, 64, 0)

/* It has room for 112 bytes. */
SETUP(xallocx_in_place, 100)
OWN_FRAME static void row_xallocx_in_place(void *old)
{
    MUST(CALL(size_t, xallocx, (void *, size_t, size_t, int), old, 110, 0, 0) >= 110);
    book_lose(old);
    book_gain("row_xallocx_in_place", old, 110);
}
SETUP(xallocx_fails, 101)
OWN_FRAME static void row_xallocx_fails(void *old)
{
    MUST(CALL(size_t, xallocx, (void *, size_t, size_t, int), old, 5000, 0, 0) < 5000);
    book_site("row_xallocx_fails");
}

static void rows_of_jemalloc(void)
{
    row_mallocx();
    row_mallocx_flags();
    row_rallocx(setup_rallocx());
    row_xallocx_in_place(setup_xallocx_in_place());
    row_xallocx_fails(setup_xallocx_fails());
    row_dallocx(setup_dallocx());
    row_sdallocx(setup_sdallocx());
}

ONE(mi_malloc, 101)
ONE(mi_malloc_small, 102)
ONE(mi_zalloc, 103)
ONE(mi_zalloc_small, 104)
MANY(mi_calloc, 3, 35)
MANY(mi_mallocn, 2, 53)
SIZED_FIRST(mi_malloc_aligned, 107, 64)
SIZED_FIRST(mi_zalloc_aligned, 108, 64)
GIVES(mi_malloc_aligned_at, 109, CALL(void *, mi_malloc_aligned_at, (size_t, size_t, size_t), 109, 64, 8))
GIVES(mi_calloc_aligned, 110, CALL(void *, mi_calloc_aligned, (size_t, size_t, size_t), 5, 22, 64))
SIZED_SECOND(mi_memalign, 64, 111)
SIZED_SECOND(mi_aligned_alloc, 64, 128)
ONE(mi_valloc, 113)
ONE(mi_new, 114)
ONE(mi_new_nothrow, 115)
MANY(mi_new_n, 4, 29)
SIZED_FIRST(mi_new_aligned, 117, 64)
AGAIN(mi_realloc, 1180)
AGAIN(mi_rezalloc, 1190)
AGAIN_MANY(mi_reallocn, 10, 120)
AGAIN_MANY(mi_recalloc, 10, 121)
AGAIN_MANY(mi_reallocarray, 10, 122)
AGAIN(mi_reallocf, 1230)
AGAIN(mi_new_realloc, 1240)
SETUP(mi_expand, 41)
REALLOCATES(mi_expand, 44, CALL(void *, mi_expand, (void *, size_t), old, 44), 1)
GIVES(mi_heap_malloc, 126, CALL(void *, mi_heap_malloc, (void *, size_t), CALL(void *, mi_heap_get_default, (void), ), 126))
GIVES(mi_heap_calloc, 127, CALL(void *, mi_heap_calloc, (void *, size_t, size_t), CALL(void *, mi_heap_get_default, (void), ), 1, 127))
GIVES_BACK(mi_free, (void *), block)
GIVES_BACK(mi_free_size, (void *, size_t), block, 64)
GIVES_BACK(mi_free_aligned, (void *, size_t), block, 8)
GIVES_BACK(mi_free_size_aligned, (void *, size_t, size_t), block, 64, 8)

OWN_FRAME static void row_mi_posix_memalign(void)
{
    void *block = NULL;
    MUST(CALL(int, mi_posix_memalign, (void **, size_t, size_t), &block, 64, 133) == 0);
    book_gain("row_mi_posix_memalign", block, 133);
}

static void rows_of_mimalloc(void)
{
    row_mi_malloc();
    row_mi_malloc_small();
    row_mi_zalloc();
    row_mi_zalloc_small();
    row_mi_calloc();
    row_mi_mallocn();
    row_mi_malloc_aligned();
    row_mi_zalloc_aligned();
    row_mi_malloc_aligned_at();
    row_mi_calloc_aligned();
    row_mi_memalign();
    row_mi_aligned_alloc();
    row_mi_valloc();
    row_mi_new();
    row_mi_new_nothrow();
    row_mi_new_n();
    row_mi_new_aligned();
    row_mi_realloc(setup_mi_realloc());
    row_mi_rezalloc(setup_mi_rezalloc());
    row_mi_reallocn(setup_mi_reallocn());
    row_mi_recalloc(setup_mi_recalloc());
    row_mi_reallocarray(setup_mi_reallocarray());
    row_mi_reallocf(setup_mi_reallocf());
    row_mi_new_realloc(setup_mi_new_realloc());
    row_mi_expand(setup_mi_expand());
    row_mi_heap_malloc();
    row_mi_heap_calloc();
    row_mi_posix_memalign();
    row_mi_free(setup_mi_free());
    row_mi_free_size(setup_mi_free_size());
    row_mi_free_aligned(setup_mi_free_aligned());
    row_mi_free_size_aligned(setup_mi_free_size_aligned());
}

ONE(tc_malloc, 101)
ONE(tc_malloc_skip_new_handler, 102)
MANY(tc_calloc, 3, 35)
SIZED_SECOND(tc_memalign, 64, 104)
ONE(tc_valloc, 105)
ONE(tc_pvalloc, 106)
ONE(tc_new, 107)
ONE(tc_newarray, 108)
GIVES(tc_new_nothrow, 109, CALL(void *, tc_new_nothrow, (size_t, const void *), 109, ""))
SIZED_FIRST(tc_new_aligned, 110, 64)
SIZED_FIRST(tc_newarray_aligned, 111, 64)
AGAIN(tc_realloc, 1120)
GIVES_BACK(tc_free, (void *), block)
GIVES_BACK(tc_free_sized, (void *, size_t), block, 64)
GIVES_BACK(tc_cfree, (void *), block)
GIVES_BACK(tc_delete, (void *), block)
GIVES_BACK(tc_delete_sized, (void *, size_t), block, 64)
GIVES_BACK(tc_deletearray, (void *), block)
GIVES_BACK(tc_delete_nothrow, (void *, const void *), block, "")
GIVES_BACK(tc_delete_aligned, (void *, size_t), block, 8)

static void rows_of_tcmalloc(void)
{
    row_tc_malloc();
    row_tc_malloc_skip_new_handler();
    row_tc_calloc();
    row_tc_memalign();
    row_tc_valloc();
    row_tc_pvalloc();
    row_tc_new();
    row_tc_newarray();
    row_tc_new_nothrow();
    row_tc_new_aligned();
    row_tc_newarray_aligned();
    row_tc_realloc(setup_tc_realloc());
    row_tc_free(setup_tc_free());
    row_tc_free_sized(setup_tc_free_sized());
    row_tc_cfree(setup_tc_cfree());
    row_tc_delete(setup_tc_delete());
    row_tc_delete_sized(setup_tc_delete_sized());
    row_tc_deletearray(setup_tc_deletearray());
    row_tc_delete_nothrow(setup_tc_delete_nothrow());
    row_tc_delete_aligned(setup_tc_delete_aligned());
}

int main(void)
{
    placed = 0;
    /* Looking a name up may allocate once. */
    find("malloc");
    victim_ready();
    while (victim_next()) {
        if (victim_is("jemalloc"))
            rows_of_jemalloc();
        else if (victim_is("mimalloc"))
            rows_of_mimalloc();
        else if (victim_is("tcmalloc"))
            rows_of_tcmalloc();
        else if (victim_is("release"))
            book_release(free);
        else
            return 2;
        book_tell();
        victim_done();
    }
    return 0;
}
