/* A process that forks, spawns, and replaces itself.
 *
 * `hold N SIZE`: N blocks. `fork`: a child frees every one of them, takes 300 blocks of its own, and ends;
 * so does a child of that child. `spawn`: runs another program by posix_spawn, which shares this
 * process's memory until exec. `exec`: becomes itself again, which prints `ready` once more.
 * `again N SIZE`: N blocks at another site, after the exec.
 */
#define _GNU_SOURCE
#include "victim.h"
#include <spawn.h>
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
