/* Allocators that come in no package, as far as their names and arguments go: `INTERNAL`, the names of the newer tcmalloc;
 * `PREFIXED`, jemalloc's with `je_`; `C23`, C's with what C23 has added. Nothing is handed out twice. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Each has its size in front. */
static void *take(size_t alignment, size_t size)
{
    static char memory[1 << 20] __attribute__((aligned(4096)));
    static size_t used;
    size_t start = (used + sizeof(size_t) + alignment - 1) & ~(alignment - 1);
    if (size > sizeof memory || start + size > sizeof memory)
        return NULL;
    used = start + size;
    memcpy(memory + start - sizeof(size_t), &size, sizeof(size_t));
    return memory + start;
}

static void *again(void *old, size_t size)
{
    void *block = take(16, size);
    if (block && old) {
        size_t had;
        memcpy(&had, (char *)old - sizeof had, sizeof had);
        memcpy(block, old, had < size ? had : size);
    }
    return block;
}

static int out(void **result, size_t alignment, size_t size)
{
    *result = take(alignment, size);
    return *result ? 0 : 12;
}

/* One compiler cannot merge them all into one: each has a number. */
#define GIVES_BACK(name, ...)                                                    \
    void name(__VA_ARGS__)                                                       \
    {                                                                            \
        __asm__ volatile("" : : "r"(block), "i"(__LINE__) : "memory");           \
    }

#define MALLOC(name)                                                             \
    void *name(size_t size)                                                      \
    {                                                                            \
        return take(16, size);                                                   \
    }
#define CALLOC(name)                                                             \
    void *name(size_t count, size_t size)                                        \
    {                                                                            \
        return take(16, count * size);                                           \
    }
#define REALLOC(name)                                                            \
    void *name(void *old, size_t size)                                           \
    {                                                                            \
        return again(old, size);                                                 \
    }
#define MEMALIGN(name)                                                           \
    void *name(size_t alignment, size_t size)                                    \
    {                                                                            \
        return take(alignment, size);                                            \
    }
#define POSIX_MEMALIGN(name)                                                     \
    int name(void **result, size_t alignment, size_t size)                       \
    {                                                                            \
        return out(result, alignment, size);                                     \
    }
#define NEW_NOTHROW(name)                                                        \
    void *name(size_t size, const void *nothrow)                                 \
    {                                                                            \
        return nothrow ? take(16, size) : NULL;                                  \
    }

#ifdef INTERNAL
MALLOC(TCMallocInternalMalloc)
CALLOC(TCMallocInternalCalloc)
REALLOC(TCMallocInternalRealloc)
MEMALIGN(TCMallocInternalMemalign)
MEMALIGN(TCMallocInternalAlignedAlloc)
POSIX_MEMALIGN(TCMallocInternalPosixMemalign)
MALLOC(TCMallocInternalValloc)
MALLOC(TCMallocInternalPvalloc)
MALLOC(TCMallocInternalNew)
MALLOC(TCMallocInternalNewArray)
NEW_NOTHROW(TCMallocInternalNewNothrow)
NEW_NOTHROW(TCMallocInternalNewArrayNothrow)
GIVES_BACK(TCMallocInternalFree, void *block)
GIVES_BACK(TCMallocInternalFreeSized, void *block, size_t size)
GIVES_BACK(TCMallocInternalFreeAlignedSized, void *block, size_t alignment, size_t size)
GIVES_BACK(TCMallocInternalCfree, void *block)
GIVES_BACK(TCMallocInternalSdallocx, void *block, size_t size, int flags)
GIVES_BACK(TCMallocInternalDelete, void *block)
GIVES_BACK(TCMallocInternalDeleteArray, void *block)
GIVES_BACK(TCMallocInternalDeleteSized, void *block, size_t size)
GIVES_BACK(TCMallocInternalDeleteArraySized, void *block, size_t size)
GIVES_BACK(TCMallocInternalDeleteAligned, void *block, size_t alignment)
GIVES_BACK(TCMallocInternalDeleteSizedAligned, void *block, size_t size, size_t alignment)

void *TCMallocInternalReallocArray(void *old, size_t count, size_t size)
{
    return again(old, count * size);
}
void *TCMallocInternalNewAligned(size_t size, size_t alignment)
{
    return take(alignment, size);
}
void *TCMallocInternalNewAlignedNothrow(size_t size, size_t alignment, const void *nothrow)
{
    return nothrow ? take(alignment, size) : NULL;
}
#endif

#ifdef PREFIXED
MALLOC(je_malloc)
CALLOC(je_calloc)
REALLOC(je_realloc)
MEMALIGN(je_aligned_alloc)
MEMALIGN(je_memalign)
POSIX_MEMALIGN(je_posix_memalign)
MALLOC(je_valloc)
MALLOC(je_pvalloc)
GIVES_BACK(je_free, void *block)
GIVES_BACK(je_free_sized, void *block, size_t size)
GIVES_BACK(je_free_aligned_sized, void *block, size_t alignment, size_t size)
GIVES_BACK(je_dallocx, void *block, int flags)
GIVES_BACK(je_sdallocx, void *block, size_t size, int flags)

void *je_mallocx(size_t size, int flags)
{
    return flags ? NULL : take(16, size);
}
void *je_rallocx(void *old, size_t size, int flags)
{
    return flags ? NULL : again(old, size);
}
/* Smaller is what it can do. */
size_t je_xallocx(void *block, size_t size, size_t extra, int flags)
{
    size_t had;
    memcpy(&had, (char *)block - sizeof had, sizeof had);
    (void)extra, (void)flags;
    return size < had ? size : had;
}
#endif

#ifdef C23
MALLOC(malloc)
CALLOC(calloc)
REALLOC(realloc)
MEMALIGN(aligned_alloc)
GIVES_BACK(free, void *block)
GIVES_BACK(free_sized, void *block, size_t size)
GIVES_BACK(free_aligned_sized, void *block, size_t alignment, size_t size)
#endif
