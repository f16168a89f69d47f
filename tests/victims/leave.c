/* A process whose main thread ends before another one does.
 *
 * `leave`: the main thread ends; the other one says so, and stays.
 */
#include "victim.h"
#include <pthread.h>

static pthread_t first;

static void *stay(void *nothing)
{
    MUST(pthread_join(first, NULL) == 0);
    victim_done();
    for (;;)
        pause();
    return nothing;
}

int main(void)
{
    pthread_t other;
    victim_ready();
    MUST(victim_next() && victim_is("leave"));
    first = pthread_self();
    MUST(pthread_create(&other, NULL, stay, NULL) == 0);
    pthread_exit(NULL);
}
