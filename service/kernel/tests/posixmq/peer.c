#define _GNU_SOURCE
/* A program that uses POSIX message queues as any does. A line in, a line out: "ok", a value, or the
 * errno's name. Names and texts are in hexadecimal, "-" is empty. */
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t saying = PTHREAD_MUTEX_INITIALIZER;

static void say(const char *text)
{
    pthread_mutex_lock(&saying);
    puts(text);
    fflush(stdout);
    pthread_mutex_unlock(&saying);
}

static void answer(long result)
{
    char text[40];
    if (result < 0) {
        say(strerrorname_np(errno));
        return;
    }
    snprintf(text, sizeof text, "%ld", result);
    say(text);
}

static size_t plain(const char *hex, char *text, size_t room)
{
    size_t length = 0;
    unsigned byte;
    if (strcmp(hex, "-") != 0)
        for (; length < room && sscanf(hex + 2 * length, "%2x", &byte) == 1; length++)
            text[length] = byte;
    return length;
}

static void tell(const char *what, unsigned priority, const char *data, ssize_t length)
{
    char text[20000];
    int at = snprintf(text, sizeof text, "%s%u ", what, priority);
    for (ssize_t n = 0; n < length; n++)
        at += snprintf(text + at, sizeof text - at, "%02x", (unsigned char)data[n]);
    say(text);
}

static struct timespec within(long ms)
{
    struct timespec when;
    clock_gettime(CLOCK_REALTIME, &when);
    when.tv_sec += ms / 1000;
    when.tv_nsec += ms % 1000 * 1000000;
    if (when.tv_nsec >= 1000000000) {
        when.tv_sec++;
        when.tv_nsec -= 1000000000;
    }
    return when;
}

/* Blocks in mq_receive(3). */
static void *receiver(void *queue)
{
    char data[9000];
    unsigned priority = 0;
    ssize_t length = mq_receive((mqd_t)(long)queue, data, sizeof data, &priority);
    if (length < 0)
        say(strerrorname_np(errno));
    else
        tell("woken ", priority, data, length);
    return NULL;
}

static void *notified(void *set)
{
    int signal;
    while (sigwait(set, &signal) == 0)
        say("notified");
    return NULL;
}

int main(void)
{
    static char line[20000], word[20000], name[9000];
    static sigset_t set;
    pthread_t thread;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_create(&thread, NULL, notified, &set);
    umask(0);
    say("ready");
    while (fgets(line, sizeof line, stdin)) {
        long n[6] = {0};
        char verb[20];
        int used = 0;
        sscanf(line, "%19s %19999s%n", verb, word, &used);
        sscanf(line + used, "%ld %ld %ld %ld", &n[0], &n[1], &n[2], &n[3]);
        size_t length = plain(word, name, sizeof name - 1);
        mqd_t queue = atoi(word);
        if (strcmp(verb, "create") == 0) { /* name, access mode, mode, depth, size */
            struct mq_attr attributes = {.mq_maxmsg = n[2], .mq_msgsize = n[3]};
            name[length] = 0;
            answer(mq_open(name, O_CREAT | O_EXCL | n[0], n[1], n[2] || n[3] ? &attributes : NULL));
        } else if (strcmp(verb, "open") == 0) { /* name, access mode */
            name[length] = 0;
            answer(mq_open(name, n[0]));
        } else if (strcmp(verb, "unlink") == 0) {
            name[length] = 0;
            answer(mq_unlink(name));
        } else if (strcmp(verb, "send") == 0) { /* text, queue, priority, milliseconds */
            struct timespec when = within(n[2]);
            answer(mq_timedsend(n[0], name, length, n[1], &when));
        } else if (strcmp(verb, "zeroes") == 0) { /* length, queue */
            static char data[9000];
            struct timespec when = within(0);
            answer(mq_timedsend(n[0], data, atol(word), 0, &when));
        } else if (strcmp(verb, "receive") == 0) { /* queue, milliseconds, room */
            static char data[9000];
            struct timespec when = within(n[0]);
            unsigned priority = 0;
            ssize_t got = mq_timedreceive(queue, data, n[1] ? n[1] : (long)sizeof data, &priority, &when);
            if (got < 0)
                answer(-1);
            else
                tell("", priority, data, got);
        } else if (strcmp(verb, "wait") == 0) { /* queue */
            pthread_create(&thread, NULL, receiver, (void *)(long)queue);
            say("waiting");
        } else if (strcmp(verb, "notify") == 0) { /* queue */
            struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
            answer(mq_notify(queue, &event));
        } else if (strcmp(verb, "attributes") == 0) { /* queue */
            struct mq_attr told;
            char text[100];
            if (mq_getattr(queue, &told) < 0) {
                answer(-1);
                continue;
            }
            snprintf(text, sizeof text, "%ld %ld %ld %ld", told.mq_flags, told.mq_maxmsg, told.mq_msgsize,
                     told.mq_curmsgs);
            say(text);
        } else if (strcmp(verb, "nonblock") == 0) { /* queue, flag */
            struct mq_attr wanted = {.mq_flags = n[0] ? O_NONBLOCK : 0};
            answer(mq_setattr(queue, &wanted, NULL));
        } else if (strcmp(verb, "close") == 0) {
            answer(mq_close(queue));
        } else {
            say("what?");
        }
    }
}
