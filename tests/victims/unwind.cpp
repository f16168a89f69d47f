/* Stacks of C++ without frame pointers: exceptions, templates, lambdas, virtual calls, the library's sort. */
#include "victim.h"

#include "stacks.h"

#include <algorithm>
#include <functional>

OWN_FRAME static void take()
{
    unsigned long size = ++stacks_taken;
    KEEP(operator new(size));
    stacks_note(size);
    KEEP(size); /* no jump: this function stays on the stack */
}

static volatile int sink;
static void go(int depth);

struct Shape {
    virtual void visit(int depth) = 0;
    virtual ~Shape() = default;
};
struct Circle final : Shape {
    OWN_FRAME void visit(int depth) override
    {
        go(depth);
        sink = sink + 1;
    }
};
struct Square final : Shape {
    OWN_FRAME void visit(int depth) override
    {
        char room[200];
        KEEP(room);
        go(depth);
        KEEP(room);
    }
};
static Circle circle;
static Square square;

template <typename Number, int Extra> OWN_FRAME static Number generic(Number depth)
{
    Number room[Extra];
    KEEP(room);
    go((int)depth);
    KEEP(room);
    return depth;
}

OWN_FRAME static void by_lambda(int depth)
{
    int captured = depth;
    auto lambda = [&captured](int more) {
        go(captured + more);
        sink = sink + captured;
    };
    std::function<void(int)> function = std::ref(lambda);
    function(0);
}

struct Guard {
    ~Guard() { sink = sink + 1; }
};
struct Trouble {
    int depth;
};

OWN_FRAME static void throws(int left, int depth)
{
    Guard guard;
    if (left == 0)
        throw Trouble{depth};
    throws(left - 1, depth);
}

/* Where it is caught, the stack is as if nothing had been called. */
OWN_FRAME static void catches(int depth)
{
    try {
        throws(3, depth);
    } catch (const Trouble &trouble) {
        go(trouble.depth);
    }
    sink = sink + 1;
}

/* In a destructor, while an exception passes. */
struct Taker {
    int depth;
    OWN_FRAME ~Taker() { go(depth); }
};
OWN_FRAME static void passes(int depth)
{
    Taker taker{depth};
    throw Trouble{depth};
}
OWN_FRAME static void in_passing(int depth)
{
    try {
        passes(depth);
    } catch (const Trouble &) {
        sink = sink + 1;
    }
}

OWN_FRAME static void by_virtual_call(int depth)
{
    Shape *shape = depth & 1 ? static_cast<Shape *>(&circle) : &square;
    KEEP(&shape);
    shape->visit(depth);
    sink = sink + 1;
}

OWN_FRAME static void by_template(int depth)
{
    sink = sink + (int)(depth & 1 ? generic<long, 5>(depth) : generic<short, 90>((short)depth));
}

OWN_FRAME static void by_sort(int depth)
{
    int numbers[40];
    for (int i = 0; i < 40; i++)
        numbers[i] = (i * 17) % 40;
    bool first = true;
    std::sort(numbers, numbers + 40, [&](int a, int b) {
        if (first) {
            first = false;
            go(depth);
        }
        return a < b;
    });
    KEEP(numbers);
}

static void (*const ways[])(int) = {by_lambda, catches, by_virtual_call, by_template, by_sort, in_passing};

OWN_FRAME static void go(int depth)
{
    if (depth <= 1)
        take();
    else
        ways[stacks_random() % 6](depth - 1);
    sink = sink + 1;
}

int main()
{
    stacks_prepare();
    catches(1 - 1 + 1);
    victim_ready();
    while (victim_next()) {
        long count = victim_number(1);
        const char *path = strchr(victim_word(1), ' ');
        MUST(victim_is("stacks") && path && count > 0);
        stacks_open(path + 1);
        for (long i = 0; i < count; i++)
            go(1 + (int)(stacks_random() % 16));
        stacks_close();
        victim_say("truth - blocks=%ld\n", count);
        victim_done();
    }
    return 0;
}
