/* Functions that not every allocator has, each called once: `jemalloc`, `mimalloc`, `tcmalloc` and so on, whichever is
 * preloaded or linked; `release` gives everything back. */
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

/* What gives back the blocks that are left. */
static void (*first_free)(void *) = free;

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
/* More would do as well, and there is room for some. */
SETUP(xallocx_extra, 100)
OWN_FRAME static void row_xallocx_extra(void *old)
{
    MUST(CALL(size_t, xallocx, (void *, size_t, size_t, int), old, 103, 4, 0) == 112);
    book_lose(old);
    book_gain("row_xallocx_extra", old, 107);
}
SETUP(xallocx_room, 100)
OWN_FRAME static void row_xallocx_room(void *old)
{
    MUST(CALL(size_t, xallocx, (void *, size_t, size_t, int), old, 103, 400, 0) == 112);
    book_lose(old);
    book_gain("row_xallocx_room", old, 112);
}
/* It cannot become smaller where it is. */
SETUP(xallocx_stays, 100)
OWN_FRAME static void row_xallocx_stays(void *old)
{
    MUST(CALL(size_t, xallocx, (void *, size_t, size_t, int), old, 8, 0, 0) == 112);
    book_lose(old);
    book_gain("row_xallocx_stays", old, 100);
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
    row_xallocx_extra(setup_xallocx_extra());
    row_xallocx_room(setup_xallocx_room());
    row_xallocx_stays(setup_xallocx_stays());
    row_xallocx_fails(setup_xallocx_fails());
    row_dallocx(setup_dallocx());
    row_sdallocx(setup_sdallocx());
}

#include "mimalloc.h"

ONE(tc_malloc, 101)
ONE(tc_malloc_skip_new_handler, 102)
MANY(tc_calloc, 3, 35)
SIZED_SECOND(tc_memalign, 64, 104)
ONE(tc_valloc, 105)
ONE(tc_pvalloc, 106)
ONE(tc_new, 107)
ONE(tc_newarray, 108)
GIVES(tc_new_nothrow, 109, CALL(void *, tc_new_nothrow, (size_t, const void *), 109, ""))
GIVES(tc_newarray_nothrow, 113, CALL(void *, tc_newarray_nothrow, (size_t, const void *), 113, ""))
SIZED_FIRST(tc_new_aligned, 110, 64)
SIZED_FIRST(tc_newarray_aligned, 111, 64)
GIVES(tc_new_aligned_nothrow, 114, CALL(void *, tc_new_aligned_nothrow, (size_t, size_t, const void *), 114, 64, ""))
GIVES(tc_newarray_aligned_nothrow, 115,
      CALL(void *, tc_newarray_aligned_nothrow, (size_t, size_t, const void *), 115, 64, ""))
AGAIN(tc_realloc, 1120)
GIVES_BACK(tc_free, (void *), block)
GIVES_BACK(tc_free_sized, (void *, size_t), block, 64)
GIVES_BACK(tc_cfree, (void *), block)
GIVES_BACK(tc_delete, (void *), block)
GIVES_BACK(tc_delete_sized, (void *, size_t), block, 64)
GIVES_BACK(tc_deletearray, (void *), block)
GIVES_BACK(tc_deletearray_sized, (void *, size_t), block, 64)
GIVES_BACK(tc_delete_nothrow, (void *, const void *), block, "")
GIVES_BACK(tc_deletearray_nothrow, (void *, const void *), block, "")
GIVES_BACK(tc_delete_aligned, (void *, size_t), block, 8)
GIVES_BACK(tc_delete_sized_aligned, (void *, size_t, size_t), block, 64, 8)
GIVES_BACK(tc_delete_aligned_nothrow, (void *, size_t, const void *), block, 8, "")
GIVES_BACK(tc_deletearray_aligned, (void *, size_t), block, 8)
GIVES_BACK(tc_deletearray_sized_aligned, (void *, size_t, size_t), block, 64, 8)
GIVES_BACK(tc_deletearray_aligned_nothrow, (void *, size_t, const void *), block, 8, "")

OWN_FRAME static void row_tc_posix_memalign(void)
{
    void *block = NULL;
    MUST(CALL(int, tc_posix_memalign, (void **, size_t, size_t), &block, 64, 116) == 0);
    book_gain("row_tc_posix_memalign", block, 116);
}

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
    row_tc_newarray_nothrow();
    row_tc_new_aligned();
    row_tc_newarray_aligned();
    row_tc_new_aligned_nothrow();
    row_tc_newarray_aligned_nothrow();
    row_tc_posix_memalign();
    row_tc_realloc(setup_tc_realloc());
    row_tc_free(setup_tc_free());
    row_tc_free_sized(setup_tc_free_sized());
    row_tc_cfree(setup_tc_cfree());
    row_tc_delete(setup_tc_delete());
    row_tc_delete_sized(setup_tc_delete_sized());
    row_tc_deletearray(setup_tc_deletearray());
    row_tc_deletearray_sized(setup_tc_deletearray_sized());
    row_tc_delete_nothrow(setup_tc_delete_nothrow());
    row_tc_deletearray_nothrow(setup_tc_deletearray_nothrow());
    row_tc_delete_aligned(setup_tc_delete_aligned());
    row_tc_delete_sized_aligned(setup_tc_delete_sized_aligned());
    row_tc_delete_aligned_nothrow(setup_tc_delete_aligned_nothrow());
    row_tc_deletearray_aligned(setup_tc_deletearray_aligned());
    row_tc_deletearray_sized_aligned(setup_tc_deletearray_sized_aligned());
    row_tc_deletearray_aligned_nothrow(setup_tc_deletearray_aligned_nothrow());
}

