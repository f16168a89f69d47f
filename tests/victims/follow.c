/* A tree of processes: each takes and gives back to order, and makes others.
 *
 * `leak N SIZE`: N blocks. `free N`: gives the oldest N blocks back, which a child has copies of from before its fork.
 * `fork`, `thread`: makes a child, from the main thread or another one, which waits for commands too; children are
 * numbered from 0. `at I COMMAND`: has child I do it. `end I`: child I ends. `kill I`: it is killed. `exec PROGRAM`:
 * becomes another victim, or itself; `replace PROGRAM`: the same in another thread. `bomb N A F`: N children, one after
 * the other, each of which takes A blocks at `bomb_leak`, gives F of its parent's back, and ends. `orphan N SIZE`: a child
 * that leaks N blocks, and N more three seconds later, and ends. `grow PAGES`: its heap, by `grow`. `spawn PROGRAM`: runs
 * a program by vfork until it ends. `again I`: `fork`, until the child has the number that child I had, which has ended.
 * `daemon N SIZE`: by a child that ends at once, a process that leaks N blocks when `start DAEMONS` says so, and ends when
 * this one has. `hurry N SIZE`: one that leaks them from its first moment on, 2 ms apart, all of them and this one on one
 * processor, which its maker leaves to it before it ends; `leaked DAEMONS` waits for them.
 * `descend DEPTH N SIZE PROGRAM`: a child that executes the program, which makes a child at once, and that one the next, DEPTH
 * times; each leaks N blocks when `start` says so. With arguments N SIZE: leaks N blocks, and ends. With one argument, it
 * has had a thread when it is ready.
 */
#define _GNU_SOURCE
#include "victim.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

enum { MOST = 100000, CHILDREN = 16 };

struct child {
    /* 0 when it has ended. */
    pid_t pid;
    pid_t number;
    int to, from;
};

static void *blocks[MOST];
static long count, oldest, own;
static struct child children[CHILDREN];
static int made;

OWN_FRAME static void leak(long number, size_t size)
{
    for (long i = 0; i < number; i++) {
        MUST(count < MOST && (blocks[count++] = malloc(size)));
        own++;
    }
}

OWN_FRAME static void grow(long pages)
{
    MUST(sbrk(pages * 4096) != (void *)-1);
}

OWN_FRAME static void give_back(long number)
{
    for (long i = 0; i < number; i++) {
        MUST(oldest < count);
        free(blocks[oldest++]);
    }
}

OWN_FRAME static void bomb_leak(long number)
{
    for (long i = 0; i < number; i++)
        KEEP(malloc(10));
}

