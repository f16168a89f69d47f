/* Every call of the allocator's table, succeeding and failing, each in a function of its own.
 *
 * Commands: `rows` makes each call once; `release` gives everything back.
 * `setup_*` functions make the block that the `row_*` function of the same name then works on.
 */
#define _GNU_SOURCE
#include "victim.h"

#include "rows.h"

#include <malloc.h>

GIVES(malloc, 100, malloc(100))
GIVES(malloc_zero, 0, malloc(0))
/* Above the threshold, malloc calls mmap: still one block, and of malloc's size. */
GIVES(malloc_large, 1 << 20, malloc(1 << 20))
REFUSED(malloc_fails, malloc(huge))

GIVES(calloc, 7 * 13, calloc(7, 13))
GIVES(calloc_zero, 0, calloc(0, 8))
GIVES(calloc_large, 3 * 200000, calloc(3, 200000))
/* The product wraps to 0. */
REFUSED(calloc_overflow, calloc(half, 2))
REFUSED(calloc_fails, calloc(huge, 1))

SETUP(realloc_moves, 200)
SETUP(pin_realloc_moves, 200)
REALLOCATES(realloc_moves, 50000, realloc(old, 50000), (uintptr_t)block != was)
SETUP(realloc_shrinks, 3000)
REALLOCATES(realloc_shrinks, 48, realloc(old, 48), (uintptr_t)block == was)
SETUP(realloc_same, 72)
REALLOCATES(realloc_same, 70, realloc(old, 70), (uintptr_t)block == was)
/* glibc grows a block of its own mapping by mremap. */
SETUP(realloc_large, 1 << 20)
REALLOCATES(realloc_large, 3 << 20, realloc(old, 3 << 20), 1)
SETUP(realloc_fails, 333)
KEEPS(realloc_fails, realloc(old, huge))
/* The block that was kept by a failed call is then reallocated after all. */
SETUP(realloc_retried, 444)
KEEPS(realloc_refused_first, realloc(old, huge))
REALLOCATES(realloc_retried, 888, realloc(old, 888), 1)
GIVES(realloc_null, 77, realloc(NULL, 77))
GIVES(realloc_null_zero, 0, realloc(NULL, 0))
REFUSED(realloc_null_fails, realloc(NULL, huge))
SETUP(realloc_zero, 500)
OWN_FRAME static void row_realloc_zero(void *old)
{
    book_lose(old);
    void *block = realloc(old, 0);
    MUST(!block || !placed);
    book_site("row_realloc_zero");
    /* Others than glibc hand out a smallest block. */
    if (block)
        book_gain("row_realloc_zero", block, 0);
}

SETUP(reallocarray, 60)
REALLOCATES(reallocarray, 11 * 17, reallocarray(old, 11, 17), 1)
SETUP(reallocarray_overflow, 61)
KEEPS(reallocarray_overflow, reallocarray(old, half, 2))
SETUP(reallocarray_fails, 62)
KEEPS(reallocarray_fails, reallocarray(old, huge, 1))
GIVES(reallocarray_null, 5 * 19, reallocarray(NULL, 5, 19))

OWN_FRAME static void row_posix_memalign(void)
{
    void *block = NULL;
    MUST(posix_memalign(&block, 256, 600) == 0 && block);
    book_gain("row_posix_memalign", block, 600);
}

/* Failing calls leave the out pointer alone. It holds an address that looks like a block: a tool that
 * reads it without looking at the return code records that. */
OWN_FRAME static void row_posix_memalign_bad_alignment(void *other)
{
    void *block = (char *)other + 16;
    MUST(posix_memalign(&block, 24, 601) == EINVAL);
    MUST(block == (char *)other + 16);
    book_site("row_posix_memalign_bad_alignment");
}

OWN_FRAME static void row_posix_memalign_fails(void *other)
{
    void *block = (char *)other + 32;
    MUST(posix_memalign(&block, 64, huge) == ENOMEM);
    MUST(block == (char *)other + 32);
    book_site("row_posix_memalign_fails");
}

