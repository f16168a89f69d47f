/* Records its return addresses, and prints them with the process's own mappings. */
#include <stdio.h>

static void *recorded[16];
static int count;

__attribute__((noinline)) void leaf(void) { recorded[count++] = __builtin_return_address(0); }

void report(void) {
    char line[4096];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        fputs(line, stdout);
    for (int index = 0; index < count; index++)
        printf("return %p\n", recorded[index]);
}
