/* An object that is loaded after the attach. */
#include "victim.h"

OWN_FRAME static void plugin_allocate(long number, size_t size)
{
    for (long i = 0; i < number; i++)
        KEEP(malloc(size));
}

void plugin_entry(long number, size_t size);
void plugin_entry(long number, size_t size)
{
    plugin_allocate(number, size);
}