/* C's functions by the names that glibc gave them. */
ONE(__libc_malloc, 101)
MANY(__libc_calloc, 3, 35)
SIZED_SECOND(__libc_memalign, 64, 104)
ONE(__libc_valloc, 105)
ONE(__libc_pvalloc, 106)
AGAIN(__libc_realloc, 1120)
GIVES_BACK(__libc_free, (void *), block)

/* Those that glibc does not let programs be linked with, or has no more. */
GIVES_BACK(cfree, (void *), block)

OWN_FRAME static void row___posix_memalign(void)
{
    void *block = NULL;
    MUST(CALL(int, __posix_memalign, (void **, size_t, size_t), &block, 64, 116) == 0);
    book_gain("row___posix_memalign", block, 116);
}

static void rows_of_libc(void)
{
    row___libc_malloc();
    row___libc_calloc();
    row___libc_memalign();
    row___libc_valloc();
    row___libc_pvalloc();
    row___libc_realloc(setup___libc_realloc());
    row___libc_free(setup___libc_free());
}

static void rows_of_old(void)
{
    row_cfree(setup_cfree());
    row___posix_memalign();
}

/* C23's, and C's under the prefix of a jemalloc; see stand_in.c. */
GIVES_BACK(free_sized, (void *, size_t), block, 64)
GIVES_BACK(free_aligned_sized, (void *, size_t, size_t), block, 8, 64)

static void rows_of_c23(void)
{
    row_free_sized(setup_free_sized());
    row_free_aligned_sized(setup_free_aligned_sized());
}

ONE(je_malloc, 101)
MANY(je_calloc, 3, 35)
SIZED_SECOND(je_aligned_alloc, 64, 128)
SIZED_SECOND(je_memalign, 64, 104)
ONE(je_valloc, 105)
ONE(je_pvalloc, 106)
GIVES(je_mallocx, 107, CALL(void *, je_mallocx, (size_t, int), 107, 0))
AGAIN(je_realloc, 1120)
SETUP(je_rallocx, 48)
REALLOCATES(je_rallocx, 1130, CALL(void *, je_rallocx, (void *, size_t, int), old, 1130, 0), 1)
GIVES_BACK(je_free, (void *), block)
GIVES_BACK(je_free_sized, (void *, size_t), block, 64)
GIVES_BACK(je_free_aligned_sized, (void *, size_t, size_t), block, 8, 64)
GIVES_BACK(je_dallocx, (void *, int), block, 0)
GIVES_BACK(je_sdallocx, (void *, size_t, int), block, 64, 0)

OWN_FRAME static void row_je_posix_memalign(void)
{
    void *block = NULL;
    MUST(CALL(int, je_posix_memalign, (void **, size_t, size_t), &block, 64, 116) == 0);
    book_gain("row_je_posix_memalign", block, 116);
}

SETUP(je_xallocx, 49)
OWN_FRAME static void row_je_xallocx(void *old)
{
    MUST(CALL(size_t, je_xallocx, (void *, size_t, size_t, int), old, 20, 0, 0) == 20);
    book_lose(old);
    book_gain("row_je_xallocx", old, 20);
}

static void rows_of_je(void)
{
    first_block = find("je_malloc");
    first_free = find("je_free");
    row_je_malloc();
    row_je_calloc();
    row_je_aligned_alloc();
    row_je_memalign();
    row_je_valloc();
    row_je_pvalloc();
    row_je_mallocx();
    row_je_posix_memalign();
    row_je_realloc(setup_je_realloc());
    row_je_rallocx(setup_je_rallocx());
    row_je_free(setup_je_free());
    row_je_free_sized(setup_je_free_sized());
    row_je_free_aligned_sized(setup_je_free_aligned_sized());
    row_je_dallocx(setup_je_dallocx());
    row_je_sdallocx(setup_je_sdallocx());
    row_je_xallocx(setup_je_xallocx());
}

ONE(TCMallocInternalMalloc, 101)
MANY(TCMallocInternalCalloc, 3, 35)
SIZED_SECOND(TCMallocInternalMemalign, 64, 104)
SIZED_SECOND(TCMallocInternalAlignedAlloc, 64, 128)
ONE(TCMallocInternalValloc, 105)
ONE(TCMallocInternalPvalloc, 106)
ONE(TCMallocInternalNew, 107)
ONE(TCMallocInternalNewArray, 108)
GIVES(TCMallocInternalNewNothrow, 109, CALL(void *, TCMallocInternalNewNothrow, (size_t, const void *), 109, ""))
GIVES(TCMallocInternalNewArrayNothrow, 113,
      CALL(void *, TCMallocInternalNewArrayNothrow, (size_t, const void *), 113, ""))
