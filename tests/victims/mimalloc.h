/* mimalloc's functions, each called once: see names.c. */
#ifndef MIMALLOC_H
#define MIMALLOC_H

/* mimalloc's are of a heap, here the one that is the thread's own. */
#define HEAP CALL(void *, mi_heap_get_default, (void), )
#define OF_HEAP(name, size) GIVES(name, size, CALL(void *, name, (void *, size_t), HEAP, size))
#define OF_HEAP_ALIGNED(name, size)                                              \
    GIVES(name, size, CALL(void *, name, (void *, size_t, size_t, size_t), HEAP, size, 64, 8))
#define AGAIN_ALIGNED(name, size)                                                \
    SETUP(name, 42)                                                              \
    REALLOCATES(name, size, CALL(void *, name, (void *, size_t, size_t, size_t), old, size, 64, 0), 1)
#define AGAIN_MANY_ALIGNED(name, count, size)                                    \
    SETUP(name, 43)                                                              \
    REALLOCATES(name, (count) * (size),                                          \
                CALL(void *, name, (void *, size_t, size_t, size_t, size_t), old, count, size, 64, 0), 1)
#define AGAIN_OF_HEAP(name, size)                                                \
    SETUP(name, 44)                                                              \
    REALLOCATES(name, size,                                                      \
                CALL(void *, name, (void *, void *, size_t, size_t, size_t), HEAP, old, size, 64, 0), 1)
#define AGAIN_MANY_OF_HEAP(name, count, size)                                    \
    SETUP(name, 45)                                                              \
    REALLOCATES(name, (count) * (size),                                          \
                CALL(void *, name, (void *, void *, size_t, size_t, size_t, size_t), HEAP, old, count, size, 64, 0), 1)

/* A text of so many characters, in place. */
static char *text_of(size_t length)
{
    static char text[3 << 15];
    MUST(length < sizeof text);
    memset(text, 'x', length);
    text[length] = 0;
    return text;
}

#define DUPLICATES(name, function, length)                                       \
    GIVES(name, (length) + 1, CALL(void *, function, (const char *), text_of(length)))

