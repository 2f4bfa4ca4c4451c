/* Does with the memory at its offset what it is told to, by the C library and by futex(2). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *memory;
static size_t length = 8192;
static unsigned long offset;

static unsigned *word(void) { return (unsigned *)(memory + offset); }
static pthread_mutex_t *mutex(void) { return (pthread_mutex_t *)(memory + offset); }

static const char *name(int error) { return error ? strerrorname_np(error) : "0"; }

static void say(const char *what, const char *how) {
    printf("%s %s\n", what, how);
    fflush(stdout);
}

static void number(const char *what, long n) {
    printf("%s %ld\n", what, n);
    fflush(stdout);
}

struct wait { unsigned expected, bits; };

static void *waiter(void *given) {
    struct wait *wait = given;
    long ended = syscall(SYS_futex, word(), FUTEX_WAIT_BITSET, wait->expected, NULL, NULL, wait->bits);
    say("wait", name(ended ? errno : 0));
    free(wait);
    return NULL;
}

static void *locker(void *given) {
    (void)given;
    say("lock", name(pthread_mutex_lock(mutex())));
    /* The owner is this thread: it stays. */
    for (;;) pause();
    return NULL;
}

static void start(void *(*run)(void *), void *with) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, with)) abort();
}

static void initialise(const char *kind) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (strstr(kind, "robust")) pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    if (strstr(kind, "pi")) pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    say("initialise", name(pthread_mutex_init(mutex(), &attributes)));
}

int main(void) {
    char command[32], text[512];
    unsigned long a, b;
    say("ready", "");
    while (scanf("%31s", command) == 1) {
        if (!strcmp(command, "map")) {
            int fd = scanf("%511s %lu", text, &offset) == 2 ? open(text, O_RDWR) : -1;
            memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            number("map", memory == MAP_FAILED ? errno : fd);
        } else if (!strcmp(command, "attach") && scanf("%lu %lu", &a, &offset) == 2) {
            memory = shmat(a, NULL, 0);
            say("attach", name(memory == (char *)-1 ? errno : 0));
        } else if (!strcmp(command, "load")) {
            number("load", __atomic_load_n(word(), __ATOMIC_SEQ_CST));
        } else if (!strcmp(command, "wait") && scanf("%lu %lx", &a, &b) == 2) {
            struct wait *wait = malloc(sizeof *wait);
            *wait = (struct wait){a, b};
            start(waiter, wait);
        } else if (!strcmp(command, "wake") && scanf("%lu", &a) == 1) {
            number("wake", syscall(SYS_futex, word(), FUTEX_WAKE, a, NULL, NULL, 0));
        } else if (!strcmp(command, "initialise") && scanf("%31s", text) == 1) {
            initialise(text);
        } else if (!strcmp(command, "lock")) {
            start(locker, NULL);
        } else if (!strcmp(command, "forget")) {
            /* Locks without a robust list: the kernel knows nothing of it at the end. */
            struct robust_list_head none = {{&none.list}, 0, NULL};
            int error = pthread_mutex_lock(mutex());
            syscall(SYS_set_robust_list, &none, sizeof none);
            say("forget", name(error));
        } else {
            say("what?", command);
        }
    }
    return 0;
}
