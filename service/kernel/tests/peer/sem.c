/* The C library's semaphores, one call a line: System V sets by semget(2), semop(2) and semctl(2),
 * POSIX semaphores by sem_open(3) and sem_init(3). Says a number or "ok", or the name of the errno;
 * "background" calls on a thread, which says "woken" or the name of the errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

union argument {
    int value;
    struct semid_ds *state;
    unsigned short *values;
};

struct work {
    int id;
    size_t count;
    struct sembuf operations[1024];
    sem_t *sem;
};

static struct work work;

static const char *name_of(int error) {
    return error ? strerrorname_np(error) : "ok";
}

static void say(int result) {
    if (result == -1)
        printf("%s\n", strerrorname_np(errno));
    else
        printf("%d\n", result);
}

static void *background(void *given) {
    struct work *mine = given;
    int failed = mine->sem ? sem_wait(mine->sem) : semop(mine->id, mine->operations, mine->count);
    printf("%s\n", failed ? name_of(errno) : "woken");
    free(mine);
    return NULL;
}

static void start(struct work *what) {
    struct work *mine = malloc(sizeof *mine);
    pthread_t thread;
    *mine = *what;
    pthread_create(&thread, NULL, background, mine);
    pthread_detach(thread);
}

/* "id number,operation,flags number,operation,flags ..."; "*N" repeats the one before. */
static void read_operations(char *text) {
    char *rest, *word = strtok_r(text, " \n", &rest);
    work = (struct work){.id = atoi(word)};
    while ((word = strtok_r(NULL, " \n", &rest))) {
        int number, operation, flags;
        if (sscanf(word, "%i,%i,%i", &number, &operation, &flags) == 3)
            work.operations[work.count++] = (struct sembuf){number, operation, flags};
        else
            for (int more = atoi(word + 1); more > 1; more--, work.count++)
                work.operations[work.count] = work.operations[work.count - 1];
    }
}

static void all(int id, int command, char *values) {
    struct semid_ds state;
    static unsigned short numbers[65536];
    union argument argument = {.state = &state};
    if (semctl(id, 0, IPC_STAT, argument) == -1) {
        say(-1);
        return;
    }
    char *rest, *word = strtok_r(values, " \n", &rest);
    for (size_t n = 0; word; word = strtok_r(NULL, " \n", &rest))
        numbers[n++] = atoi(word);
    argument.values = numbers;
    int failed = semctl(id, 0, command, argument);
    if (failed || command == SETALL) {
        printf("%s\n", name_of(failed ? errno : 0));
        return;
    }
    for (size_t n = 0; n < state.sem_nsems; n++)
        printf("%s%d", n ? " " : "", numbers[n]);
    puts("");
}

int main(void) {
    static char line[65536], name[4096], rest[65536];
    int a, b, c, at;
    sem_t *sem = NULL;
    setvbuf(stdout, NULL, _IOLBF, 0);
    umask(0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        struct semid_ds state;
        union argument argument = {.state = &state};
        if (sscanf(line, "get %i %i %i", &a, &b, &c) == 3) {
            say(semget(a, b, c));
        } else if (sscanf(line, "op %n%[^\n]", &at, rest) == 1) {
            read_operations(rest);
            printf("%s\n", name_of(semop(work.id, work.operations, work.count) ? errno : 0));
        } else if (sscanf(line, "background op %[^\n]", rest) == 1) {
            read_operations(rest);
            start(&work);
        } else if (sscanf(line, "value %i %i", &a, &b) == 2) {
            say(semctl(a, b, GETVAL));
        } else if (sscanf(line, "waiters %i %i", &a, &b) == 2) {
            say(semctl(a, b, GETNCNT));
        } else if (sscanf(line, "zero-waiters %i %i", &a, &b) == 2) {
            say(semctl(a, b, GETZCNT));
        } else if (sscanf(line, "pid %i %i", &a, &b) == 2) {
            say(semctl(a, b, GETPID));
        } else if (sscanf(line, "set %i %i %i", &a, &b, &c) == 3) {
            argument.value = c;
            printf("%s\n", name_of(semctl(a, b, SETVAL, argument) ? errno : 0));
        } else if (sscanf(line, "values %i", &a) == 1) {
            rest[0] = 0;
            all(a, GETALL, rest);
        } else if (sscanf(line, "set-all %i %[^\n]", &a, rest) == 2) {
            all(a, SETALL, rest);
        } else if (sscanf(line, "remove %i", &a) == 1) {
            printf("%s\n", name_of(semctl(a, 0, IPC_RMID) ? errno : 0));
        } else if (sscanf(line, "mode %i %i", &a, &b) == 2) {
            int failed = semctl(a, 0, IPC_STAT, argument);
            state.sem_perm.mode = b;
            printf("%s\n", name_of(failed || semctl(a, 0, IPC_SET, argument) ? errno : 0));
        } else if (sscanf(line, "when %i", &a) == 1) {
            say(semctl(a, 0, IPC_STAT, argument) ? -1 : state.sem_otime != 0);
        } else if (sscanf(line, "become %i", &a) == 1) {
            printf("%s\n", name_of(setresuid(a, a, a) ? errno : 0));
        } else if (sscanf(line, "sem_open %4095s %i %i %i", name, &a, &b, &c) == 4) {
            sem_t *opened = sem_open(name, a, (mode_t)b, (unsigned)c);
            if (opened != SEM_FAILED) sem = opened;
            printf("%s\n", name_of(opened == SEM_FAILED ? errno : 0));
        } else if (sscanf(line, "unlink %4095s", name) == 1) {
            printf("%s\n", name_of(sem_unlink(name) ? errno : 0));
        } else if (sscanf(line, "memory %4095s %i", name, &a) == 2) {
            int file = shm_open(name, O_RDWR, 0);
            void *memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
            sem = (sem_t *)((char *)memory + a);
            printf("%s\n", name_of(memory == MAP_FAILED ? errno : 0));
        } else if (sscanf(line, "segment %i %i", &a, &b) == 2) {
            char *memory = shmat(a, NULL, 0);
            sem = (sem_t *)(memory + b);
            printf("%s\n", name_of(memory == (char *)-1 ? errno : 0));
        } else if (sscanf(line, "init %i %i", &a, &b) == 2) {
            printf("%s\n", name_of(sem_init(sem, a, (unsigned)b) ? errno : 0));
        } else if (strcmp(line, "background wait\n") == 0) {
            work = (struct work){.sem = sem};
            start(&work);
        } else if (strcmp(line, "post\n") == 0) {
            printf("%s\n", name_of(sem_post(sem) ? errno : 0));
        } else if (strcmp(line, "trywait\n") == 0) {
            printf("%s\n", name_of(sem_trywait(sem) ? errno : 0));
        } else if (strcmp(line, "timedwait\n") == 0) {
            struct timespec past = {1, 0};
            printf("%s\n", name_of(sem_timedwait(sem, &past) ? errno : 0));
        } else if (strcmp(line, "getvalue\n") == 0) {
            int value;
            sem_getvalue(sem, &value);
            printf("%d\n", value);
        } else {
            printf("? %s", line);
        }
    }
    return 0;
}
