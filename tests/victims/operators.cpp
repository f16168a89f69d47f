// operator new in each of its forms, and all that it can do besides returning a block: throw, and ask a new handler for
// help. For allocators whose operators don't come to malloc.
//
// `forms COUNT` keeps blocks of each form; `throws COUNT` asks for too much, and catches that; `handler COUNT` has a handler
// that gives a reserve back; `threads COUNT` does the first two in several threads at once.
#include "victim.h"
#ifdef OWN
#include "own_operators.h"
#endif

#include <new>
#include <pthread.h>
#include <sys/resource.h>

namespace {

volatile std::size_t huge = ~std::size_t{0} / 4;

struct Owner {
    long value = 1;
    ~Owner()
    {
        KEEP(&value);
    }
};
struct alignas(256) Wide {
    char payload[512];
};

void tell(const char *row, long blocks, long bytes)
{
    victim_say("truth *::%s(long) blocks=%ld bytes=%ld\n", row, blocks, bytes);
}

#define FORM(name, take, give)                                                   \
    OWN_FRAME void name(long count)                                              \
    {                                                                            \
        for (long i = 0; i < count; i++)                                         \
            KEEP(take);                                                          \
        void *block = take;                                                      \
        KEEP(block);                                                             \
        give;                                                                    \
    }

constexpr std::align_val_t LINE{128};

FORM(plain, ::operator new(72), ::operator delete(block))
FORM(array, ::operator new[](500), ::operator delete[](block))
FORM(nothrow, ::operator new(60, std::nothrow), ::operator delete(block, std::nothrow))
FORM(array_nothrow, ::operator new[](61, std::nothrow), ::operator delete[](block, std::nothrow))
FORM(aligned, ::operator new(640, LINE), ::operator delete(block, LINE))
FORM(array_aligned, ::operator new[](768, LINE), ::operator delete[](block, LINE))
FORM(aligned_nothrow, ::operator new(384, LINE, std::nothrow), ::operator delete(block, LINE, std::nothrow))
FORM(array_aligned_nothrow, ::operator new[](512, LINE, std::nothrow), ::operator delete[](block, LINE, std::nothrow))
// Beyond what a thread's cache holds.
FORM(large, ::operator new(300000), ::operator delete(block))
FORM(wide, new Wide, ::operator delete(block, std::align_val_t{alignof(Wide)}))
// Their number stands in front of them.
FORM(owners, new Owner[10], delete[] static_cast<Owner *>(block))

OWN_FRAME void forms(long count)
{
    plain(count), tell("plain", count, count * 72);
    array(count), tell("array", count, count * 500);
    nothrow(count), tell("nothrow", count, count * 60);
    array_nothrow(count), tell("array_nothrow", count, count * 61);
    aligned(count), tell("aligned", count, count * 640);
    array_aligned(count), tell("array_aligned", count, count * 768);
    aligned_nothrow(count), tell("aligned_nothrow", count, count * 384);
    array_aligned_nothrow(count), tell("array_aligned_nothrow", count, count * 512);
    large(count / 10), tell("large", count / 10, count / 10 * 300000);
    wide(count), tell("wide", count, count * 512);
    owners(count), tell("owners", count, count * 88);
}

// The frames that the exception passes give back what they own.
OWN_FRAME void deep(int depth)
{
    struct Owned {
        char *block = static_cast<char *>(::operator new(40));
        ~Owned()
        {
            ::operator delete(block);
        }
    } owned;
    KEEP(owned.block);
    if (depth == 0)
        KEEP(::operator new[](huge));
    else
        deep(depth - 1);
    KEEP(owned.block);
}

OWN_FRAME void throws(long count)
{
    long thrown = 0;
    for (long i = 0; i < count; i++) {
        try {
            // In turns, and then the same call over and over.
            if (i % 2 && i < count / 2)
                deep(i % 7);
            else
                KEEP(::operator new(huge));
        } catch (const std::bad_alloc &) {
            thrown++;
        }
        // From deeper down, where the word that the call had left may still stand.
        if (i % 3 == 0)
            plain(0);
    }
    MUST(thrown == count);
    KEEP(::operator new(33));
}

constexpr std::size_t RESERVE = 64 << 20;
void *reserve;

// What it keeps, and what it takes and gives back, is its own.
OWN_FRAME void give_reserve_back()
{
    if (!reserve)
        throw std::bad_alloc();
    void *passing = ::operator new(77);
    KEEP(passing);
    KEEP(malloc(88));
    ::operator delete(passing);
    ::operator delete(reserve);
    reserve = nullptr;
}

OWN_FRAME void helped()
{
    reserve = ::operator new(RESERVE);
    KEEP(reserve);
    void *block = ::operator new(RESERVE);
    KEEP(block);
    MUST(!reserve);
    ::operator delete(block);
}

OWN_FRAME void handler(long count)
{
    long size = 0;
    FILE *statm = fopen("/proc/self/statm", "r");
    MUST(statm && fscanf(statm, "%ld", &size) == 1);
    fclose(statm);
    rlimit before;
    MUST(getrlimit(RLIMIT_AS, &before) == 0);
    rlimit limit = before;
    limit.rlim_cur = size * 4096 + RESERVE + RESERVE / 2;
    MUST(setrlimit(RLIMIT_AS, &limit) == 0);
    std::set_new_handler(give_reserve_back);
    for (long i = 0; i < count; i++)
        helped();
    std::set_new_handler(nullptr);
    MUST(setrlimit(RLIMIT_AS, &before) == 0);
}

void *work(void *argument)
{
    long count = *static_cast<long *>(argument);
    for (long i = 0; i < 10; i++) {
        plain(count / 10);
        array_aligned(count / 10);
        throws(count / 10);
    }
    return nullptr;
}

} // namespace

int main()
{
    // The first exception of a process may load the unwinder's tables.
    try {
        throw 1;
    } catch (int) {
    }
    victim_ready();
    while (victim_next()) {
        long count = victim_number(1);
        if (victim_is("forms")) {
            forms(count);
        } else if (victim_is("throws")) {
            throws(count);
            tell("throws", 1, 33);
        } else if (victim_is("handler")) {
            handler(count);
            victim_say("truth *::give_reserve_back() blocks=%ld bytes=%ld\n", count, count * 88);
        } else if (victim_is("threads")) {
            pthread_t threads[4];
            for (pthread_t &thread : threads)
                MUST(pthread_create(&thread, nullptr, work, &count) == 0);
            for (pthread_t thread : threads)
                pthread_join(thread, nullptr);
            tell("plain", 4 * count, 4 * count * 72);
            tell("array_aligned", 4 * count, 4 * count * 768);
            tell("throws", 4 * 10, 4 * 10 * 33);
            // What the C library keeps of a thread that has ended is its own business.
            victim_say("truth - threads=4\n");
        } else {
            MUST(false);
        }
        victim_done();
    }
}
