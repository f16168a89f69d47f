/* Loads an object that allocates: `load PATH`, `call N SIZE`, `unload`. */
#include "victim.h"
#include <dlfcn.h>

static void *plugin;

OWN_FRAME static void call(void (*function)(long, size_t), long number, size_t size)
{
    function(number, size);
    victim_truth("plugin_allocate", number, number * (long)size, number, 0);
}

int main(void)
{
    victim_ready();
    while (victim_next()) {
        if (victim_is("load")) {
            plugin = dlopen(victim_word(1), RTLD_NOW);
            MUST(plugin);
        } else if (victim_is("call")) {
            void *symbol = dlsym(plugin, "plugin_entry");
            MUST(symbol);
            call((void (*)(long, size_t))symbol, victim_number(1), (size_t)victim_number(2));
        } else if (victim_is("unload")) {
            MUST(dlclose(plugin) == 0);
        } else {
            return 2;
        }
        victim_done();
    }
    return 0;
}
