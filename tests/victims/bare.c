/* A program without an allocator, and without a C library: it waits for ever. */
__attribute__((noreturn)) void _start(void);
void _start(void)
{
    for (;;) {
#if defined(__x86_64__)
        /* pause() */
        __asm__ volatile("syscall" : : "a"(34) : "rcx", "r11", "memory");
#elif defined(__aarch64__)
        /* ppoll(NULL, 0, NULL, NULL, 0) */
        register long x8 __asm__("x8") = 73;
        register long x0 __asm__("x0") = 0;
        __asm__ volatile("mov x1, 0\n\tmov x2, 0\n\tmov x3, 0\n\tmov x4, 0\n\tsvc 0"
                         : "+r"(x0) : "r"(x8) : "x1", "x2", "x3", "x4", "memory");
#endif
    }
}
