/* Leaks to order; also built with a static C library.
 *
 * `leak N SIZE` takes N blocks at one site; `free` gives all back; `calm N` does both N times over.
 * Blocks from before the attach: start it with arguments N SIZE. `regrow N SIZE` reallocates the first
 * N blocks. `exit STATUS` ends without giving back anything.
 */
#include "victim.h"

enum { MOST = 300000 };
static void *blocks[MOST];
/* `count` holds the blocks from before the attach too; the rest only what came after. */
static long count, held, held_bytes, allocated, freed;

OWN_FRAME static void leak(long number, size_t size)
{
    for (long i = 0; i < number; i++) {
        MUST(count < MOST);
        void *block = malloc(size);
        MUST(block);
        blocks[count++] = block;
        held++;
        held_bytes += (long)size;
        allocated++;
    }
}

OWN_FRAME static void take_early(long number, size_t size)
{
    leak(number, size);
    held = allocated = held_bytes = 0;
}

OWN_FRAME static void give_back(void)
{
    while (count > 0) {
        free(blocks[--count]);
        freed++;
    }
    held = held_bytes = 0;
}

OWN_FRAME static void regrow(long number, size_t size)
{
    for (long i = 0; i < number; i++) {
        void *block = realloc(blocks[i], size);
        MUST(block);
        blocks[i] = block;
    }
    victim_truth("regrow", number, number * (long)size, number, 0);
}

int main(int arguments, char **words)
{
    if (arguments == 3)
        take_early(atol(words[1]), (size_t)atol(words[2]));
    victim_ready();
    while (victim_next()) {
        if (victim_is("leak")) {
            leak(victim_number(1), (size_t)victim_number(2));
            victim_truth("leak", held, held_bytes, allocated, freed);
        } else if (victim_is("free")) {
            give_back();
            victim_say("truth leak blocks=0 bytes=0\ntruth regrow blocks=0 bytes=0\n");
            victim_say("truth note freed=%ld\n", freed);
        } else if (victim_is("calm")) {
            for (long i = victim_number(1); i > 0; i--) {
                leak(1, 48);
                give_back();
            }
        } else if (victim_is("regrow")) {
            regrow(victim_number(1), (size_t)victim_number(2));
        } else if (victim_is("exit")) {
            exit((int)victim_number(1));
        } else {
            return 2;
        }
        victim_done();
    }
    return 0;
}