GIVES(aligned_alloc, 640, aligned_alloc(64, 640))
REFUSED(aligned_alloc_fails, aligned_alloc(64, huge))
GIVES(memalign, 130, memalign(128, 130))
REFUSED(memalign_fails, memalign(128, huge))
#ifdef __GLIBC__
GIVES(valloc, 150, valloc(150))
REFUSED(valloc_fails, valloc(huge))
/* pvalloc rounds up to a page by itself; what was asked for is what counts. */
GIVES(pvalloc, 160, pvalloc(160))
REFUSED(pvalloc_fails, pvalloc(huge))
#endif

SETUP(free, 700)
OWN_FRAME static void row_free(void *block)
{
    book_lose(block);
    free(block);
    book_site("row_free");
}

static void *volatile nothing = NULL;
OWN_FRAME static void row_free_null(void)
{
    free(nothing);
    free(nothing);
    book_site("row_free_null");
}

/* The same address, handed out again at once at another site. */
SETUP(reuse, 96)
OWN_FRAME static void row_reuse(void *old)
{
    volatile uintptr_t was = (uintptr_t)old;
    book_lose(old);
    free(old);
    void *block = malloc(96);
    MUST(!placed || (uintptr_t)block == was);
    book_gain("row_reuse", block, 96);
}

OWN_FRAME static void rows(void)
{
    row_malloc();
    row_malloc_zero();
    row_malloc_large();
    row_malloc_fails();
    row_calloc();
    row_calloc_zero();
    row_calloc_large();
    row_calloc_overflow();
    row_calloc_fails();

    void *old = setup_realloc_moves();
    setup_pin_realloc_moves();
    row_realloc_moves(old);
    row_realloc_shrinks(setup_realloc_shrinks());
    row_realloc_same(setup_realloc_same());
    row_realloc_large(setup_realloc_large());
    row_realloc_fails(setup_realloc_fails());
    old = setup_realloc_retried();
    row_realloc_refused_first(old);
    row_realloc_retried(old);
    row_realloc_null();
    row_realloc_null_zero();
    row_realloc_null_fails();
    row_realloc_zero(setup_realloc_zero());

    row_reallocarray(setup_reallocarray());
    row_reallocarray_overflow(setup_reallocarray_overflow());
    row_reallocarray_fails(setup_reallocarray_fails());
    row_reallocarray_null();

    row_posix_memalign();
    row_posix_memalign_bad_alignment(book_blocks[0].address);
    row_posix_memalign_fails(book_blocks[0].address);
    row_aligned_alloc();
    row_aligned_alloc_fails();
    row_memalign();
    row_memalign_fails();
#ifdef __GLIBC__
    row_valloc();
    row_valloc_fails();
    /* valgrind ends programs that call pvalloc. */
    if (placed) {
        row_pvalloc();
        row_pvalloc_fails();
    }
#endif

    row_free(setup_free());
    row_free_null();
    row_reuse(setup_reuse());
}

/* Calls of the C library that allocate inside it: exact in total; their caller needs unwinding tables. */
OWN_FRAME static void inner(void)
{
    void *text = strdup("seventeen letters");
    MUST(text);
    book_gain("-", text, 18);
    char *line = NULL;
    MUST(asprintf(&line, "%s", "nine char") == 9);
    /* asprintf allocates 100 or 200 bytes by version and then trims the block to the text. */
    book_gain("-", line, 10);
}

int main(int count, char **words)
{
    (void)words;
    placed = count == 1;
    victim_ready();
    while (victim_next()) {
        if (victim_is("rows"))
            rows();
        else if (victim_is("inner"))
            inner();
        else if (victim_is("release"))
            book_release(free);
        else
            return 2;
        book_tell();
        victim_done();
    }
    return 0;
}
