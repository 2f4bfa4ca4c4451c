/* A byte through one of many relays after the other, by the smallest relay there is: one epoll(7) loop in a process
 * of its own that receives and sends. For each line of input it says how many µs a byte took. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

struct hop { int into[2], out[2]; };

static void check(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
}

static void relay(struct hop *hops, int count)
{
    int place = epoll_create1(EPOLL_CLOEXEC);
    check(place, "epoll_create1");
    for (int n = 0; n < count; n++) {
        struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u32 = n };
        check(epoll_ctl(place, EPOLL_CTL_ADD, hops[n].into[1], &event), "epoll_ctl");
    }
    for (;;) {
        struct epoll_event events[64];
        int ready = epoll_wait(place, events, 64, -1);
        check(ready, "epoll_wait");
        for (int n = 0; n < ready; n++) {
            struct hop *hop = &hops[events[n].data.u32];
            char data[4096];
            ssize_t got;
            while ((got = recv(hop->into[1], data, sizeof data, MSG_DONTWAIT)) > 0)
                check(send(hop->out[0], data, got, MSG_NOSIGNAL), "send");
        }
    }
}

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[1]) : 1, batch = argc > 2 ? atoi(argv[2]) : 1;
    struct hop *hops = calloc(count, sizeof *hops);
    for (int n = 0; n < count; n++) {
        check(socketpair(AF_UNIX, SOCK_STREAM, 0, hops[n].into), "socketpair");
        check(socketpair(AF_UNIX, SOCK_STREAM, 0, hops[n].out), "socketpair");
    }
    pid_t child = fork();
    check(child, "fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        relay(hops, count);
    }
    char line[16];
    while (fgets(line, sizeof line, stdin)) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        for (int n = 0; n < batch; n++) {
            struct hop *hop = &hops[n % count];
            char byte = 'x';
            check(write(hop->into[0], &byte, 1), "write");
            check(read(hop->out[1], &byte, 1), "read");
        }
        clock_gettime(CLOCK_MONOTONIC, &to);
        printf("%.3f\n", ((to.tv_sec - from.tv_sec) * 1e6 + (to.tv_nsec - from.tv_nsec) / 1e3) / batch);
        fflush(stdout);
    }
    return 0;
}
