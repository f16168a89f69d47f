/* Calls of malloc that never return.
 *
 * `wrapper N`: longjmp out of a wrapper around malloc, N times; each block is then given back.
 * `edge N`: malloc on the last bytes of a stack: its first push faults, and the handler jumps away, so
 *   that the call has been entered and never returns. N times.
 * `below N SIZE`: the same once, then N blocks at the site of `after`, on a stack that lies below.
 * `timer N`: a timer's handler jumps out of malloc, as long as malloc has not done anything yet,
 *   while a loop takes blocks; the loop goes on until it has N.
 * `after N SIZE`: N blocks at one more site, to see whether the calls above left anything behind.
 */
#define _GNU_SOURCE
#include "victim.h"
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>

static jmp_buf out_of_wrapper;
static sigjmp_buf out_of_signal;

OWN_FRAME static void take_and_jump(void **slot)
{
    *slot = malloc(250);
    longjmp(out_of_wrapper, 1);
}

OWN_FRAME static void wrapper(long number)
{
    for (volatile long i = 0; i < number; i++) {
        static void *block;
        if (setjmp(out_of_wrapper) == 0)
            take_and_jump(&block);
        MUST(block);
        free(block);
    }
}

/* Calls malloc with a stack pointer that leaves room for the return address and for nothing else. */
OWN_FRAME static void malloc_on_the_edge(char *edge)
{
#if defined(__x86_64__)
    __asm__ volatile("mov %%rsp, %%rbx\n\t"
                     "mov %0, %%rsp\n\t"
                     "mov $24, %%edi\n\t"
                     "call malloc@PLT\n\t"
                     "mov %%rbx, %%rsp\n\t"
                     :
                     : "r"(edge)
                     : "rbx", "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory");
#elif defined(__aarch64__)
    __asm__ volatile("mov x19, sp\n\t"
                     "mov sp, %0\n\t"
                     "mov x0, 24\n\t"
                     "bl malloc\n\t"
                     "mov sp, x19\n\t"
                     :
                     : "r"(edge)
                     : "x19", "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11",
                       "x12", "x13", "x14", "x15", "x16", "x17", "x30", "memory");
#else
    (void)edge;
#endif
}

static void fault(int signal)
{
    siglongjmp(out_of_signal, signal);
}

/* What the return address takes of the stack at a call. */
#if defined(__x86_64__)
enum { AT_EDGE = 8 };
#else
enum { AT_EDGE = 0 };
#endif

static void faults_on_another_stack(void)
{
    static char other_stack[65536];
    stack_t other = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
    MUST(sigaltstack(&other, NULL) == 0);
    struct sigaction action = {.sa_handler = fault, .sa_flags = SA_ONSTACK};
    MUST(sigaction(SIGSEGV, &action, NULL) == 0);
}

OWN_FRAME static void edge(long number)
{
    faults_on_another_stack();
    char *pages = mmap(NULL, 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(pages != MAP_FAILED && mprotect(pages + 4096, 4096, PROT_READ | PROT_WRITE) == 0);
    volatile long faults = 0;
    for (volatile long i = 0; i < number; i++) {
        if (sigsetjmp(out_of_signal, 1) == 0)
            malloc_on_the_edge(pages + 4096 + AT_EDGE);
        else
            faults++;
    }
    MUST(faults == number);
    signal(SIGSEGV, SIG_DFL);
    munmap(pages, 8192);
    victim_say("truth note entered_and_left=%ld\n", faults);
}

OWN_FRAME static void after(long number, size_t size);

static long below_number;
static size_t below_size;

static void on_low_stack(void)
{
    after(below_number, below_size);
}

OWN_FRAME static void below(long number, size_t size)
{
    enum { LOW = 16 * 4096 };
    static ucontext_t here, low;
    faults_on_another_stack();
    char *pages = mmap(NULL, LOW + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *edge = pages + LOW + 4096;
    MUST(pages != MAP_FAILED && mprotect(pages + LOW, 4096, PROT_NONE) == 0);
    if (sigsetjmp(out_of_signal, 1) == 0)
        malloc_on_the_edge(edge + AT_EDGE);
    signal(SIGSEGV, SIG_DFL);
    /* As on a stack that goes on to be used: nothing of that call is left. */
    memset(edge, 0, 4096);
    MUST(mprotect(pages + LOW, 4096, PROT_READ | PROT_WRITE) == 0);
    below_number = number, below_size = size;
    MUST(getcontext(&low) == 0);
    low.uc_stack.ss_sp = pages;
    low.uc_stack.ss_size = LOW;
    low.uc_link = &here;
    makecontext(&low, on_low_stack, 0);
    MUST(swapcontext(&here, &low) == 0);
    munmap(pages, LOW + 8192);
}

static volatile long jumps;

static uintptr_t where(void *context)
{
#if defined(__x86_64__)
    return (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
    return (uintptr_t)((ucontext_t *)context)->uc_mcontext.pc;
#else
    (void)context;
    return 0;
#endif
}

/* Only the first bytes of malloc are left by a jump: they save registers, and the heap is whole. */
static void tick(int signal, siginfo_t *information, void *context)
{
    (void)information;
    if (where(context) - (uintptr_t)malloc < 4) {
        jumps++;
        siglongjmp(out_of_signal, signal);
    }
}

static void *taken[20000];

OWN_FRAME static void timer(long number)
{
    MUST(number <= (long)(sizeof taken / sizeof *taken));
    struct sigaction action = {.sa_sigaction = tick, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
    MUST(setitimer(ITIMER_REAL, &often, NULL) == 0);
    /* A jump comes out here with malloc not done: the loop goes on at the same slot. */
    static volatile long have;
    have = 0;
    sigsetjmp(out_of_signal, 1);
    while (have < number) {
        void *block = malloc(36);
        MUST(block);
        taken[have] = block;
        have++;
    }
    MUST(setitimer(ITIMER_REAL, &never, NULL) == 0);
    victim_truth("timer", number, number * 36, number, 0);
    victim_say("truth note jumps=%ld\n", jumps);
}

OWN_FRAME static void after(long number, size_t size)
{
    for (long i = 0; i < number; i++)
        KEEP(malloc(size));
    victim_truth("after", number, number * (long)size, number, 0);
}

int main(void)
{
    victim_ready();
    while (victim_next()) {
        if (victim_is("wrapper")) {
            wrapper(victim_number(1));
            victim_truth("take_and_jump", 0, 0, victim_number(1), victim_number(1));
        } else if (victim_is("edge")) {
            edge(victim_number(1));
        } else if (victim_is("below")) {
            below(victim_number(1), (size_t)victim_number(2));
        } else if (victim_is("timer")) {
            timer(victim_number(1));
        } else if (victim_is("after")) {
            after(victim_number(1), (size_t)victim_number(2));
        } else {
            return 2;
        }
        victim_done();
    }
    return 0;
}
