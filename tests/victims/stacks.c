/* Many stacks: `stacks BITS` allocates once in each of 2^BITS ways through two functions. */
#include "victim.h"

OWN_FRAME static void left(unsigned way, long bits);
OWN_FRAME static void right(unsigned way, long bits);

OWN_FRAME static void leaf(void)
{
    KEEP(malloc(40));
}

static void next(unsigned way, long bits)
{
    if (bits == 0)
        leaf();
    else if (way & 1)
        left(way >> 1, bits - 1);
    else
        right(way >> 1, bits - 1);
}

OWN_FRAME static void left(unsigned way, long bits)
{
    next(way, bits);
}

OWN_FRAME static void right(unsigned way, long bits)
{
    next(way, bits);
}

int main(void)
{
    victim_ready();
    while (victim_next()) {
        long bits = victim_number(1);
        MUST(victim_is("stacks") && bits > 0 && bits < 20);
        for (unsigned way = 0; way < 1u << bits; way++)
            next(way, bits);
        victim_truth("leaf", 1l << bits, 40l << bits, 1l << bits, 0);
        victim_done();
    }
    return 0;
}
