/* The peer of message relays: receive from one, send to the other, as plainly as C allows. Also the writer and the
   reader at both ends, so that whatever is measured between them has the same neighbours.

     loop move SOURCE SINK        for ever
     loop write SINK COUNT SIZE
     loop read SOURCE COUNT       prints the seconds from the first message to the last

   An end is /NAME (mq_open(3)), a number (msgget(2), the key), or - (a datagram socket, standard input). */

#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/socket.h>
#include <time.h>

enum kind { POSIX, SYSV, DATAGRAM };

struct end {
    enum kind kind;
    mqd_t queue;
    int id;
};

static struct {
    long type;
    char data[8192];
} message;

static void failed(const char *what)
{
    perror(what);
    exit(1);
}

static struct end opened(const char *name)
{
    struct end end = { DATAGRAM, 0, 0 };
    if (name[0] == '/') {
        end.kind = POSIX;
        end.queue = mq_open(name, O_RDWR);
        if (end.queue == (mqd_t)-1)
            failed(name);
    } else if (name[0] != '-') {
        end.kind = SYSV;
        end.id = msgget((key_t)strtoul(name, NULL, 0), 0);
        if (end.id < 0)
            failed(name);
    }
    return end;
}

static size_t receive(struct end *end)
{
    unsigned int priority;
    ssize_t size = -1;
    switch (end->kind) {
    case POSIX:
        size = mq_receive(end->queue, message.data, sizeof message.data, &priority);
        break;
    case SYSV:
        size = msgrcv(end->id, &message, sizeof message.data, 0, 0);
        break;
    case DATAGRAM:
        size = recv(0, message.data, sizeof message.data, 0);
        break;
    }
    if (size < 0)
        failed("receive");
    return (size_t)size;
}

static void transmit(struct end *end, size_t size)
{
    int done = -1;
    switch (end->kind) {
    case POSIX:
        done = mq_send(end->queue, message.data, size, 0);
        break;
    case SYSV:
        message.type = 1;
        done = msgsnd(end->id, &message, size, 0);
        break;
    case DATAGRAM:
        done = send(0, message.data, size, 0) < 0 ? -1 : 0;
        break;
    }
    if (done < 0)
        failed("send");
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(int count, char **words)
{
    if (count == 4 && strcmp(words[1], "move") == 0) {
        struct end source = opened(words[2]), sink = opened(words[3]);
        for (;;)
            transmit(&sink, receive(&source));
    }
    if (count == 5 && strcmp(words[1], "write") == 0) {
        struct end sink = opened(words[2]);
        long left = atol(words[3]);
        size_t size = (size_t)atol(words[4]);
        memset(message.data, 'x', sizeof message.data);
        while (left-- > 0)
            transmit(&sink, size);
        return 0;
    }
    if (count == 4 && strcmp(words[1], "read") == 0) {
        struct end source = opened(words[2]);
        long left = atol(words[3]);
        receive(&source);
        double started = now();
        while (--left > 0)
            receive(&source);
        printf("%.9f\n", now() - started);
        return 0;
    }
    fprintf(stderr, "move SOURCE SINK, write SINK COUNT SIZE or read SOURCE COUNT\n");
    return 2;
}
