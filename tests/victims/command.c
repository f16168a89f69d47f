/* A command: prints its arguments, allocates, and exits with status 3. */
#include "victim.h"

void constructor_is_linked(void);

OWN_FRAME static void command_allocates(void)
{
    for (int i = 0; i < 20; i++)
        KEEP(malloc(50));
}

int main(int count, char **words)
{
    constructor_is_linked();
    command_allocates();
    for (int i = 1; i < count; i++)
        victim_say("[%s]", words[i]);
    victim_say("\n");
    return 3;
}
