/* The mmap family: every call straight from its row's function, so that the row is the first frame.
 *
 * `rows` makes each call; `wrappers` does some of it through the C library; `early` gives back what was
 * mapped before `ready`; `heap` only takes blocks. One phase a process: `rows` moves the break behind the
 * C library's back. Lengths are whole pages. A row's truth has no `blocks` where the number of
 * ranges is a matter of taste: a range that was split, or one that was glued to its neighbour.
 */
#define _GNU_SOURCE
#include "victim.h"
#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096 };
#define PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)
#define BOTH (PROT_READ | PROT_WRITE)

static inline __attribute__((always_inline)) long call6(long number, long a, long b, long c, long d,
                                                        long e, long f)
{
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
#endif
}

/* Pages are only ever counted here, so the arguments are. */
#define MAP(address, pages, protection, flags, file)                             \
    call6(SYS_mmap, (long)(address), (long)(pages) * PAGE, protection, flags, file, 0)
#define UNMAP(address, pages) call6(SYS_munmap, (long)(address), (long)(pages) * PAGE, 0, 0, 0, 0)
#define REMAP(address, old, new, flags, target)                                  \
    call6(SYS_mremap, (long)(address), (long)(old) * PAGE, (long)(new) * PAGE, flags, (long)(target), 0)
#define GOOD(address) ((unsigned long)(address) < (unsigned long)-4095)

static void tell(const char *row, long blocks, long pages)
{
    if (blocks >= 0)
        victim_say("truth %s blocks=%ld bytes=%ld\n", row, blocks, pages * PAGE);
    else
        victim_say("truth %s bytes=%ld\n", row, pages * PAGE);
}

