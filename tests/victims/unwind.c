/* Stacks of every shape, without frame pointers: `stacks N FILE` takes N blocks, each on another way through functions
 * that keep their frames in different manners; `thread N FILE` does so in a thread; `signals N FILE` takes one wherever a
 * timer's signal strikes; `steps N FILE` takes one after each instruction of calls through the PLT, in the vDSO and in
 * libc; `opened N FILE` takes them through a library that it has just opened, from a few stacks; `reopened N FILE` through
 * two that take each other's place in memory, `namespaces N FILE` in namespaces of their own; `closing N FILE` takes blocks of all shapes while another thread opens and
 * closes a library all the time; `passing N FILE` takes N that it gives back at once, through a library that it has just
 * opened; `load N PREFIX` opens PREFIX0.so to PREFIX(N-1).so. */
#define _GNU_SOURCE
#include "victim.h"

#include "stacks.h"

#include <alloca.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>

#ifdef ALL_IN_ONE
#include "silent.c"
#else
void *silent_call(void *(*function)(void *), void *argument);
#endif

OWN_FRAME static void take(void)
{
    unsigned long size = ++stacks_taken;
    KEEP(malloc(size));
    stacks_note(size);
    KEEP(size); /* no jump: this function stays on the stack */
}

static void go(int depth);
static volatile int sink;

OWN_FRAME static void plain(int depth)
{
    go(depth);
    sink++;
}

OWN_FRAME static void with_alloca(int depth)
{
    char *room = alloca(16 + stacks_random() % 300);
    KEEP(room);
    go(depth);
    KEEP(room);
}

OWN_FRAME static void with_array(int depth)
{
    int numbers[1 + stacks_random() % 50];
    KEEP(numbers);
    go(depth);
    KEEP(numbers);
}

OWN_FRAME static void with_registers(int depth)
{
    int a = sink, b = a * 3 + 1, c = b ^ depth, d = c + a, e = d * 5, f = e ^ b;
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    go(depth);
    sink += a + b + c + d + e + f;
}

OWN_FRAME static void with_room(int depth)
{
    char room[5000];
    KEEP(room);
    go(depth);
    KEEP(room);
}

OWN_FRAME static void aligned(int depth)
{
    _Alignas(64) char room[64];
    KEEP(room);
    go(depth);
    KEEP(room);
}

OWN_FRAME static void aligned_with_alloca(int depth)
{
    _Alignas(128) char room[128];
    KEEP(room);
    KEEP(alloca(8 + stacks_random() % 64));
    go(depth);
    KEEP(room);
}

OWN_FRAME static void many(int a, int b, int c, int d, int e, int f, int g, int h, int i, int depth)
{
    go(depth);
    sink += a + b + c + d + e + f + g + h + i;
}

OWN_FRAME static void with_arguments(int depth)
{
    many(1, 2, 3, 4, 5, 6, 7, 8, 9, depth);
    sink++;
}

/* Jumps: this frame is gone when the next one is there. */
OWN_FRAME static void jumps(int depth)
{
    sink++;
    go(depth);
}

static int sorting;
static int compare(const void *a, const void *b)
{
    if (sorting) {
        int depth = sorting;
        sorting = 0;
        go(depth);
    }
    return *(const int *)a - *(const int *)b;
}

OWN_FRAME static void sorts(int depth)
{
    int numbers[] = {3, 1, 2};
    sorting = depth;
    qsort(numbers, 3, sizeof *numbers, compare);
    KEEP(numbers);
}

OWN_FRAME static void *called_back(void *depth)
{
    go((int)(long)depth);
    return depth;
}

OWN_FRAME static void silent(int depth)
{
    KEEP(silent_call(called_back, (void *)(long)depth));
}

#if defined(__x86_64__)
/* Keeps its caller's stack pointer in memory, as the hash functions of cryptographic libraries do: the frame is at
 * *(%rsp + 24) + 8. */