SIZED_FIRST(TCMallocInternalNewAligned, 110, 64)
GIVES(TCMallocInternalNewAlignedNothrow, 114,
      CALL(void *, TCMallocInternalNewAlignedNothrow, (size_t, size_t, const void *), 114, 64, ""))
AGAIN(TCMallocInternalRealloc, 1120)
AGAIN_MANY(TCMallocInternalReallocArray, 10, 113)
GIVES_BACK(TCMallocInternalFree, (void *), block)
GIVES_BACK(TCMallocInternalFreeSized, (void *, size_t), block, 64)
GIVES_BACK(TCMallocInternalFreeAlignedSized, (void *, size_t, size_t), block, 8, 64)
GIVES_BACK(TCMallocInternalCfree, (void *), block)
GIVES_BACK(TCMallocInternalSdallocx, (void *, size_t, int), block, 64, 0)
GIVES_BACK(TCMallocInternalDelete, (void *), block)
GIVES_BACK(TCMallocInternalDeleteArray, (void *), block)
GIVES_BACK(TCMallocInternalDeleteSized, (void *, size_t), block, 64)
GIVES_BACK(TCMallocInternalDeleteArraySized, (void *, size_t), block, 64)
GIVES_BACK(TCMallocInternalDeleteAligned, (void *, size_t), block, 8)
GIVES_BACK(TCMallocInternalDeleteSizedAligned, (void *, size_t, size_t), block, 64, 8)

OWN_FRAME static void row_TCMallocInternalPosixMemalign(void)
{
    void *block = NULL;
    MUST(CALL(int, TCMallocInternalPosixMemalign, (void **, size_t, size_t), &block, 64, 116) == 0);
    book_gain("row_TCMallocInternalPosixMemalign", block, 116);
}

static void rows_of_tcmalloc_internal(void)
{
    first_block = find("TCMallocInternalMalloc");
    first_free = find("TCMallocInternalFree");
    row_TCMallocInternalMalloc();
    row_TCMallocInternalCalloc();
    row_TCMallocInternalMemalign();
    row_TCMallocInternalAlignedAlloc();
    row_TCMallocInternalValloc();
    row_TCMallocInternalPvalloc();
    row_TCMallocInternalNew();
    row_TCMallocInternalNewArray();
    row_TCMallocInternalNewNothrow();
    row_TCMallocInternalNewArrayNothrow();
    row_TCMallocInternalNewAligned();
    row_TCMallocInternalNewAlignedNothrow();
    row_TCMallocInternalPosixMemalign();
    row_TCMallocInternalRealloc(setup_TCMallocInternalRealloc());
    row_TCMallocInternalReallocArray(setup_TCMallocInternalReallocArray());
    row_TCMallocInternalFree(setup_TCMallocInternalFree());
    row_TCMallocInternalFreeSized(setup_TCMallocInternalFreeSized());
    row_TCMallocInternalFreeAlignedSized(setup_TCMallocInternalFreeAlignedSized());
    row_TCMallocInternalCfree(setup_TCMallocInternalCfree());
    row_TCMallocInternalSdallocx(setup_TCMallocInternalSdallocx());
    row_TCMallocInternalDelete(setup_TCMallocInternalDelete());
    row_TCMallocInternalDeleteArray(setup_TCMallocInternalDeleteArray());
    row_TCMallocInternalDeleteSized(setup_TCMallocInternalDeleteSized());
    row_TCMallocInternalDeleteArraySized(setup_TCMallocInternalDeleteArraySized());
    row_TCMallocInternalDeleteAligned(setup_TCMallocInternalDeleteAligned());
    row_TCMallocInternalDeleteSizedAligned(setup_TCMallocInternalDeleteSizedAligned());
}

int main(void)
{
    static const struct {
        const char *name;
        void (*rows)(void);
    } phases[] = {
        {"jemalloc", rows_of_jemalloc}, {"mimalloc", rows_of_mimalloc}, {"tcmalloc", rows_of_tcmalloc},
        {"libc", rows_of_libc},         {"old", rows_of_old},           {"c23", rows_of_c23},
        {"je", rows_of_je},             {"tcmalloc_internal", rows_of_tcmalloc_internal},
        {"destroy", destroy_heaps},
    };
    placed = 0;
    /* Looking a name up may allocate once; and a variable takes a block. */
    find("malloc");
    MUST(setenv("NAMES", "duplicate", 1) == 0);
    victim_ready();
    while (victim_next()) {
        int is_known = victim_is("release");
        for (size_t i = 0; i < sizeof phases / sizeof *phases; i++) {
            if (victim_is(phases[i].name)) {
                phases[i].rows();
                is_known = 1;
            }
        }
        if (victim_is("release"))
            book_release(first_free);
        if (!is_known)
            return 2;
        book_tell();
        victim_done();
    }
    return 0;
}
