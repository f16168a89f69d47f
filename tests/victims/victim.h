/* What every victim shares: how it talks to the test, and how it keeps its books.
 *
 * Nothing here may allocate: a victim's truth is exact only while every block is its own. So lines are
 * read byte by byte and written from static memory, and stdio is never used.
 *
 *   victim: ready 1234
 *   test:   fill 10 64
 *   victim: truth row_malloc blocks=10 bytes=640 allocated=10 freed=0
 *   victim: done
 *   test:   quit
 *
 * A truth names the function that allocates, or `-` for blocks that no function can be held to;
 * `note` is for numbers that are no truth about blocks.
 */
#ifndef VICTIM_H
#define VICTIM_H

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A function of its own in every stack: neither inlined, nor cloned, nor merged, nor seen through. */
#ifdef __clang__
#define OWN_FRAME __attribute__((noinline, optnone))
#else
#define OWN_FRAME __attribute__((noipa))
#endif

/* The compiler must believe that somebody looks at this pointer. */
#define KEEP(pointer) __asm__ volatile("" : : "r"(pointer) : "memory")

/* A victim that fails at its own job must not be mistaken for one with a different truth. */
#define MUST(condition)                                                          \
    do {                                                                         \
        if (!(condition)) {                                                      \
            victim_say("broken line %d: %s\n", __LINE__, #condition);            \
            _exit(99);                                                           \
        }                                                                        \
    } while (0)

static char victim_line[512];

__attribute__((unused)) static void victim_say(const char *format, ...)
{
    static char text[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof text)
        _exit(98);
    for (int sent = 0; sent < length;) {
        ssize_t more = write(1, text + sent, (size_t)(length - sent));
        if (more <= 0)
            _exit(97);
        sent += (int)more;
    }
}

__attribute__((unused)) static void victim_ready(void)
{
    victim_say("ready %d\n", (int)getpid());
}

__attribute__((unused)) static void victim_done(void)
{
    victim_say("done\n");
}

/* Waits for the next command; 0 for `quit` and at the end of input. */
__attribute__((unused)) static int victim_next(void)
{
    size_t length = 0;
    char byte;
    for (;;) {
        ssize_t got = read(0, &byte, 1);
        if (got <= 0)
            return 0;
        if (byte == '\n')
            break;
        if (length + 1 < sizeof victim_line)
            victim_line[length++] = byte;
    }
    victim_line[length] = 0;
    return strcmp(victim_line, "quit") != 0;
}

/* Whether the command's first word is this one. */
__attribute__((unused)) static int victim_is(const char *word)
{
    size_t length = strlen(word);
    return strncmp(victim_line, word, length) == 0 &&
           (victim_line[length] == 0 || victim_line[length] == ' ');
}

/* The command's `index`th argument, from 1, as text; "" where there is none. */
__attribute__((unused)) static const char *victim_word(int index)
{
    const char *at = victim_line;
    while (index-- > 0) {
        at = strchr(at, ' ');
        if (!at)
            return "";
        at++;
    }
    return at;
}

__attribute__((unused)) static long victim_number(int index)
{
    return strtol(victim_word(index), NULL, 10);
}

/* --- Books: which function holds which block. For victims with few blocks. --- */

enum { BOOK_SITES = 256, BOOK_BLOCKS = 4096 };

struct book_site {
    const char *name;
    long blocks, bytes, allocated, freed;
};
struct book_block {
    void *address;
    size_t bytes;
    struct book_site *site;
};
static struct book_site book_sites[BOOK_SITES];
static struct book_block book_blocks[BOOK_BLOCKS];

/* The site's books, opened at zero when it is named for the first time. */
__attribute__((unused)) static struct book_site *book_site(const char *name)
{
    for (int i = 0; i < BOOK_SITES; i++) {
        if (!book_sites[i].name)
            book_sites[i].name = name;
        if (strcmp(book_sites[i].name, name) == 0)
            return &book_sites[i];
    }
    _exit(96);
}

/* The function `name` was given this block. */
__attribute__((unused)) static void book_gain(const char *name, void *address, size_t bytes)
{
    struct book_site *site = book_site(name);
    for (int i = 0; i < BOOK_BLOCKS; i++) {
        if (!book_blocks[i].address) {
            book_blocks[i].address = address;
            book_blocks[i].bytes = bytes;
            book_blocks[i].site = site;
            site->blocks++;
            site->bytes += (long)bytes;
            site->allocated++;
            return;
        }
    }
    _exit(95);
}

/* This block is about to be given back. */
__attribute__((unused)) static void book_lose(void *address)
{
    for (int i = 0; i < BOOK_BLOCKS; i++) {
        if (book_blocks[i].address == address) {
            book_blocks[i].site->blocks--;
            book_blocks[i].site->bytes -= (long)book_blocks[i].bytes;
            book_blocks[i].site->freed++;
            book_blocks[i].address = NULL;
            return;
        }
    }
    _exit(94);
}

/* Gives back every block that is still in the books. */
__attribute__((unused)) static void book_release(void (*release)(void *))
{
    for (int i = 0; i < BOOK_BLOCKS; i++) {
        void *address = book_blocks[i].address;
        if (address) {
            book_lose(address);
            release(address);
        }
    }
}

__attribute__((unused)) static void victim_truth(const char *name, long blocks, long bytes,
                                                 long allocated, long freed)
{
    victim_say("truth %s blocks=%ld bytes=%ld allocated=%ld freed=%ld\n", name, blocks, bytes,
               allocated, freed);
}

__attribute__((unused)) static void book_tell(void)
{
    for (int i = 0; i < BOOK_SITES && book_sites[i].name; i++)
        victim_truth(book_sites[i].name, book_sites[i].blocks, book_sites[i].bytes,
                     book_sites[i].allocated, book_sites[i].freed);
}

#endif