void *kept_call(void *(*function)(void *), void *argument);
__asm__(".text\n"
        ".type kept_call, @function\n"
        "kept_call:\n"
        ".cfi_startproc\n"
        "mov %rsp, %rax\n"
        ".cfi_def_cfa_register %rax\n"
        "sub $96, %rsp\n"
        "and $-64, %rsp\n"
        "mov %rax, 24(%rsp)\n"
        ".cfi_escape 0x0f, 5, 0x77, 24, 0x06, 0x23, 8\n"
        "mov %rdi, %rax\n"
        "mov %rsi, %rdi\n"
        "call *%rax\n"
        "mov 24(%rsp), %rsp\n"
        ".cfi_def_cfa %rsp, 8\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size kept_call, . - kept_call\n");
#else
static void *kept_call(void *(*function)(void *), void *argument)
{
    return silent_call(function, argument);
}
#endif

OWN_FRAME static void kept(int depth)
{
    KEEP(kept_call(called_back, (void *)(long)depth));
}

static void on_signal(int number)
{
    (void)number;
    take();
}

OWN_FRAME static void interrupted(int depth)
{
    (void)depth;
    MUST(raise(SIGUSR1) == 0);
    sink++;
}

OWN_FRAME static void interrupted_elsewhere(int depth)
{
    (void)depth;
    MUST(raise(SIGUSR2) == 0);
    sink++;
}

static void (*const ways[])(int) = {plain,          with_alloca, with_array, with_registers,
                                    with_room,      aligned,     jumps,      aligned_with_alloca,
                                    with_arguments, sorts,       silent,     kept};
enum { WAYS = sizeof ways / sizeof *ways };

OWN_FRAME static void go(int depth)
{
    if (depth <= 1) {
        switch (stacks_random() % 16) {
        case 0:
            interrupted(depth);
            break;
        case 1:
            interrupted_elsewhere(depth);
            break;
        default:
            take();
        }
    } else {
        ways[stacks_random() % WAYS](depth - 1);
    }
    sink++;
}

OWN_FRAME static void recurse(int depth)
{
    if (depth > 0)
        recurse(depth - 1);
    else
        take();
    sink++;
}

#ifndef ALL_IN_ONE
static void *(*opened_call)(void *(*function)(void *), void *argument);

OWN_FRAME static void *called_from_opened(void *depth)
{
    recurse((int)(long)depth);
    return depth;
}

OWN_FRAME static void opened(int depth)
{
    KEEP(opened_call(called_from_opened, (void *)(long)depth));
    sink++;
}

/* As long as a profiler may take to look at what is mapped. */
static void wait_for_a_look(void)
{
    const char *patience = getenv("LEAKPROBE_PATIENCE");
    usleep(50000 * (patience ? (useconds_t)atoi(patience) : 1));
}

/* The first dozen are taken before anyone can know the library. */
static void open_and_call(long count)
{
    void *library = dlopen("libopened.so", RTLD_NOW | RTLD_LOCAL);
    MUST(library);
    *(void **)&opened_call = dlsym(library, "silent_call");
    for (long i = 0; i < count; i++) {
        opened((int)(i % 12));
        if (i == 11)
            wait_for_a_look();
    }
}

static void open_nth(const char *prefix, long number)
{
    char path[4096];
    MUST(snprintf(path, sizeof path, "%s%ld.so", prefix, number) < (int)sizeof path);
    MUST(dlopen(path, RTLD_NOW | RTLD_LOCAL));
}

/* Both are known, and gone, before a block is taken through the other one. */
static void reopen_and_call(long count, Lmid_t namespace)
{
    void *places[2] = {NULL, NULL};
    for (long i = 0; i < count; i++) {
        void *library = dlmopen(namespace, i % 2 ? "libanother.so" : "libopened.so", RTLD_NOW | RTLD_LOCAL);
        MUST(library);
        *(void **)&opened_call = places[i % 2] = dlsym(library, "silent_call");
        opened(1);
        wait_for_a_look();
        opened(1);
        wait_for_a_look();
        MUST(dlclose(library) == 0);
    }
    MUST((((long)places[0] ^ (long)places[1]) & ~0xfffl) == 0);
}

OWN_FRAME static void *taken_and_given_back(void *size)
{
    void *block = malloc((size_t)size);
    KEEP(block);
    free(block);
    return size;
}

static void take_in_passing(long count)
{
    for (long i = 0; i < count; i++) {
        void *library = dlopen("libopened.so", RTLD_NOW | RTLD_LOCAL);
        MUST(library);
        *(void **)&opened_call = dlsym(library, "silent_call");
        KEEP(opened_call(taken_and_given_back, (void *)100));
        wait_for_a_look();
        MUST(dlclose(library) == 0);
    }
}

