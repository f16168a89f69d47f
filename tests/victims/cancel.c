/* Threads that are cancelled in the middle of allocating.
 *
 * `cancel N`: N times, a thread that only takes and gives back one block of 24 bytes is cancelled
 *   wherever it stands. That is safe with glibc as long as every call is served by the thread's own cache:
 *   no lock is held there. What such a thread leaves is 0 or 1 block at the site `work`.
 * `after N SIZE`: N blocks at a site of their own.
 */
#define _GNU_SOURCE
#include "victim.h"
#include <pthread.h>
#include <sched.h>

static volatile long rounds_done;

OWN_FRAME static void *work(void *unused)
{
    /* The first block is carved out of an arena, under a lock; it stays in the thread's cache. */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    void *first = malloc(24);
    KEEP(first);
    free(first);
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
    for (;;) {
        void *block = malloc(24);
        KEEP(block);
        free(block);
        rounds_done++;
    }
    return unused;
}

OWN_FRAME static void cancel(long number)
{
    for (long i = 0; i < number; i++) {
        pthread_t thread;
        void *result;
        long before = rounds_done;
        MUST(pthread_create(&thread, NULL, work, NULL) == 0);
        while (rounds_done < before + 50 + 7 * i)
            sched_yield();
        MUST(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0);
        MUST(result == PTHREAD_CANCELED);
    }
}

OWN_FRAME static void after(long number, size_t size)
{
    for (long i = 0; i < number; i++)
        KEEP(malloc(size));
    victim_truth("after", number, number * (long)size, number, 0);
}

int main(void)
{
    /* The first cancellation loads the unwinder, and the first thread its stack: both allocate. */
    cancel(1);
    victim_ready();
    while (victim_next()) {
        if (victim_is("cancel"))
            cancel(victim_number(1));
        else if (victim_is("after"))
            after(victim_number(1), (size_t)victim_number(2));
        else
            return 2;
        victim_done();
    }
    return 0;
}
