/* Makes known numbers of the kernel's objects and keeps them: `PHASE COUNT`, one kind a phase.
 *
 * `release` gives back everything that was made; so does the end of the process, but for files in the folder that the
 * first argument names. What each phase makes is written at its function. The thread is called "kobjects", so that what
 * the kernel allocates while it runs can be told from what it allocates for others.
 */
#define _GNU_SOURCE
#include "victim.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

enum { MOST = 8192 };
static int files[MOST];
static int open_files;
static char *pages;
static size_t mapped;
static const char *folder;
static long made;

static void keep(int file)
{
    MUST(file >= 0 && open_files < MOST);
    files[open_files++] = file;
}

/* A context and a file with its dentry each. */
static void eventfds(long count)
{
    while (count-- > 0)
        keep(eventfd(0, 0));
}

/* A context and a file with its dentry each. */
static void timerfds(long count)
{
    while (count-- > 0)
        keep(timerfd_create(CLOCK_MONOTONIC, 0));
}

/* A pipe with its buffers, an inode, a dentry, and two files each. */
static void pipes(long count)
{
    while (count-- > 0) {
        int ends[2];
        MUST(pipe(ends) == 0);
        keep(ends[0]);
        keep(ends[1]);
    }
}

/* A pipe, and a ring of 256 buffers of 40 bytes: more than kmalloc's largest cache has. */
static void rings(long count)
{
    while (count-- > 0) {
        pipes(1);
        MUST(fcntl(files[open_files - 1], F_SETPIPE_SZ, 1 << 20) >= 1 << 20);
    }
}

/* A context and a file with its dentry, and in it an item for one file that is there each. */
static void epolls(long count)
{
    int watched = eventfd(0, 0);
    keep(watched);
    while (count-- > 0) {
        int poll = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN};
        keep(poll);
        MUST(epoll_ctl(poll, EPOLL_CTL_ADD, watched, &event) == 0);
    }
}

/* Two sockets with inodes, dentries and files each. */
static void sockets(long count)
{
    while (count-- > 0) {
        int ends[2];
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
        keep(ends[0]);
        keep(ends[1]);
    }
}

static void path_of(char *path, size_t size, long number)
{
    snprintf(path, size, "%s/%ld", folder, number);
}

/* A dentry and an inode each, which stay after the files are closed. */
static void dentries(long count)
{
    MUST(mkdir(folder, 0700) == 0);
    for (made = 0; made < count; made++) {
        char path[256];
        path_of(path, sizeof path, made);
        int file = open(path, O_CREAT | O_WRONLY | O_EXCL, 0600);
        MUST(file >= 0 && close(file) == 0);
    }
}

/* A mapping each, none of which can be merged with its neighbour: a node of the tree of mappings for some of them. */
static void mappings(long count)
{
    mapped = (size_t)count * 8192;
    pages = mmap(NULL, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(pages != MAP_FAILED);
    for (long i = 0; i < count; i++)
        MUST(mmap(pages + i * 8192, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
             MAP_FAILED);
}

/* Maps and unmaps: nodes of the tree come and go, by way of a grace period. */
static void remappings(long count)
{
    while (count-- > 0) {
        char *place = mmap(NULL, 64 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        MUST(place != MAP_FAILED);
        for (int i = 0; i < 64; i += 2)
            MUST(mprotect(place + i * 4096, 4096, PROT_READ) == 0);
        MUST(munmap(place, 64 * 4096) == 0);
    }
}

/* Pages of memory, touched. */
static void anonymous(long count)
{
    mapped = (size_t)count * 4096;
    pages = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(pages != MAP_FAILED && madvise(pages, mapped, MADV_NOHUGEPAGE) == 0);
    for (long i = 0; i < count; i++)
        pages[i * 4096] = 1;
}

/* File systems that are mounted nowhere: each has per-CPU memory for three kinds of freezing. */
static void mounts(long count)
{
    while (count-- > 0) {
        int context = (int)syscall(SYS_fsopen, "tmpfs", 1);
        MUST(context >= 0 && syscall(SYS_fsconfig, context, 6 /* create */, NULL, NULL, 0) == 0);
        keep((int)syscall(SYS_fsmount, context, 1, 0));
        MUST(close(context) == 0);
    }
}

static void release(void)
{
    while (open_files > 0)
        MUST(close(files[--open_files]) == 0);
    if (pages) {
        MUST(munmap(pages, mapped) == 0);
        pages = NULL;
    }
    while (made > 0) {
        char path[256];
        path_of(path, sizeof path, --made);
        MUST(unlink(path) == 0);
    }
    if (folder)
        MUST(rmdir(folder) == 0 || errno == ENOENT);
}

int main(int count, char **words)
{
    static const struct {
        const char *name;
        void (*make)(long);
    } phases[] = {
        {"eventfds", eventfds},   {"timerfds", timerfds},   {"pipes", pipes},           {"epolls", epolls},
        {"sockets", sockets},     {"dentries", dentries},   {"mappings", mappings},     {"remappings", remappings},
        {"anonymous", anonymous}, {"mounts", mounts},       {"rings", rings},
    };
    folder = count > 1 ? words[1] : NULL;
    struct rlimit limit = {MOST + 64, MOST + 64};
    MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    MUST(prctl(PR_SET_NAME, "kobjects") == 0);
    victim_ready();
    while (victim_next()) {
        int known = victim_is("release");
        if (known)
            release();
        for (size_t i = 0; i < sizeof phases / sizeof *phases; i++)
            if (victim_is(phases[i].name)) {
                phases[i].make(victim_number(1));
                known = 1;
            }
        if (!known)
            return 2;
        victim_done();
    }
    _exit(0);
}
