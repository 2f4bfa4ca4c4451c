/* The C library's shared memory, one call a line: POSIX objects by shm_open(3) and mmap(2), System V
 * segments by shmget(2), shmat(2) and shmctl(2). Says "ok" or a number, or the name of the errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

static int file = -1;
static unsigned char *memory;
static size_t length;

static void say(long long result) {
    if (result == -1)
        printf("%s\n", strerrorname_np(errno));
    else
        printf("%lld\n", result);
}

int main(void) {
    static char line[8192], name[4096];
    setvbuf(stdout, NULL, _IOLBF, 0);
    umask(0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        long long a, b, c;
        int flags;
        if (sscanf(line, "open %4095s %i %lli", name, &flags, &a) == 3) {
            /* Until a new object has its name, an older one stays open. */
            int opened = shm_open(name, flags, (mode_t)a);
            if (opened >= 0) {
                if (file >= 0) close(file);
                file = opened;
            }
            say(opened < 0 ? -1 : 0);
        } else if (sscanf(line, "unlink %4095s", name) == 1) {
            say(shm_unlink(name));
        } else if (sscanf(line, "truncate %lli", &a) == 1) {
            say(ftruncate(file, a));
        } else if (sscanf(line, "map %lli %lli", &a, &b) == 2) {
            void *at = mmap(NULL, a, b ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file, 0);
            if (at != MAP_FAILED) memory = at, length = a;
            say(at == MAP_FAILED ? -1 : 0);
        } else if (strcmp(line, "unmap\n") == 0) {
            say(munmap(memory, length));
        } else if (strcmp(line, "close\n") == 0) {
            say(close(file));
            file = -1;
        } else if (sscanf(line, "get %lli %lli %lli", &a, &b, &c) == 3) {
            say(shmget((key_t)a, (size_t)b, (int)c));
        } else if (sscanf(line, "at %lli %lli", &a, &b) == 2) {
            void *at = shmat((int)a, NULL, (int)b);
            if (at != (void *)-1) memory = at;
            say(at == (void *)-1 ? -1 : 0);
        } else if (strcmp(line, "dt\n") == 0) {
            say(shmdt(memory));
        } else if (sscanf(line, "ctl %lli %lli", &a, &b) == 2) {
            struct shmid_ds state;
            long long result = shmctl((int)a, (int)b, &state);
            if (result >= 0 && b == IPC_STAT)
                printf("key=%d size=%zu mode=%o uid=%u gid=%u cuid=%u cgid=%u cpid=%d lpid=%d nattch=%lu "
                       "atime=%ld dtime=%ld ctime=%ld\n",
                       state.shm_perm.__key, state.shm_segsz, state.shm_perm.mode, state.shm_perm.uid,
                       state.shm_perm.gid, state.shm_perm.cuid, state.shm_perm.cgid, state.shm_cpid,
                       state.shm_lpid, state.shm_nattch, state.shm_atime, state.shm_dtime, state.shm_ctime);
            else
                say(result);
        } else if (sscanf(line, "set %lli %lli %lli", &a, &b, &c) == 3) {
            struct shmid_ds state;
            long long result = shmctl((int)a, IPC_STAT, &state);
            state.shm_perm.mode = (unsigned short)b;
            state.shm_perm.uid = (uid_t)c;
            say(result < 0 ? result : shmctl((int)a, IPC_SET, &state));
        } else if (sscanf(line, "load %lli", &a) == 1) {
            printf("%u\n", __atomic_load_n((uint32_t *)(memory + a), __ATOMIC_SEQ_CST));
        } else if (sscanf(line, "store %lli %lli", &a, &b) == 2) {
            __atomic_store_n((uint32_t *)(memory + a), (uint32_t)b, __ATOMIC_SEQ_CST);
            puts("0");
        } else if (sscanf(line, "add %lli %lli", &a, &b) == 2) {
            for (long long n = 0; n < b; n++) __atomic_fetch_add((uint32_t *)(memory + a), 1, __ATOMIC_SEQ_CST);
            puts("0");
        } else if (sscanf(line, "storm %lli %lli", &a, &b) == 2) {
            for (long long n = 0; n < a; n++)
                if (ftruncate(file, 0) || ftruncate(file, b)) break;
            puts("0");
        } else if (sscanf(line, "setuid %lli", &a) == 1) {
            say(setgid((gid_t)a) ? -1 : setuid((uid_t)a));
        } else if (sscanf(line, "umask %lli", &a) == 1) {
            umask((mode_t)a);
            puts("0");
        } else {
            printf("cannot read: %s", line);
        }
    }
    return 0;
}
