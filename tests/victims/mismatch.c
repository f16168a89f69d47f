/* Two allocators of the program's own, which take their memory from malloc: `mix N` gives N blocks of the one to the other,
 * N of malloc's to the one, which passes them on, and N back to where they came from; `move N` has the other one reallocate
 * N blocks. */
#include "victim.h"

OWN_FRAME static void *one_malloc(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}

OWN_FRAME static void one_free(void *block)
{
    free(block);
    KEEP(block);
}

OWN_FRAME static void *two_malloc(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}

OWN_FRAME static void *two_realloc(void *old, size_t size)
{
    void *block = realloc(old, size);
    KEEP(block);
    return block;
}

OWN_FRAME static void two_free(void *block)
{
    free(block);
    KEEP(block);
}

OWN_FRAME static void *take(size_t size)
{
    void *block = one_malloc(size);
    KEEP(block);
    return block;
}

OWN_FRAME static void give_to_another(void *block)
{
    two_free(block);
    KEEP(block);
}

OWN_FRAME static void mix(long count)
{
    for (long i = 0; i < count; i++) {
        void *block = take(100);
        void *own = take(30), *plain = malloc(20);
        give_to_another(block);
        one_free(own);
        one_free(plain);
    }
}

OWN_FRAME static void move(long count)
{
    for (long i = 0; i < count; i++)
        two_free(two_realloc(take(50), 60));
    void *block = two_malloc(1);
    KEEP(block);
    two_free(block);
}

int main(void)
{
    victim_ready();
    while (victim_next()) {
        if (victim_is("mix"))
            mix(victim_number(1));
        else if (victim_is("move"))
            move(victim_number(1));
        else
            return 2;
        victim_done();
    }
    return 0;
}
