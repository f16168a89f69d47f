// Objects of C++ that are kept, beside blocks of malloc. Linked to an allocator that has operators of its own.
//
// `objects COUNT` takes objects, `plain COUNT` takes blocks of malloc.
#include "victim.h"

namespace {

struct Object {
    char payload[104];
};

OWN_FRAME void keep_objects(long count)
{
    for (long i = 0; i < count; i++)
        KEEP(new Object);
    // One that is given back.
    Object *object = new Object;
    KEEP(object);
    delete object;
}

OWN_FRAME void keep_plain(long count)
{
    for (long i = 0; i < count; i++)
        KEEP(malloc(60));
}

} // namespace

int main()
{
    victim_ready();
    while (victim_next()) {
        long count = victim_number(1);
        if (victim_is("objects")) {
            keep_objects(count);
            victim_say("truth *::keep_objects(long) blocks=%ld bytes=%ld\n", count, count * 104);
        } else if (victim_is("plain")) {
            keep_plain(count);
            victim_say("truth *::keep_plain(long) blocks=%ld bytes=%ld\n", count, count * 60);
        } else {
            MUST(false);
        }
        victim_done();
    }
}
