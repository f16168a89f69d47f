/* 8 threads that hand blocks round in a ring: each frees every second block that it is handed.
 *
 * Every thread allocates as many blocks of 4 bytes as the argument says, 50,000 at most: 400,000 in all, of
 * which 200,000 are given back by a thread that did not allocate them. The threads exist before `ready`: starting one allocates.
 * `hand` does the work; `end` lets the threads end.
 */
#define _GNU_SOURCE
#include "victim.h"
#include <pthread.h>
#include <sched.h>

enum { THREADS = 8, MOST_EACH = 50000, ROOM = 64 };

struct ring {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    void *slots[ROOM];
    int used, next_in, next_out;
};
static struct ring rings[THREADS];
static void *kept[THREADS][MOST_EACH];
static long each;
static long kept_count[THREADS];
static pthread_barrier_t start, finish;

/* Whether there was room. */
static int put(struct ring *ring, void *block)
{
    pthread_mutex_lock(&ring->lock);
    int room = ring->used < ROOM;
    if (room) {
        ring->slots[ring->next_in++ % ROOM] = block;
        ring->used++;
        pthread_cond_broadcast(&ring->changed);
    }
    pthread_mutex_unlock(&ring->lock);
    return room;
}

/* Takes a block that is there; NULL when there is none yet and `wait` is 0. */
static void *take(struct ring *ring, int wait)
{
    void *block = NULL;
    pthread_mutex_lock(&ring->lock);
    while (wait && ring->used == 0)
        pthread_cond_wait(&ring->changed, &ring->lock);
    if (ring->used > 0) {
        block = ring->slots[ring->next_out++ % ROOM];
        ring->used--;
        pthread_cond_broadcast(&ring->changed);
    }
    pthread_mutex_unlock(&ring->lock);
    return block;
}

static void sort_out(long me, long number, void *block)
{
    if (number % 2)
        free(block);
    else
        kept[me][kept_count[me]++] = block;
}

/* Nobody waits for room without making some: eight full rings would wait for each other for ever. */
OWN_FRAME static void *produce(void *argument)
{
    long me = (long)argument, seen = 0;
    pthread_barrier_wait(&start);
    for (long i = 0; i < each; i++) {
        void *block = malloc(4);
        MUST(block);
        int room;
        do {
            room = put(&rings[(me + 1) % THREADS], block);
            for (void *handed; (handed = take(&rings[me], 0));)
                sort_out(me, seen++, handed);
            if (!room)
                sched_yield();
        } while (!room);
    }
    while (seen < each)
        sort_out(me, seen++, take(&rings[me], 1));
    pthread_barrier_wait(&finish);
    pthread_barrier_wait(&finish);
    return NULL;
}

int main(int count, char **words)
{
    each = count > 1 ? atol(words[1]) : MOST_EACH;
    MUST(each > 0 && each <= MOST_EACH && each % 2 == 0);
    pthread_t threads[THREADS];
    pthread_barrier_init(&start, NULL, THREADS + 1);
    pthread_barrier_init(&finish, NULL, THREADS + 1);
    for (long i = 0; i < THREADS; i++) {
        pthread_mutex_init(&rings[i].lock, NULL);
        pthread_cond_init(&rings[i].changed, NULL);
        MUST(pthread_create(&threads[i], NULL, produce, (void *)i) == 0);
    }
    victim_ready();
    while (victim_next()) {
        if (victim_is("hand")) {
            pthread_barrier_wait(&start);
            pthread_barrier_wait(&finish);
        } else if (victim_is("end")) {
            pthread_barrier_wait(&finish);
            for (int i = 0; i < THREADS; i++)
                pthread_join(threads[i], NULL);
        } else {
            return 2;
        }
        long blocks = 0;
        for (int i = 0; i < THREADS; i++)
            blocks += kept_count[i];
        victim_truth("produce", blocks, 4 * blocks, THREADS * each, THREADS * each - blocks);
        victim_done();
    }
    /* `quit` may come before `end`: leave without waiting for anybody. */
    _exit(0);
}
