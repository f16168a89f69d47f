/* A shared object without symbols but the one that is called, and without frame pointers. */
#ifndef ROOM
#define ROOM 40
#endif

__attribute__((visibility("default"))) void *silent_call(void *(*function)(void *), void *argument);

__attribute__((noinline)) static void *inner(void *(*function)(void *), void *argument, int again)
{
    char room[ROOM];
    __asm__ volatile("" : : "r"(room) : "memory");
    void *result = again ? inner(function, argument, again - 1) : function(argument);
    __asm__ volatile("" : : "r"(room) : "memory");
    return result;
}

void *silent_call(void *(*function)(void *), void *argument)
{
    void *result = inner(function, argument, 2);
    __asm__ volatile("" : "+r"(result));
    return result;
}