ONE(mi_malloc, 101)
ONE(mi_malloc_small, 102)
ONE(mi_zalloc, 103)
ONE(mi_zalloc_small, 104)
MANY(mi_calloc, 3, 35)
MANY(mi_mallocn, 2, 53)
SIZED_FIRST(mi_malloc_aligned, 107, 64)
SIZED_FIRST(mi_zalloc_aligned, 108, 64)
GIVES(mi_malloc_aligned_at, 109, CALL(void *, mi_malloc_aligned_at, (size_t, size_t, size_t), 109, 64, 8))
GIVES(mi_zalloc_aligned_at, 111, CALL(void *, mi_zalloc_aligned_at, (size_t, size_t, size_t), 111, 64, 8))
GIVES(mi_calloc_aligned, 110, CALL(void *, mi_calloc_aligned, (size_t, size_t, size_t), 5, 22, 64))
GIVES(mi_calloc_aligned_at, 112, CALL(void *, mi_calloc_aligned_at, (size_t, size_t, size_t, size_t), 7, 16, 64, 8))
SIZED_SECOND(mi_memalign, 64, 111)
SIZED_SECOND(mi_aligned_alloc, 64, 128)
ONE(mi_valloc, 113)
ONE(mi_pvalloc, 4096)
ONE(mi_new, 114)
ONE(mi_new_nothrow, 115)
MANY(mi_new_n, 4, 29)
SIZED_FIRST(mi_new_aligned, 117, 64)
SIZED_FIRST(mi_new_aligned_nothrow, 118, 64)
AGAIN(mi_realloc, 1180)
AGAIN(mi_rezalloc, 1190)
AGAIN_MANY(mi_reallocn, 10, 120)
AGAIN_MANY(mi_recalloc, 10, 121)
AGAIN_MANY(mi_reallocarray, 10, 122)
AGAIN(mi_reallocf, 1230)
AGAIN(mi_new_realloc, 1240)
AGAIN_MANY(mi_new_reallocn, 10, 125)
AGAIN_ALIGNED(mi_realloc_aligned, 1260)
AGAIN_ALIGNED(mi_realloc_aligned_at, 1270)
AGAIN_ALIGNED(mi_rezalloc_aligned, 1280)
AGAIN_ALIGNED(mi_rezalloc_aligned_at, 1290)
AGAIN_MANY_ALIGNED(mi_recalloc_aligned, 10, 130)
AGAIN_MANY_ALIGNED(mi_recalloc_aligned_at, 10, 131)
AGAIN_MANY_ALIGNED(mi_aligned_recalloc, 10, 132)
AGAIN_MANY_ALIGNED(mi_aligned_offset_recalloc, 10, 133)
SETUP(mi_expand, 41)
REALLOCATES(mi_expand, 44, CALL(void *, mi_expand, (void *, size_t), old, 44), 1)
SETUP(mi__expand, 41)
REALLOCATES(mi__expand, 43, CALL(void *, mi__expand, (void *, size_t), old, 43), 1)
OF_HEAP(mi_heap_malloc, 126)
OF_HEAP(mi_heap_malloc_small, 127)
OF_HEAP(mi_heap_zalloc, 128)
OF_HEAP(mi_heap_alloc_new, 129)
OF_HEAP_ALIGNED(mi_heap_malloc_aligned, 130)
OF_HEAP_ALIGNED(mi_heap_malloc_aligned_at, 131)
OF_HEAP_ALIGNED(mi_heap_zalloc_aligned, 132)
OF_HEAP_ALIGNED(mi_heap_zalloc_aligned_at, 133)
GIVES(mi_heap_calloc, 134, CALL(void *, mi_heap_calloc, (void *, size_t, size_t), HEAP, 2, 67))
GIVES(mi_heap_mallocn, 135, CALL(void *, mi_heap_mallocn, (void *, size_t, size_t), HEAP, 3, 45))
GIVES(mi_heap_alloc_new_n, 136, CALL(void *, mi_heap_alloc_new_n, (void *, size_t, size_t), HEAP, 4, 34))
GIVES(mi_heap_calloc_aligned, 138, CALL(void *, mi_heap_calloc_aligned, (void *, size_t, size_t, size_t), HEAP, 6, 23, 64))
GIVES(mi_heap_calloc_aligned_at, 140,
      CALL(void *, mi_heap_calloc_aligned_at, (void *, size_t, size_t, size_t, size_t), HEAP, 7, 20, 64, 8))
AGAIN_OF_HEAP(mi_heap_realloc, 1410)
AGAIN_OF_HEAP(mi_heap_reallocf, 1420)
AGAIN_OF_HEAP(mi_heap_rezalloc, 1430)
AGAIN_OF_HEAP(mi_heap_realloc_aligned, 1440)
AGAIN_OF_HEAP(mi_heap_realloc_aligned_at, 1450)
AGAIN_OF_HEAP(mi_heap_rezalloc_aligned, 1460)
AGAIN_OF_HEAP(mi_heap_rezalloc_aligned_at, 1470)
AGAIN_MANY_OF_HEAP(mi_heap_reallocn, 10, 148)
AGAIN_MANY_OF_HEAP(mi_heap_recalloc, 10, 149)
AGAIN_MANY_OF_HEAP(mi_heap_recalloc_aligned, 10, 150)
AGAIN_MANY_OF_HEAP(mi_heap_recalloc_aligned_at, 10, 151)
DUPLICATES(mi_strdup, mi_strdup, 151)
/* As long as the pieces that strings are measured in, and a byte less; and longer than two of them. */
DUPLICATES(mi_strdup_piece, mi_strdup, (1 << 15) - 1)
DUPLICATES(mi_strdup_before_piece, mi_strdup, (1 << 15) - 2)
DUPLICATES(mi_strdup_pieces, mi_strdup, 70000)
DUPLICATES(mi_strdup_empty, mi_strdup, 0)
DUPLICATES(mi_mbsdup, mi_mbsdup, 152)
GIVES(mi_strndup, 31, CALL(void *, mi_strndup, (const char *, size_t), text_of(152), 30))
GIVES(mi_heap_strdup, 154, CALL(void *, mi_heap_strdup, (void *, const char *), HEAP, text_of(153)))
GIVES(mi_heap_strndup, 41, CALL(void *, mi_heap_strndup, (void *, const char *, size_t), HEAP, text_of(154), 40))
GIVES(mi_wcsdup, 8, CALL(void *, mi_wcsdup, (const unsigned short *), (const unsigned short[]){'a', 'b', 'c', 0}))
GIVES(mi_realpath, 6, CALL(void *, mi_realpath, (const char *, char *), "/proc", NULL))
GIVES(mi_heap_realpath, 5, CALL(void *, mi_heap_realpath, (void *, const char *, char *), HEAP, "/sys", NULL))
GIVES_BACK(mi_free, (void *), block)
GIVES_BACK(mi_cfree, (void *), block)
GIVES_BACK(mi_free_size, (void *, size_t), block, 64)
GIVES_BACK(mi_free_aligned, (void *, size_t), block, 8)
GIVES_BACK(mi_free_size_aligned, (void *, size_t, size_t), block, 64, 8)
GIVES_BACK(vfree, (void *), block)

