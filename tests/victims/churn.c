/* A cache of 4,000 blocks that is churned at full speed by as many threads as the argument says.
 *
 * A slot's old block is freed before its new one is taken: there are never more than 4,000.
 * It churns from before `ready` until `stop`; `sweep` replaces every block once, so that all 4,000 are
 * known to whoever watches; `resume` churns on; `clear` gives all back.
 */
#define _GNU_SOURCE
#include "victim.h"
#include <pthread.h>
#include <stdint.h>

enum { SLOTS = 4000, MOST_THREADS = 8 };
static void *slots[SLOTS];
static size_t sizes[SLOTS];
static int threads;
static volatile int stopped;
static pthread_barrier_t parked;
static volatile uint64_t churned[MOST_THREADS * 8];

OWN_FRAME static void replace(long slot, size_t size)
{
    free(slots[slot]);
    slots[slot] = malloc(size);
    sizes[slot] = size;
}

static void *churn(void *argument)
{
    long me = (long)argument, share = SLOTS / threads;
    uint64_t state = 88172645463325252u + (uint64_t)me;
    for (;;) {
        while (!stopped) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            replace(me * share + (long)(state % (uint64_t)share), 16 + (size_t)(state >> 32) % 500);
            churned[me * 8]++;
        }
        pthread_barrier_wait(&parked);
        pthread_barrier_wait(&parked);
    }
    return NULL;
}

int main(int count, char **words)
{
    threads = count > 1 ? atoi(words[1]) : 1;
    MUST(threads >= 1 && threads <= MOST_THREADS && SLOTS % threads == 0);
    pthread_barrier_init(&parked, NULL, (unsigned)threads + 1);
    for (long i = 0; i < SLOTS; i++)
        replace(i, 64);
    for (long i = 0; i < threads; i++) {
        pthread_t thread;
        MUST(pthread_create(&thread, NULL, churn, (void *)i) == 0);
    }
    victim_ready();
    while (victim_next()) {
        if (victim_is("stop")) {
            stopped = 1;
            pthread_barrier_wait(&parked);
            uint64_t sum = 0;
            for (int i = 0; i < threads; i++)
                sum += churned[i * 8];
            victim_say("truth note churned=%llu\n", (unsigned long long)sum);
        } else if (victim_is("resume")) {
            stopped = 0;
            pthread_barrier_wait(&parked);
        } else if (victim_is("sweep")) {
            long bytes = 0;
            for (long i = 0; i < SLOTS; i++)
                replace(i, sizes[i]);
            for (long i = 0; i < SLOTS; i++)
                bytes += (long)sizes[i];
            victim_say("truth replace blocks=%d bytes=%ld\n", SLOTS, bytes);
        } else if (victim_is("clear")) {
            for (long i = 0; i < SLOTS; i++) {
                free(slots[i]);
                slots[i] = NULL;
            }
            victim_say("truth replace blocks=0 bytes=0\n");
        } else {
            return 2;
        }
        victim_done();
    }
    _exit(0);
}
