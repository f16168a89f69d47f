/* What the victims of stacks share: each block is of another size, and for each the victim's own unwinder is asked where
 * it was taken, at once. A line for each block goes to the file that the command names: its size, then the return
 * addresses from the caller of the function that takes it outward. */
#ifndef STACKS_H
#define STACKS_H

#include <fcntl.h>
#include <unwind.h>

enum { STACKS_MOST = 160, STACKS_ROOM = 1 << 16 };

static int stacks_file = -1;
static char stacks_text[STACKS_ROOM];
static size_t stacks_len;
static unsigned long stacks_taken;

struct stacks_walk {
    unsigned long frames[STACKS_MOST];
    int count;
};

static _Unwind_Reason_Code stacks_frame(struct _Unwind_Context *context, void *walk_)
{
    struct stacks_walk *walk = (struct stacks_walk *)walk_;
    if (walk->count < STACKS_MOST)
        walk->frames[walk->count++] = (unsigned long)_Unwind_GetIP(context);
    return _URC_NO_REASON;
}

static void stacks_flush(void)
{
    for (size_t sent = 0; sent < stacks_len;) {
        ssize_t more = write(stacks_file, stacks_text + sent, stacks_len - sent);
        MUST(more > 0);
        sent += (size_t)more;
    }
    stacks_len = 0;
}

/* Writes down the stack of the function that calls this one, without this function and that one. */
OWN_FRAME static void stacks_note(unsigned long size)
{
    struct stacks_walk walk;
    walk.count = 0;
    _Unwind_Backtrace(stacks_frame, &walk);
    MUST(walk.count > 2 && walk.count < STACKS_MOST);
    if (stacks_len + 32 + 20 * (size_t)walk.count > sizeof stacks_text)
        stacks_flush();
    stacks_len += (size_t)sprintf(stacks_text + stacks_len, "%lu", size);
    for (int i = 2; i < walk.count; i++)
        if (walk.frames[i])
            stacks_len += (size_t)sprintf(stacks_text + stacks_len, " %lx", walk.frames[i]);
    stacks_text[stacks_len++] = '\n';
}

static void stacks_open(const char *path)
{
    stacks_file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    MUST(stacks_file >= 0);
    stacks_len = 0;
}

static void stacks_close(void)
{
    stacks_flush();
    MUST(close(stacks_file) == 0);
}

/* The library that unwinds is loaded, and has taken what it needs, before anything is counted. */
static void stacks_prepare(void)
{
    struct stacks_walk walk;
    walk.count = 0;
    _Unwind_Backtrace(stacks_frame, &walk);
}

/* Another number each time; the same ones in each run. */
static unsigned stacks_random(void)
{
    static unsigned long state = 88172645463325252ul;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 11);
}

#endif
