/* C++'s operators in a program that has its own, on an arena of its own: no malloc. Nothing is handed out twice. */
#ifndef OWN_OPERATORS_H
#define OWN_OPERATORS_H

#include <atomic>
#include <new>
#include <sys/mman.h>

namespace arena {

constexpr std::size_t ROOM = std::size_t{4} << 30;

OWN_FRAME void *take(std::size_t size, std::size_t alignment)
{
    static char *const memory = static_cast<char *>(
        mmap(nullptr, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    static std::atomic<std::size_t> used{0};
    if (size > ROOM / 4)
        return nullptr;
    std::size_t start = used.fetch_add(size + alignment);
    MUST(start + size + alignment <= ROOM);
    return memory + (start + alignment - 1) / alignment * alignment;
}

#ifdef DIRECT
__attribute__((always_inline)) inline
#else
OWN_FRAME
#endif
void *take_or_throw(std::size_t size, std::size_t alignment)
{
    void *block = take(size, alignment);
    if (!block)
        throw std::bad_alloc();
    return block;
}

} // namespace arena

OWN_FRAME void *operator new(std::size_t size)
{
    return arena::take_or_throw(size, 16);
}
OWN_FRAME void *operator new[](std::size_t size)
{
    return arena::take_or_throw(size, 16);
}
OWN_FRAME void *operator new(std::size_t size, std::align_val_t alignment)
{
    return arena::take_or_throw(size, std::size_t(alignment));
}
OWN_FRAME void *operator new[](std::size_t size, std::align_val_t alignment)
{
    return arena::take_or_throw(size, std::size_t(alignment));
}
OWN_FRAME void *operator new(std::size_t size, const std::nothrow_t &) noexcept
{
    return arena::take(size, 16);
}
OWN_FRAME void *operator new[](std::size_t size, const std::nothrow_t &) noexcept
{
    return arena::take(size, 16);
}
OWN_FRAME void *operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t &) noexcept
{
    return arena::take(size, std::size_t(alignment));
}
OWN_FRAME void *operator new[](std::size_t size, std::align_val_t alignment, const std::nothrow_t &) noexcept
{
    return arena::take(size, std::size_t(alignment));
}

#define DELETES(...)                                                             \
    OWN_FRAME void operator delete(void *block __VA_ARGS__) noexcept             \
    {                                                                            \
        KEEP(block);                                                             \
    }                                                                            \
    OWN_FRAME void operator delete[](void *block __VA_ARGS__) noexcept           \
    {                                                                            \
        KEEP(block);                                                             \
    }
#define AND ,
DELETES()
DELETES(AND std::size_t)
DELETES(AND std::align_val_t)
DELETES(AND std::size_t AND std::align_val_t)
DELETES(AND const std::nothrow_t &)
DELETES(AND std::align_val_t AND const std::nothrow_t &)

#endif