#define ROW(name, blocks, pages, body)                                           \
    OWN_FRAME static void row_##name(void)                                       \
    {                                                                            \
        body;                                                                    \
        tell("row_" #name, blocks, pages);                                       \
    }

ROW(map, 1, 10, MUST(GOOD(MAP(0, 10, BOTH, PRIVATE, -1))))
ROW(map_shared, 1, 6, MUST(GOOD(MAP(0, 6, BOTH, MAP_SHARED | MAP_ANONYMOUS, -1))))
ROW(map_empty, 0, 0, MUST(MAP(0, 0, BOTH, PRIVATE, -1) == -EINVAL))
ROW(map_huge, 0, 0, MUST(MAP(0, 1l << 45, BOTH, PRIVATE, -1) == -ENOMEM))
ROW(map_bad_file, 0, 0, MUST(MAP(0, 3, PROT_READ, MAP_PRIVATE, 9999) == -EBADF))
ROW(unmap_whole, 0, 0, {
    long at = MAP(0, 7, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && UNMAP(at, 7) == 0);
})
ROW(unmap_start, 1, 6, {
    long at = MAP(0, 8, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && UNMAP(at, 2) == 0);
})
ROW(unmap_middle, -1, 13, {
    long at = MAP(0, 16, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && UNMAP(at + 4 * PAGE, 3) == 0);
})
ROW(unmap_end, 1, 4, {
    long at = MAP(0, 9, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && UNMAP(at + 4 * PAGE, 5) == 0);
})
/* One call takes the end of one range, a hole, and the start of the next. */
ROW(unmap_across, -1, 3 + 4, {
    long at = MAP(0, 20, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && UNMAP(at + 8 * PAGE, 2) == 0 && UNMAP(at + 18 * PAGE, 2) == 0);
    MUST(UNMAP(at + 3 * PAGE, 11) == 0);
})
ROW(unmap_twice, 0, 0, {
    long at = MAP(0, 5, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && UNMAP(at, 5) == 0 && UNMAP(at, 5) == 0);
})
ROW(unmap_fails, 1, 5, {
    long at = MAP(0, 5, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && UNMAP(at + 1, 5) == -EINVAL);
})
/* What lies over a part of a range replaces it: 11 pages in all, whoever owns them. */
ROW(fixed_over, -1, 11, {
    long at = MAP(0, 11, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && MAP(at + 2 * PAGE, 4, BOTH, PRIVATE | MAP_FIXED, -1) == at + 2 * PAGE);
})
ROW(fixed_refused, 1, 12, {
    long at = MAP(0, 12, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && MAP(at, 2, BOTH, PRIVATE | MAP_FIXED_NOREPLACE, -1) == -EEXIST);
})
ROW(remap_grows, 1, 40, {
    long at = MAP(0, 4, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && GOOD(at = REMAP(at, 4, 40, MREMAP_MAYMOVE, 0)));
})
ROW(remap_shrinks, 1, 3, {
    long at = MAP(0, 14, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && REMAP(at, 14, 3, 0, 0) == at);
})
ROW(remap_moves, 1, 5, {
    long at = MAP(0, 5, BOTH, PRIVATE, -1);
    long target = MAP(0, 5, PROT_NONE, PRIVATE, -1);
    MUST(GOOD(at) && GOOD(target));
    /* The target's own mapping goes away. */
    MUST(REMAP(at, 5, 5, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target);
})
ROW(remap_part, -1, 10, {
    long at = MAP(0, 10, BOTH, PRIVATE, -1);
    long target = MAP(0, 4, PROT_NONE, PRIVATE, -1);
    MUST(GOOD(at) && GOOD(target) && UNMAP(target, 4) == 0);
    MUST(REMAP(at + 3 * PAGE, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target);
})
ROW(remap_fails, 1, 6, {
    long at = MAP(0, 6, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && REMAP(at, 6, 1l << 33, 0, 0) == -ENOMEM);
})
ROW(remap_nowhere, 0, 0, {
    long at = MAP(0, 6, BOTH, PRIVATE, -1);
    MUST(GOOD(at) && UNMAP(at, 6) == 0 && REMAP(at, 6, 12, MREMAP_MAYMOVE, 0) == -EFAULT);
})
/* brk: 16 pages, 8 more in another row, then 12 back: the last 8 and 4 of the first 16. */
static long heap_end(void)
{
    return call6(SYS_brk, 0, 0, 0, 0, 0, 0);
}
#define BRK(to) call6(SYS_brk, to, 0, 0, 0, 0, 0)
OWN_FRAME static void row_brk(void)
{
    long end = heap_end();
    MUST(BRK(end + 16 * PAGE) == end + 16 * PAGE);
}
OWN_FRAME static void row_brk_more(void)
{
    long end = heap_end();
    MUST(BRK(end + 8 * PAGE) == end + 8 * PAGE);
}
OWN_FRAME static void row_brk_back(void)
{
    long end = heap_end();
    MUST(BRK(end - 12 * PAGE) == end - 12 * PAGE);
}
OWN_FRAME static void row_brk_fails(void)
{
    long end = heap_end();
    MUST(BRK(end + (1l << 46)) == end);
}

OWN_FRAME static void rows(void)
{
    row_map();
    row_map_shared();
    row_map_empty();
    row_map_huge();
    row_map_bad_file();
    row_unmap_whole();
    row_unmap_start();
    row_unmap_middle();
    row_unmap_end();
    row_unmap_across();
    row_unmap_twice();
    row_unmap_fails();
    row_fixed_over();
    row_fixed_refused();
    row_remap_grows();
    row_remap_shrinks();
    row_remap_moves();
    row_remap_part();
    row_remap_fails();
    row_remap_nowhere();
    row_brk();
    row_brk_more();
    row_brk_back();
    row_brk_fails();
    tell("row_brk", -1, 12);
    tell("row_brk_more", 0, 0);
    tell("row_brk_back", 0, 0);
    tell("row_brk_fails", 0, 0);
}

OWN_FRAME static void wrappers(void)
{
    char *one = mmap(NULL, 32 * PAGE, BOTH, PRIVATE, -1, 0);
    char *two = mmap(NULL, 24 * PAGE, BOTH, PRIVATE, -1, 0);
    MUST(one != MAP_FAILED && two != MAP_FAILED);
    MUST(munmap(one + 8 * PAGE, 8 * PAGE) == 0);
    two = mremap(two, 24 * PAGE, 48 * PAGE, MREMAP_MAYMOVE);
    MUST(two != MAP_FAILED);
    MUST(mmap(NULL, 0, BOTH, PRIVATE, -1, 0) == MAP_FAILED);
    MUST(sbrk(4 * PAGE) != (void *)-1 && sbrk(-1 * PAGE) != (void *)-1);
    tell("-", -1, 24 + 48 + 3);
}

int main(void)
{
    char *early = mmap(NULL, 10 * PAGE, BOTH, PRIVATE, -1, 0);
    MUST(early != MAP_FAILED && sbrk(5 * PAGE) != (void *)-1);
    victim_ready();
    while (victim_next()) {
        if (victim_is("rows")) {
            rows();
        } else if (victim_is("wrappers")) {
            wrappers();
        } else if (victim_is("early")) {
            MUST(munmap(early, 3 * PAGE) == 0 && munmap(early + 3 * PAGE, 7 * PAGE) == 0);
            MUST(sbrk(-3 * PAGE) != (void *)-1);
            tell("-", 0, 0);
        } else if (victim_is("heap")) {
            /* Blocks whose memory malloc fetches by mmap and brk: blocks, and no ranges beside. */
            for (int i = 0; i < 10; i++)
                KEEP(malloc(1 << 20));
            for (int i = 0; i < 100; i++)
                KEEP(malloc(5000));
            victim_truth("-", 110, 10 * (1 << 20) + 100 * 5000, 110, 0);
        } else {
            return 2;
        }
        victim_done();
    }
    return 0;
}
