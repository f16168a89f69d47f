// C++: operator new in its forms, containers, exceptions, and names that have to be demangled.
//
// `rows` makes each call. A row's blocks are taken one call deeper than the row itself: in a C++ runtime
// without frame pointers, operator new's own caller is only found with unwinding tables.
// Rows in namespace `names` call malloc themselves, so that the very first frame is known.
#include "victim.h"

#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Compared by site: blocks and bytes that are still there.
void tell(const char *row, long blocks, long bytes)
{
    victim_say("truth %s blocks=%ld bytes=%ld\n", row, blocks, bytes);
}

#define ROW(name, blocks, bytes, ...)                                            \
    OWN_FRAME void inner_##name()                                                \
    {                                                                            \
        __VA_ARGS__;                                                             \
    }                                                                            \
    OWN_FRAME void row_##name()                                                  \
    {                                                                            \
        inner_##name();                                                          \
        tell("*::row_" #name "()", blocks, bytes);                                  \
    }

struct Node {
    char payload[72];
};
struct alignas(128) Wide {
    char payload[256];
};
struct Owner {
    // A destructor makes new[] store the number of elements in front of them: 8 bytes.
    long value = 1;
    ~Owner()
    {
        KEEP(&value);
    }
};

volatile std::size_t huge = ~std::size_t{0} / 4;

ROW(new_one, 1, 72, KEEP(new Node))
ROW(new_array, 1, 500, KEEP(new char[500]))
ROW(new_array_of_owners, 1, 8 + 10 * 8, KEEP(new Owner[10]))
/* In total only: libstdc++'s aligned operator new uses the frame pointer for its own ends, so a walk along
 * frame pointers ends in it. */
OWN_FRAME static void row_new_aligned()
{
    KEEP(new Wide);
    tell("-aligned", 1, 256);
}
ROW(new_nothrow, 1, 60, KEEP(new (std::nothrow) char[60]))
ROW(new_nothrow_fails, 0, 0, MUST(!new (std::nothrow) char[huge]))
ROW(new_throws, 0, 0, {
    bool thrown = false;
    try {
        KEEP(new char[huge]);
    } catch (const std::bad_alloc &) {
        thrown = true;
    }
    MUST(thrown);
})
ROW(deleted, 0, 0, {
    Node *node = new Node;
    KEEP(node);
    delete node;
    Owner *owners = new Owner[3];
    KEEP(owners);
    delete[] owners;
})
ROW(vector, 1, 1024 * sizeof(int), {
    auto *numbers = new (std::nothrow) std::vector<int>;
    KEEP(numbers);
    for (int i = 0; i < 1000; i++)
        numbers->push_back(i);
    MUST(numbers->capacity() == 1024);
    // Keeps the elements and gives back the vector that holds them.
    ::operator delete(numbers, sizeof *numbers);
})
ROW(shared, 5, 5 * 32, {
    // One block for the count (16 bytes and the value's 16), never let go.
    struct Pair {
        long first, second;
    };
    for (int i = 0; i < 5; i++) {
        auto *pointer = static_cast<std::shared_ptr<Pair> *>(alloca(sizeof(std::shared_ptr<Pair>)));
        new (pointer) std::shared_ptr<Pair>(std::make_shared<Pair>());
        KEEP(pointer);
    }
})

// Exceptions that pass frames which hold blocks: what is owned is given back, and what is not stays.
OWN_FRAME void throws_at(int depth)
{
    auto owned = std::make_unique<Node>();
    KEEP(owned.get());
    if (depth == 0) {
        KEEP(new char[90]);
        throw std::runtime_error("a text that is too long for a string without a block of its own");
    }
    throws_at(depth - 1);
}
ROW(exception, 7, 7 * 90, {
    for (int i = 0; i < 7; i++) {
        try {
            throws_at(10);
            MUST(false);
        } catch (const std::runtime_error &) {
        }
    }
})

} // namespace

namespace names {

struct Shape {
    virtual void make(int count) = 0;
};
struct Circle : Shape {
    OWN_FRAME void make(int count) override
    {
        for (int i = 0; i < count; i++)
            KEEP(malloc(33));
    }
};

template <typename Element, int Count> OWN_FRAME void make_many()
{
    for (int i = 0; i < Count; i++)
        KEEP(malloc(sizeof(Element)));
}

namespace {
OWN_FRAME void hidden()
{
    KEEP(malloc(44));
}
} // namespace

OWN_FRAME void operator_of_one(Shape &shape)
{
    shape.make(3);
    tell("names::Circle::make(int)", 3, 99);
}

} // namespace names

static bool can_throw = true;

OWN_FRAME static void rows()
{
    row_new_one();
    row_new_array();
    row_new_array_of_owners();
    row_new_aligned();
    row_new_nothrow();
    row_new_nothrow_fails();
    // valgrind cannot throw, and ends the program instead.
    if (can_throw)
        row_new_throws();
    row_deleted();
    row_vector();
    row_shared();
    row_exception();

    names::Circle circle;
    names::operator_of_one(circle);
    names::make_many<double, 6>();
    tell("*names::make_many<double,*6>()", 6, 48);
    names::make_many<Node, 2>();
    tell("*names::make_many<*Node,*2>()", 2, 144);
    names::hidden();
    tell("names::*::hidden()", 1, 44);
}

// Through functions of the C++ library that were compiled without frame pointers: exact in total.
OWN_FRAME static void library()
{
    // Storage that outlives the strings: their own blocks are what is left.
    static std::string *strings = static_cast<std::string *>(malloc(10 * sizeof(std::string)));
    for (int i = 0; i < 10; i++)
        new (&strings[i]) std::string(200 + i, 'x');
    long bytes = 10 * sizeof(std::string);
    for (int i = 0; i < 10; i++)
        bytes += 200 + i + 1;
    tell("-", 11, bytes);
}

int main(int count, char **)
{
    can_throw = count == 1;
    // The first exception of a process may load the unwinder's tables.
    try {
        throw 1;
    } catch (int) {
    }
    victim_ready();
    while (victim_next()) {
        if (victim_is("rows"))
            rows();
        else if (victim_is("library"))
            library();
        else
            return 2;
        victim_done();
    }
    return 0;
}
