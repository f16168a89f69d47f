/*
 * What `cargo xtask bench` times. Reads commands from standard input, one a line:
 *   pairs N DEPTH   N malloc/free pairs of 64 bytes, on a stack of DEPTH frames from main to their caller; prints
 *                   ns of this thread's CPU time a pair
 *   keep DEPTH      takes one block on the stack of `pairs N DEPTH` and keeps it; prints `kept 1`
 *   hold N SITES    takes N blocks of 32 bytes from SITES different stacks and keeps them; prints `held N`
 *   load FILE       loads a shared library; prints `loaded FILE`
 *   map FILE        maps a file as code, without running any of it; prints `mapped FILE`
 *   quit
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define OWN_FRAME __attribute__((noinline, noclone))

static void *volatile kept;

/* 0 pairs: one block that is kept. */
OWN_FRAME static void pairs(long n)
{
    if (n == 0)
        kept = malloc(64);
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

static int map(const char *file)
{
    struct stat about;
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &about) != 0)
        return 0;
    void *at = mmap(NULL, (size_t)about.st_size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
    close(fd);
    return at != MAP_FAILED;
}

static double cpu_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(void)
{
    static char in[4096], out[4096], line[4096], file[4096];
    /* stdio would allocate its buffers at some time of its own. */
    setvbuf(stdin, in, _IOFBF, sizeof in);
    setvbuf(stdout, out, _IOFBF, sizeof out);
    printf("ready %d\n", getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        long n;
        int m;
        if (sscanf(line, "pairs %ld %d", &n, &m) == 2 && n > 0) {
            double begin = cpu_time();
            /* main, below with depth 0, and pairs count as frames, too. */
            below(m > 3 ? m - 3 : 0, n);
            printf("ns %.1f\n", (cpu_time() - begin) / (double)n);
        } else if (sscanf(line, "keep %d", &m) == 1) {
            below(m > 3 ? m - 3 : 0, 0);
            printf("kept 1\n");
        } else if (sscanf(line, "hold %ld %d", &n, &m) == 2 && m > 0) {
            for (long i = 0; i < n; i++)
                left((unsigned)(i % m), 13);
            printf("held %ld\n", n);
        } else if (sscanf(line, "load %4095[^\n]", file) == 1) {
            if (dlopen(file, RTLD_NOW))
                printf("loaded %s\n", file);
            else
                printf("failed %s\n", dlerror());
        } else if (sscanf(line, "map %4095[^\n]", file) == 1) {
            printf("%s %s\n", map(file) ? "mapped" : "failed", file);
        } else if (strncmp(line, "quit", 4) == 0) {
            return 0;
        } else {
            printf("failed %s", line);
        }
        fflush(stdout);
    }
    return 0;
}
