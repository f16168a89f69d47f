/* Maps 257 pages first thing, gives 3 from the middle back, and ends. */
#define _GNU_SOURCE
#include <sys/mman.h>

int main(void)
{
    char *at = mmap(0, 257 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED || munmap(at + 10 * 4096, 3 * 4096) != 0;
}
