extern void leaf(void);
extern void report(void);
static volatile int sink;

static inline __attribute__((always_inline)) void inner(void) {
    leaf(); /* line: inner */
    sink++;
}

static inline __attribute__((always_inline)) void middle(void) {
    sink++;
    inner(); /* line: middle */
    sink++;
}

__attribute__((noinline)) void OUTER(void) {
    sink++;
    middle(); /* line: outer */
    sink++;
}

static __attribute__((noinline)) void hidden(void) {
    leaf(); /* line: hidden */
    sink++;
}

int main(void) {
    OUTER();
    hidden();
    leaf(); /* line: main */
    report();
    return 0;
}