/* Into a buffer of the caller's: no block. */
OWN_FRAME static void row_mi_realpath_into(void)
{
    static char path[4096];
    MUST(CALL(char *, mi_realpath, (const char *, char *), "/proc", path) == path);
    book_site("row_mi_realpath_into");
}

OWN_FRAME static void row_mi_dupenv_s(void)
{
    char *block = NULL;
    size_t length = 0;
    MUST(CALL(int, mi_dupenv_s, (char **, size_t *, const char *), &block, &length, "NAMES") == 0 && block);
    book_gain("row_mi_dupenv_s", block, sizeof "duplicate");
}

OWN_FRAME static void row_mi_posix_memalign(void)
{
    void *block = NULL;
    MUST(CALL(int, mi_posix_memalign, (void **, size_t, size_t), &block, 64, 133) == 0);
    book_gain("row_mi_posix_memalign", block, 133);
}

#define REALLOCARR(name)                                                         \
    SETUP(name, 46)                                                              \
    OWN_FRAME static void row_##name(void *block)                                \
    {                                                                            \
        book_lose(block);                                                        \
        MUST(CALL(int, name, (void **, size_t, size_t), &block, 10, 160) == 0);  \
        book_gain("row_" #name, block, 1600);                                    \
    }                                                                            \
    SETUP(name##_fails, 47)                                                      \
    OWN_FRAME static void row_##name##_fails(void *block)                        \
    {                                                                            \
        void *same = block;                                                      \
        MUST(CALL(int, name, (void **, size_t, size_t), &block, huge, 4) != 0);  \
        MUST(block == same);                                                     \
        book_site("row_" #name "_fails");                                        \
    }
/* Gives back what it cannot make larger. */
#define REALLOCF_FAILS(name, parameters, ...)                                    \
    SETUP(name##_fails, 48)                                                      \
    OWN_FRAME static void row_##name##_fails(void *block)                        \
    {                                                                            \
        book_lose(block);                                                        \
        MUST(CALL(void *, name, parameters, __VA_ARGS__) == NULL);               \
        book_site("row_" #name "_fails");                                        \
    }
REALLOCF_FAILS(mi_reallocf, (void *, size_t), block, huge)
REALLOCF_FAILS(mi_heap_reallocf, (void *, void *, size_t), HEAP, block, huge)
REALLOCARR(mi_reallocarr)
REALLOCARR(reallocarr)

/* Blocks of a heap of its own: `kept`, which outlives the heap, and what goes with one. */
OWN_FRAME static void destroy_heaps(void)
{
    void *heap = CALL(void *, mi_heap_new, (void), );
    void *kept = CALL(void *, mi_heap_malloc, (void *, size_t), heap, 161);
    MUST(kept);
    book_gain("destroy_heaps", kept, 161);
    CALL(void, mi_heap_delete, (void *), heap);
    heap = CALL(void *, mi_heap_new, (void), );
    MUST(CALL(void *, mi_heap_malloc, (void *, size_t), heap, 162));
    CALL(void, mi_heap_destroy, (void *), heap);
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
    row_mi_zalloc_aligned_at();
    row_mi_calloc_aligned();
    row_mi_calloc_aligned_at();
    row_mi_memalign();
    row_mi_aligned_alloc();
    row_mi_valloc();
    row_mi_pvalloc();
    row_mi_new();
    row_mi_new_nothrow();
    row_mi_new_n();
    row_mi_new_aligned();
    row_mi_new_aligned_nothrow();
    row_mi_heap_malloc();
    row_mi_heap_malloc_small();
    row_mi_heap_zalloc();
    row_mi_heap_alloc_new();
    row_mi_heap_malloc_aligned();
    row_mi_heap_malloc_aligned_at();
    row_mi_heap_zalloc_aligned();
    row_mi_heap_zalloc_aligned_at();
    row_mi_heap_calloc();
    row_mi_heap_mallocn();
    row_mi_heap_alloc_new_n();
    row_mi_heap_calloc_aligned();
    row_mi_heap_calloc_aligned_at();
    row_mi_strdup();
    row_mi_strdup_piece();
    row_mi_strdup_before_piece();
    row_mi_strdup_pieces();
    row_mi_strdup_empty();
    row_mi_mbsdup();
    row_mi_strndup();
    row_mi_heap_strdup();
    row_mi_heap_strndup();
    row_mi_wcsdup();
    row_mi_realpath();
    row_mi_heap_realpath();
    row_mi_dupenv_s();
    row_mi_posix_memalign();
    row_mi_realpath_into();
    row_mi_realloc(setup_mi_realloc());
    row_mi_rezalloc(setup_mi_rezalloc());
    row_mi_reallocn(setup_mi_reallocn());
    row_mi_recalloc(setup_mi_recalloc());
    row_mi_reallocarray(setup_mi_reallocarray());
    row_mi_reallocf(setup_mi_reallocf());
    row_mi_new_realloc(setup_mi_new_realloc());
    row_mi_new_reallocn(setup_mi_new_reallocn());
    row_mi_realloc_aligned(setup_mi_realloc_aligned());
    row_mi_realloc_aligned_at(setup_mi_realloc_aligned_at());
    row_mi_rezalloc_aligned(setup_mi_rezalloc_aligned());
    row_mi_rezalloc_aligned_at(setup_mi_rezalloc_aligned_at());
    row_mi_recalloc_aligned(setup_mi_recalloc_aligned());
    row_mi_recalloc_aligned_at(setup_mi_recalloc_aligned_at());
    row_mi_aligned_recalloc(setup_mi_aligned_recalloc());
    row_mi_aligned_offset_recalloc(setup_mi_aligned_offset_recalloc());
    row_mi_expand(setup_mi_expand());
    row_mi__expand(setup_mi__expand());
    row_mi_heap_realloc(setup_mi_heap_realloc());
    row_mi_heap_reallocf(setup_mi_heap_reallocf());
    row_mi_heap_rezalloc(setup_mi_heap_rezalloc());
    row_mi_heap_realloc_aligned(setup_mi_heap_realloc_aligned());
    row_mi_heap_realloc_aligned_at(setup_mi_heap_realloc_aligned_at());
    row_mi_heap_rezalloc_aligned(setup_mi_heap_rezalloc_aligned());
    row_mi_heap_rezalloc_aligned_at(setup_mi_heap_rezalloc_aligned_at());
    row_mi_heap_reallocn(setup_mi_heap_reallocn());
    row_mi_heap_recalloc(setup_mi_heap_recalloc());
    row_mi_heap_recalloc_aligned(setup_mi_heap_recalloc_aligned());
    row_mi_heap_recalloc_aligned_at(setup_mi_heap_recalloc_aligned_at());
    row_mi_free(setup_mi_free());
    row_mi_cfree(setup_mi_cfree());
    row_mi_free_size(setup_mi_free_size());
    row_mi_free_aligned(setup_mi_free_aligned());
    row_mi_free_size_aligned(setup_mi_free_size_aligned());
    row_vfree(setup_vfree());
    row_mi_reallocarr(setup_mi_reallocarr());
    row_reallocarr(setup_reallocarr());
    row_mi_reallocf_fails(setup_mi_reallocf_fails());
    row_mi_heap_reallocf_fails(setup_mi_heap_reallocf_fails());
    row_mi_reallocarr_fails(setup_mi_reallocarr_fails());
    row_reallocarr_fails(setup_reallocarr_fails());
}

#endif
