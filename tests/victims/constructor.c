/* A shared library that allocates before main. */
#include "victim.h"

OWN_FRAME static void library_constructor(void)
{
    for (int i = 0; i < 3; i++)
        KEEP(malloc(111));
}

__attribute__((constructor)) static void construct(void)
{
    library_constructor();
}

void constructor_is_linked(void);
void constructor_is_linked(void)
{
}
