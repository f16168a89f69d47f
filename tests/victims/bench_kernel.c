/* Makes the kernel allocate, for `cargo xtask bench --kernel`; does what it is told line by line.
 *
 *   pairs COUNT   -> ns FLOAT            one kmalloc and one kfree each: writev of 64 vectors to /dev/null
 *   load MS       -> load FORKS SENT     two processes at once, of which one forks, lets the child run /bin/true and
 *                                        waits, and the other connects by TCP to itself, sends, receives and closes
 *   busy MS       -> load FORKS SENT     the same, and a third process that makes, writes, lists, renames and removes
 *                                        files in a folder of its own
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MUST(condition)                                              \
    do {                                                             \
        if (!(condition)) {                                          \
            fprintf(stderr, "line %d: %s: %m\n", __LINE__, #condition); \
            _exit(99);                                               \
        }                                                            \
    } while (0)

static double now(void)
{
    struct timespec time;
    MUST(clock_gettime(CLOCK_MONOTONIC, &time) == 0);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

/* CPU time, kernel's included: what other programs take on a shared machine does not count. */
static double used(void)
{
    struct timespec time;
    MUST(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void pairs(long count)
{
    static struct iovec vector[64];
    static char byte;
    int null = open("/dev/null", O_WRONLY);
    MUST(null >= 0);
    for (int i = 0; i < 64; i++)
        vector[i] = (struct iovec){.iov_base = &byte, .iov_len = 1};
    double begun = used();
    for (long i = 0; i < count; i++)
        MUST(writev(null, vector, 64) == 64);
    printf("ns %f\n", (used() - begun) / (double)count);
    MUST(close(null) == 0);
}

static void fork_until(double end, volatile long *done)
{
    while (now() < end) {
        pid_t child = fork();
        MUST(child >= 0);
        if (child == 0) {
            execl("/bin/true", "true", (char *)NULL);
            _exit(1);
        }
        int status;
        MUST(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        ++*done;
    }
}

static void send_until(double end, volatile long *done)
{
    static char message[4096];
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    MUST(listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0);
    MUST(getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    while (now() < end) {
        int ours = socket(AF_INET, SOCK_STREAM, 0);
        MUST(ours >= 0 && connect(ours, (struct sockaddr *)&address, sizeof address) == 0);
        int theirs = accept(listener, NULL, NULL);
        MUST(theirs >= 0);
        for (int i = 0; i < 8; i++) {
            MUST(send(ours, message, sizeof message, 0) == sizeof message);
            MUST(recv(theirs, message, sizeof message, MSG_WAITALL) == sizeof message);
        }
        /* Without a minute of waiting for each port. */
        MUST(setsockopt(ours, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
        MUST(close(ours) == 0 && close(theirs) == 0);
        ++*done;
    }
    MUST(close(listener) == 0);
}

static void file_until(double end, volatile long *done)
{
    char folder[] = "/tmp/leakprobe-busy-XXXXXX", from[64], to[64];
    static char text[16384];
    MUST(mkdtemp(folder) != NULL);
    while (now() < end) {
        for (int i = 0; i < 200; i++) {
            snprintf(from, sizeof from, "%s/%d", folder, i);
            int file = open(from, O_CREAT | O_WRONLY, 0600);
            MUST(file >= 0 && write(file, text, sizeof text) == sizeof text && close(file) == 0);
        }
        DIR *list = opendir(folder);
        MUST(list != NULL);
        while (readdir(list))
            ++*done;
        MUST(closedir(list) == 0);
        for (int i = 0; i < 200; i++) {
            snprintf(from, sizeof from, "%s/%d", folder, i);
            snprintf(to, sizeof to, "%s/%d.old", folder, i);
            MUST(rename(from, to) == 0 && unlink(to) == 0);
        }
    }
    MUST(rmdir(folder) == 0);
}

static void load(long ms, int count)
{
    volatile long *done = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(done != MAP_FAILED);
    double end = now() + (double)ms * 1e6;
    pid_t workers[3];
    for (int i = 0; i < count; i++) {
        workers[i] = fork();
        MUST(workers[i] >= 0);
        if (workers[i] == 0) {
            if (i == 0)
                fork_until(end, &done[0]);
            else if (i == 1)
                send_until(end, &done[8]);
            else
                file_until(end, &done[16]);
            _exit(0);
        }
    }
    for (int i = 0; i < count; i++) {
        int status;
        MUST(waitpid(workers[i], &status, 0) == workers[i] && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    printf("load %ld %ld\n", done[0], done[8]);
    MUST(munmap((void *)done, 4096) == 0);
}

int main(void)
{
    static char line[128];
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("ready %d\n", (int)getpid());
    while (fgets(line, sizeof line, stdin)) {
        if (strncmp(line, "pairs ", 6) == 0)
            pairs(strtol(line + 6, NULL, 10));
        else if (strncmp(line, "load ", 5) == 0)
            load(strtol(line + 5, NULL, 10), 2);
        else if (strncmp(line, "busy ", 5) == 0)
            load(strtol(line + 5, NULL, 10), 3);
        else
            return 2;
    }
    return 0;
}
