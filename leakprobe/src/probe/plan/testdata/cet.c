/* Small allocator functions with an `endbr64` first, as distributions that build for control-flow enforcement
 * have them: gcc -O2 -fcf-protection=full -shared -fPIC -o libcet.so cet.c */
#include <stddef.h>

extern void *arena_get(size_t alignment, size_t size);
extern void arena_put(void *block);
extern int ready;
extern void prepare(void);
extern long used;

void *malloc(size_t size)
{
    if (size > 4096)
        return arena_get(16, size);
    if (!ready)
        prepare();
    return arena_get(8, size);
}

void *calloc(size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        return 0;
    return arena_get(16, bytes);
}

void *memalign(size_t alignment, size_t size)
{
    return arena_get(alignment, size);
}

void *valloc(size_t size)
{
    for (;;) {
        void *block = arena_get(4096, size);
        if (block)
            return block;
        prepare();
    }
}

void free(void *block)
{
    if (!block)
        return;
    used -= *(long *)block;
    if (used < 0)
        prepare();
    arena_put(block);
}