static volatile int is_over;

static void *open_and_close(void *times)
{
    for (*(long *)times = 0; !is_over; ++*(long *)times) {
        void *library = dlopen("libopened.so", RTLD_NOW | RTLD_LOCAL);
        MUST(library && dlclose(library) == 0);
    }
    return NULL;
}

static void stacks_of_all_shapes(long count);

/* It has closed one before the first block is taken. */
static void take_while_another_closes(long count)
{
    pthread_t thread;
    volatile long times = 0;
    MUST(pthread_create(&thread, NULL, open_and_close, (void *)&times) == 0);
    while (times < 2)
        usleep(1000);
    stacks_of_all_shapes(count);
    is_over = 1;
    MUST(pthread_join(thread, NULL) == 0);
}
#else
static void take_while_another_closes(long count)
{
    (void)count;
    MUST(!"there is no library");
}
static void take_in_passing(long count)
{
    take_while_another_closes(count);
}
static void open_and_call(long count)
{
    (void)count;
    MUST(!"there is no library");
}
static void reopen_and_call(long count, Lmid_t namespace)
{
    (void)namespace;
    open_and_call(count);
}
static void open_nth(const char *prefix, long number)
{
    (void)prefix;
    open_and_call(number);
}
#endif

/* What a signal interrupts: calls and returns, and nothing that allocates. */
OWN_FRAME static int busy(int depth)
{
    char room[24];
    KEEP(room);
    return depth > 0 ? busy(depth - 1) + busy(depth - 2) : sink;
}

/* Keeps its caller's stack in a register of its own, also while it calls a function, as ciphers written in assembly do. */
void third_register(long rounds);
#if defined(__x86_64__)
__asm__(".text\n.type third_register, @function\nthird_register:\n.cfi_startproc\n"
        "mov %rsp, %r11\n.cfi_def_cfa r11, 8\nsub $256, %rsp\nand $-64, %rsp\n"
        "mov %rdi, %rsi\n1: dec %rdi\njnz 1b\n"
        "call third_register_callee\n"
        "lea 8(%r11), %rax\n.cfi_def_cfa rax, 0\nxor %r11d, %r11d\n"
        "lea -8(%rax), %rsp\n.cfi_def_cfa rsp, 8\nret\n.cfi_endproc\n.size third_register, .-third_register\n"
        ".type third_register_callee, @function\nthird_register_callee:\n.cfi_startproc\n"
        "1: dec %rsi\njnz 1b\nret\n"
        ".cfi_endproc\n.size third_register_callee, .-third_register_callee\n");
#else
__asm__(".text\n.type third_register, %function\nthird_register:\n.cfi_startproc\n"
        "mov x9, sp\n.cfi_def_cfa x9, 0\nsub sp, sp, #256\nstr x30, [x9, #-16]\n.cfi_offset x30, -16\n"
        "mov x1, x0\n1: subs x0, x0, #1\nb.ne 1b\n"
        "bl third_register_callee\n"
        "ldr x30, [x9, #-16]\n.cfi_restore x30\nmov sp, x9\n.cfi_def_cfa sp, 0\nret\n"
        ".cfi_endproc\n.size third_register, .-third_register\n"
        ".type third_register_callee, %function\nthird_register_callee:\n.cfi_startproc\n"
        "1: subs x1, x1, #1\nb.ne 1b\nret\n"
        ".cfi_endproc\n.size third_register_callee, .-third_register_callee\n");
#endif

static volatile int signals_left;
static void on_timer(int number)
{
    (void)number;
    if (signals_left > 0) {
        signals_left--;
        take();
    }
}

static void handle(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    MUST(sigaction(number, &action, NULL) == 0);
}

/* Two or three frames a way. */
OWN_FRAME static void stacks_of_all_shapes(long count)
{
    for (int depth = 1; depth <= 116; depth++)
        recurse(depth);
    for (long i = 116; i < count; i++)
        go(1 + (int)(stacks_random() % 25));
    sink++;
}

OWN_FRAME static void *in_thread(void *count)
{
    stacks_of_all_shapes((long)count);
    sink++;
    return NULL;
}

