extern "C" void leaf(void);
extern "C" void report(void);
static volatile int sink;

namespace cache {
template <typename T> struct Store {
    __attribute__((noinline)) void put(T value) {
        leaf(); // line: put
        sink += value;
    }
};
} // namespace cache

namespace {
__attribute__((noinline)) void unnamed(const char *text) {
    leaf(); // line: unnamed
    sink += text[0];
}
} // namespace

int main() {
    cache::Store<int>().put(3);
    unnamed("x");
    report();
}
