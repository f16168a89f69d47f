/*
 * What `cargo xtask bench` times. Reads commands from standard input, one a line:
 *   pairs N DEPTH   N malloc/free pairs of 64 bytes, called DEPTH frames below the command loop; prints ns a pair
 *   hold N SITES    takes N blocks of 32 bytes from SITES different stacks and keeps them; prints `held N`
 *   quit
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define OWN_FRAME __attribute__((noinline, noclone))

OWN_FRAME static void pairs(long n)
{
    for (long i = 0; i < n; i++) {
        void *block = malloc(64);
        __asm__ volatile("" : : "r"(block) : "memory");
        free(block);
    }
}

OWN_FRAME static void below(int depth, long n)
{
    if (depth > 0)
        below(depth - 1, n);
    else
        pairs(n);
    __asm__ volatile("" : : : "memory"); /* no tail call */
}

OWN_FRAME static void *take(void)
{
    void *block = malloc(32);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}

/* A stack of its own for each number: its bits choose between two call sites. */
OWN_FRAME static void *left(unsigned number, int bits);
OWN_FRAME static void *right(unsigned number, int bits);
static inline __attribute__((always_inline)) void *turn(unsigned number, int bits)
{
    void *block;
    if (bits == 0)
        block = take();
    else if (number & 1)
        block = left(number >> 1, bits - 1);
    else
        block = right(number >> 1, bits - 1);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}
static void *left(unsigned number, int bits)
{
    return turn(number, bits);
}
static void *right(unsigned number, int bits)
{
    return turn(number, bits);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(void)
{
    char line[256];
    printf("ready %d\n", getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        long n;
        int m;
        if (sscanf(line, "pairs %ld %d", &n, &m) == 2) {
            double begin = now();
            /* main, this frame's callees and pairs count as frames, too. */
            below(m > 3 ? m - 3 : 0, n);
            printf("ns %.1f\n", (now() - begin) / (double)n);
        } else if (sscanf(line, "hold %ld %d", &n, &m) == 2) {
            for (long i = 0; i < n; i++)
                left((unsigned)(i % m), 13);
            printf("held %ld\n", n);
        } else if (strncmp(line, "quit", 4) == 0) {
            return 0;
        }
        fflush(stdout);
    }
    return 0;
}