#if defined(__x86_64__)
static volatile int stepping;
static long steps_in_plt, steps_in_vdso;

/* After an instruction, while the trap flag is set: the kernel puts it back with the other registers. */
static void on_trap(int number, siginfo_t *info, void *context_)
{
    enum { TRAP_FLAG = 0x100, VDSO_BYTES = 0x2000 };
    greg_t *registers = ((ucontext_t *)context_)->uc_mcontext.gregs;
    (void)number, (void)info;
    if (!stepping) {
        registers[REG_EFL] &= ~TRAP_FLAG;
        return;
    }
    registers[REG_EFL] |= TRAP_FLAG;
    const unsigned char *next = (const unsigned char *)registers[REG_RIP];
    /* jmp *slot(%rip) */
    steps_in_plt += (next[0] == 0xff && next[1] == 0x25) || (next[0] == 0xf2 && next[1] == 0xff && next[2] == 0x25);
    steps_in_vdso += (unsigned long)next - getauxval(AT_SYSINFO_EHDR) < VDSO_BYTES;
    take();
}

OWN_FRAME static void *nothing(void *argument)
{
    return argument;
}

OWN_FRAME static void stepped(int step)
{
    struct timespec now;
    int numbers[] = {3, 1, 2};
    stepping = step;
    MUST(kill(getpid(), SIGTRAP) == 0);
    sink += clock_gettime(CLOCK_MONOTONIC, &now);
    KEEP(silent_call(nothing, &now));
    qsort(numbers, 3, sizeof *numbers, compare);
    stepping = 0;
    sink += numbers[0];
}

static void steps(long count)
{
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGTRAP, &action, NULL) == 0);
    /* Functions are looked up when they are called first, by code that keeps its stack in another register. */
    stepped(0);
    for (unsigned long before = stacks_taken; stacks_taken - before < (unsigned long)count;)
        stepped(1);
#ifndef ALL_IN_ONE
    MUST(steps_in_plt > 0 && steps_in_vdso > 0);
#endif
}
#else
static void steps(long count)
{
    (void)count;
    MUST(!"there is no trap flag");
}
#endif

int main(void)
{
    static char elsewhere[1 << 16];
    stack_t stack = {.ss_sp = elsewhere, .ss_size = sizeof elsewhere};
    MUST(sigaltstack(&stack, NULL) == 0);
    handle(SIGUSR1, on_signal, 0);
    handle(SIGUSR2, on_signal, SA_ONSTACK);
    handle(SIGALRM, on_timer, SA_RESTART);
    stacks_prepare();
    victim_ready();
    while (victim_next()) {
        long count = victim_number(1);
        const char *path = strchr(victim_word(1), ' ');
        MUST(path && count > 0);
        if (victim_is("load")) {
            for (long i = 0; i < count; i++)
                open_nth(path + 1, i);
            victim_done();
            continue;
        }
        stacks_open(path + 1);
        unsigned long before = stacks_taken;
        if (victim_is("stacks")) {
            stacks_of_all_shapes(count);
        } else if (victim_is("thread")) {
            pthread_t thread;
            MUST(pthread_create(&thread, NULL, in_thread, (void *)count) == 0);
            MUST(pthread_join(thread, NULL) == 0);
        } else if (victim_is("opened")) {
            open_and_call(count);
        } else if (victim_is("reopened")) {
            reopen_and_call(count, LM_ID_BASE);
        } else if (victim_is("namespaces")) {
            reopen_and_call(count, LM_ID_NEWLM);
        } else if (victim_is("passing")) {
            take_in_passing(count);
        } else if (victim_is("closing")) {
            take_while_another_closes(count);
        } else if (victim_is("steps")) {
            steps(count);
        } else {
            MUST(victim_is("signals"));
            struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
            signals_left = (int)count;
            MUST(setitimer(ITIMER_REAL, &often, NULL) == 0);
            while (signals_left > 0) {
                sink ^= busy(14);
                third_register(20000);
            }
            MUST(setitimer(ITIMER_REAL, &never, NULL) == 0);
        }
        stacks_close();
        unsigned long blocks = stacks_taken - before;
        victim_say("truth - blocks=%lu\n", blocks);
        victim_done();
    }
    return 0;
}