static void bomb(long number, long takes, long gives)
{
    int status;
    for (long i = 0; i < number; i++) {
        pid_t child = fork();
        if (child == 0) {
            bomb_leak(takes);
            give_back(gives);
            _exit(0);
        }
        MUST(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    }
}

/* Its child outlives it. */
static void orphan(long number, size_t size)
{
    pid_t child = fork();
    MUST(child >= 0);
    if (child > 0) {
        victim_say("truth note child=%d\n", (int)child);
        return;
    }
    leak(number, size);
    sleep(3);
    leak(number, size);
    _exit(0);
}

static void spawn(const char *program)
{
    int status;
    pid_t child = vfork();
    if (child == 0) {
        execl(program, program, "60", "20", NULL);
        _exit(127);
    }
    MUST(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static int hold[2], start[2], leaked[2];

static void make_pipes(void)
{
    MUST(hold[1] || (pipe(hold) == 0 && pipe(start) == 0 && pipe(leaked) == 0));
}

static void await_leaks(long number)
{
    char byte;
    for (long i = 0; i < number; i++)
        MUST(read(leaked[0], &byte, 1) == 1);
}

static void start_daemons(long number)
{
    char byte = 0;
    for (long i = 0; i < number; i++)
        MUST(write(start[1], &byte, 1) == 1);
    await_leaks(number);
}

static void stay_here(void)
{
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    MUST(sched_setaffinity(0, sizeof here, &here) == 0);
}

static void leak_slowly(long number, size_t size)
{
    for (long i = 0; i < number; i++) {
        leak(1, size);
        usleep(2000);
    }
}

static void daemonize(long number, size_t size, int in_a_hurry)
{
    int told[2], status;
    char byte = 0;
    make_pipes();
    MUST(pipe(told) == 0);
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        setsid();
        if (fork() != 0) {
            if (in_a_hurry)
                sched_yield();
            _exit(0);
        }
        victim_say("truth note child=%d\n", (int)getpid());
        close(hold[1]);
        MUST(write(told[1], &byte, 1) == 1);
        if (in_a_hurry)
            leak_slowly(number, size);
        else {
            MUST(read(start[0], &byte, 1) == 1);
            leak(number, size);
        }
        MUST(write(leaked[1], &byte, 1) == 1 && read(hold[0], &byte, 1) == 0);
        _exit(0);
    }
    MUST(waitpid(child, &status, 0) == child && status == 0 && read(told[0], &byte, 1) == 1);
    MUST(close(told[0]) == 0 && close(told[1]) == 0);
}

enum { DESCENDANT = 7 };

static void descend(long depth, long number, long size, const char *program)
{
    char words[6][24];
    long values[6];
    make_pipes();
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        setsid();
        close(hold[1]);
        memcpy(values, (long[]){number, size, depth, start[0], leaked[1], hold[0]}, sizeof values);
        for (int i = 0; i < 6; i++)
            snprintf(words[i], sizeof words[i], "%ld", values[i]);
        execl(program, program, words[0], words[1], words[2], words[3], words[4], words[5], NULL);
        MUST(0);
    }
    await_leaks(depth + 1);
}

static void be_descendants(char **words)
{
    char byte = 0;
    int from = atoi(words[4]), to = atoi(words[5]), until = atoi(words[6]);
    for (long i = 0; i < atol(words[3]); i++) {
        pid_t child = fork();
        MUST(child >= 0);
        if (child > 0)
            break;
    }
    MUST(write(to, &byte, 1) == 1 && read(from, &byte, 1) == 1);
    leak(atol(words[1]), (size_t)atol(words[2]));
    MUST(write(to, &byte, 1) == 1 && read(until, &byte, 1) == 0);
}

/* A child of this number, or of any; others that begin at the same time can take it. */
static pid_t fork_as(pid_t wanted)
{
    char text[16];
    int status, length = snprintf(text, sizeof text, "%d", (int)wanted - 1);
    for (int i = 0; i < 500; i++) {
        if (wanted != 0) {
            int last = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
            MUST(last >= 0 && write(last, text, (size_t)length) == length && close(last) == 0);
        }
        pid_t child = fork();
        MUST(child >= 0);
        if (wanted == 0 || child == wanted || (child == 0 && getpid() == wanted))
            return child;
        if (child == 0)
            _exit(0);
        MUST(waitpid(child, &status, 0) == child);
    }
    MUST(0);
    return -1;
}

/* In the child it returns as in the parent. */
static void make(pid_t wanted)
{
    int to[2], from[2];
    MUST(made < CHILDREN && pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
    pid_t child = fork_as(wanted);
    if (child == 0) {
        MUST(dup2(to[0], 0) == 0 && dup2(from[1], 1) == 1);
        close(to[1]);
        /* A pipe ends when nobody has its other end. */
        for (int i = 0; i < made; i++)
            MUST(children[i].pid == 0 || (close(children[i].to) == 0 && close(children[i].from) == 0));
        made = 0;
        own = 0;
        return;
    }
    close(to[0]);
    close(from[1]);
    children[made++] = (struct child){child, child, to[1], from[0]};
    victim_say("truth note child=%d\n", (int)child);
}

static void serve(void);

static void *make_in_thread(void *nothing)
{
    pid_t parent = getpid();
    make(0);
    if (getpid() != parent) {
        serve();
        _exit(0);
    }
    return nothing;
}

static void *execute(void *program)
{
    execl(program, (const char *)program, NULL);
    MUST(0);
    return NULL;
}

static void *do_nothing(void *nothing)
{
    return nothing;
}

/* Passes on what a child says, up to its last line. */
static void relay(const struct child *child)
{
    static char line[512];
    for (;;) {
        size_t length = 0;
        do {
            MUST(length < sizeof line && read(child->from, line + length, 1) == 1);
        } while (line[length++] != '\n');
        if (strncmp(line, "done", 4) == 0 || strncmp(line, "ready", 5) == 0)
            return;
        MUST(write(1, line, length) == (ssize_t)length);
    }
}

static struct child *addressed(void)
{
    long index = victim_number(1);
    MUST(index >= 0 && index < made);
    return &children[index];
}

static void end(struct child *child, int is_killed)
{
    int status;
    if (is_killed)
        MUST(kill(child->pid, SIGKILL) == 0);
    MUST(close(child->to) == 0 && close(child->from) == 0);
    MUST(waitpid(child->pid, &status, 0) == child->pid && (is_killed || status == 0));
    child->pid = 0;
}

static void serve(void)
{
    while (victim_next()) {
        if (victim_is("leak")) {
            leak(victim_number(1), (size_t)victim_number(2));
        } else if (victim_is("free")) {
            give_back(victim_number(1));
        } else if (victim_is("fork")) {
            make(0);
            if (made == 0)
                continue;
        } else if (victim_is("again")) {
            make(addressed()->number);
            if (made == 0)
                continue;
        } else if (victim_is("daemon")) {
            daemonize(victim_number(1), (size_t)victim_number(2), 0);
        } else if (victim_is("hurry")) {
            stay_here();
            daemonize(victim_number(1), (size_t)victim_number(2), 1);
        } else if (victim_is("descend")) {
            descend(victim_number(1), victim_number(2), victim_number(3), victim_word(4));
        } else if (victim_is("start")) {
            start_daemons(victim_number(1));
        } else if (victim_is("leaked")) {
            await_leaks(victim_number(1));
        } else if (victim_is("thread")) {
            pthread_t thread;
            MUST(pthread_create(&thread, NULL, make_in_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
        } else if (victim_is("at")) {
            const struct child *child = addressed();
            const char *command = victim_word(2);
            size_t length = strlen(command);
            MUST(write(child->to, command, length) == (ssize_t)length && write(child->to, "\n", 1) == 1);
            relay(child);
        } else if (victim_is("end")) {
            end(addressed(), 0);
        } else if (victim_is("kill")) {
            end(addressed(), 1);
        } else if (victim_is("exec")) {
            const char *program = victim_word(1);
            execl(program, program, NULL);
            MUST(0);
        } else if (victim_is("replace")) {
            pthread_t thread;
            MUST(pthread_create(&thread, NULL, execute, victim_word(1)) == 0 && pthread_join(thread, NULL) == 0);
        } else if (victim_is("bomb")) {
            bomb(victim_number(1), victim_number(2), victim_number(3));
        } else if (victim_is("orphan")) {
            orphan(victim_number(1), (size_t)victim_number(2));
        } else if (victim_is("grow")) {
            grow(victim_number(1));
        } else if (victim_is("spawn")) {
            spawn(victim_word(1));
        } else {
            MUST(0);
        }
        victim_done();
    }
}

int main(int arguments, char **words)
{
    if (arguments == 3) {
        leak(atol(words[1]), (size_t)atol(words[2]));
        /* Long enough to be seen. */
        usleep(300000);
        return 0;
    }
    if (arguments == DESCENDANT) {
        be_descendants(words);
        return 0;
    }
    /* What libc keeps of a thread's stack, it takes for the first one. */
    pthread_t thread;
    MUST(arguments == 1 || (pthread_create(&thread, NULL, do_nothing, NULL) == 0 && pthread_join(thread, NULL) == 0));
    victim_ready();
    serve();
    return 0;
}
