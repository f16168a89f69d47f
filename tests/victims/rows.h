/* Calls of an allocator, each in a function of its own, which keeps the books of what it gives and takes. */
#ifndef ROWS_H
#define ROWS_H

#include <errno.h>
#include <stdint.h>

/* Refused by every allocator; volatile, or the compiler sees that and warns. */
__attribute__((unused)) static volatile size_t huge = SIZE_MAX / 2 + 1;
__attribute__((unused)) static volatile size_t half = SIZE_MAX / 2 + 1;

/* Whether blocks lie where glibc puts them; an argument says that another allocator stands in for it. */
__attribute__((unused)) static int placed = 1;

/* What gives the blocks that rows begin with. */
__attribute__((unused)) static void *(*first_block)(size_t) = malloc;

#define SETUP(name, size)                                                        \
    OWN_FRAME static void *setup_##name(void)                                    \
    {                                                                            \
        void *block = first_block(size);                                              \
        MUST(block);                                                             \
        book_gain("setup_" #name, block, size);                                  \
        return block;                                                            \
    }

/* A call that takes no block and gives one of `size` bytes. */
#define GIVES(name, size, call)                                                  \
    OWN_FRAME static void row_##name(void)                                       \
    {                                                                            \
        void *block = call;                                                      \
        MUST(block);                                                             \
        book_gain("row_" #name, block, size);                                    \
    }

/* A call that must give nothing. */
#define REFUSED(name, call)                                                      \
    OWN_FRAME static void row_##name(void)                                       \
    {                                                                            \
        void *block = call;                                                      \
        MUST(!block);                                                            \
        book_site("row_" #name);                                                 \
    }

/* A reallocation of `old` that gives `size` bytes; `rule` says what must hold of `block` and `was`. */
#define REALLOCATES(name, size, call, rule)                                      \
    OWN_FRAME static void row_##name(void *old)                                  \
    {                                                                            \
        volatile uintptr_t was = (uintptr_t)old;                                 \
        book_lose(old);                                                          \
        void *block = call;                                                      \
        MUST(block);                                                             \
        MUST(!placed || (rule));                                                 \
        (void)was;                                                               \
        book_gain("row_" #name, block, size);                                    \
    }

/* A reallocation that fails: `old` stays where it was, and its site keeps it. */
#define KEEPS(name, call)                                                        \
    OWN_FRAME static void row_##name(void *old)                                  \
    {                                                                            \
        void *block = call;                                                      \
        MUST(!block && (!placed || errno == ENOMEM));                                         \
        book_site("row_" #name);                                                 \
    }

#endif
