/* An allocator of the program's own, which takes its memory from malloc in large pieces, and whose functions are static:
 * `take N SIZE` takes blocks of it, half of which are given back; `plain N` takes some of malloc's. */
#include "victim.h"

enum { PIECE = 1 << 16 };

static char *piece;
static size_t left;

OWN_FRAME static void *pool_malloc(size_t size)
{
    size_t whole = (size + 15) & ~(size_t)15;
    if (left < whole) {
        piece = malloc(PIECE);
        MUST(piece);
        left = PIECE;
    }
    left -= whole;
    char *block = piece;
    piece += whole;
    return block;
}

OWN_FRAME static void *pool_realloc(void *old, size_t size)
{
    void *block = pool_malloc(size);
    KEEP(old);
    return block;
}

OWN_FRAME static void pool_free(void *block)
{
    KEEP(block);
}

OWN_FRAME static void take(long count, size_t size)
{
    for (long i = 0; i < count; i++) {
        void *block = pool_malloc(size);
        KEEP(block);
        if (i % 2)
            pool_free(block);
        else if (i % 4 == 0)
            KEEP(pool_realloc(block, size));
    }
    victim_truth("take", count - count / 2, (count - count / 2) * (long)size, count + count / 4, count / 2 + count / 4);
}

OWN_FRAME static void plain(long count)
{
    for (long i = 0; i < count; i++)
        KEEP(malloc(77));
    victim_truth("plain", count, count * 77, count, 0);
}

int main(void)
{
    victim_ready();
    while (victim_next()) {
        if (victim_is("take"))
            take(victim_number(1), (size_t)victim_number(2));
        else if (victim_is("plain"))
            plain(victim_number(1));
        else
            return 2;
        victim_done();
    }
    return 0;
}
