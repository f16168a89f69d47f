/* A process that forks, spawns, and replaces itself.
 *
 * `hold N SIZE`: N blocks. `fork`: a child frees every one of them, takes 300 blocks of its own, and ends;
 * so does a child of that child. `spawn`: runs another program by posix_spawn, which shares this
 * process's memory until exec. `exec`: becomes itself again, which prints `ready` once more.
 * `again N SIZE`: N blocks at another site, after the exec. `linger`: a child that opens a library, and then calls every
 * function of the allocator again and again, as long as this process lives.
 */
#define _GNU_SOURCE
#include "victim.h"
#include <dlfcn.h>
#include <malloc.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static void *blocks[100000];
static long count;
extern char **environ;

OWN_FRAME static void hold(long number, size_t size)
{
    for (long i = 0; i < number; i++)
        MUST((blocks[count++] = malloc(size)));
}

OWN_FRAME static void again(long number, size_t size)
{
    hold(number, size);
}

OWN_FRAME static void child_work(void)
{
    for (long i = 0; i < count; i++)
        free(blocks[i]);
    for (int i = 0; i < 300; i++)
        KEEP(malloc(1000));
}

static void await(pid_t child)
{
    int status;
    MUST(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

OWN_FRAME static void fork_and_wait(void)
{
    pid_t child = fork();
    if (child == 0) {
        child_work();
        pid_t grandchild = fork();
        if (grandchild == 0) {
            for (int i = 0; i < 300; i++)
                KEEP(malloc(2000));
            _exit(0);
        }
        await(grandchild);
        _exit(0);
    }
    await(child);
}

OWN_FRAME static void spawn_and_wait(void)
{
    pid_t child;
    char *words[] = {"true", NULL};
    MUST(posix_spawn(&child, "/bin/true", NULL, NULL, words, environ) == 0);
    await(child);
}

static void linger(void)
{
    int ends[2];
    char once;
    MUST(pipe(ends) == 0);
    pid_t child = fork();
    MUST(child >= 0);
    if (child > 0) {
        MUST(read(ends[0], &once, 1) == 1 && close(ends[0]) == 0 && close(ends[1]) == 0);
        victim_say("truth note child=%d\n", (int)child);
        return;
    }
    MUST(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    void *library = dlopen("libm.so.6", RTLD_NOW);
    MUST(library && dlclose(library) == 0);
    for (int round = 0;; round++) {
        void *all[9];
        MUST(posix_memalign(&all[0], 64, 10) == 0);
        all[1] = malloc(10), all[2] = calloc(1, 10), all[3] = realloc(NULL, 10), all[4] = memalign(64, 10);
        all[5] = aligned_alloc(64, 64), all[6] = valloc(10), all[7] = pvalloc(10), all[8] = reallocarray(NULL, 1, 10);
        for (int i = 0; i < 9; i++)
            free(all[i]);
        MUST(round > 0 || write(ends[1], "", 1) == 1);
        usleep(1000);
    }
}

int main(void)
{
    victim_ready();
    while (victim_next()) {
        if (victim_is("hold")) {
            hold(victim_number(1), (size_t)victim_number(2));
            victim_truth("hold", count, count * victim_number(2), count, 0);
        } else if (victim_is("again")) {
            again(victim_number(1), (size_t)victim_number(2));
            victim_truth("again", count, count * victim_number(2), count, 0);
        } else if (victim_is("fork")) {
            fork_and_wait();
        } else if (victim_is("spawn")) {
            spawn_and_wait();
        } else if (victim_is("linger")) {
            linger();
        } else if (victim_is("exec")) {
            char *words[] = {"life", NULL};
            execv("/proc/self/exe", words);
            return 3;
        } else {
            return 2;
        }
        victim_done();
    }
    return 0;
}
