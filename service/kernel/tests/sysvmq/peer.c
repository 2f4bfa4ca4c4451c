/* A program that uses System V queues as programs do: one command a line, the result or the name of
   the errno out. Data is written in hexadecimal digits, "-" for none. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>

#define MOST (1 << 20)

static struct { long type; unsigned char data[MOST]; } message;
static char line[2 * MOST + 256], hex[2 * MOST + 1];

static void result(long value) {
    if (value == -1) printf("%s\n", strerrorname_np(errno));
    else printf("ok %ld\n", value);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        int id, flags, length;
        long type, key;
        unsigned uid, gid, mode;
        unsigned long size;
        char path[4096];
        if (sscanf(line, "get %ld %o", &key, (unsigned *)&flags) == 2) {
            result(msgget((key_t)key, flags));
        } else if (sscanf(line, "ftok %4095s %d", path, &id) == 2) {
            result((unsigned)ftok(path, id));
        } else if (sscanf(line, "snd %d %ld %o %s", &id, &type, (unsigned *)&flags, hex) == 4) {
            message.type = type;
            length = hex[0] == '-' ? 0 : (int)strlen(hex) / 2;
            for (int n = 0; n < length; n++) sscanf(hex + 2 * n, "%2hhx", &message.data[n]);
            result(msgsnd(id, &message, length, flags));
        } else if (sscanf(line, "sndsize %d %ld %o %lu", &id, &type, (unsigned *)&flags, &size) == 4) {
            message.type = type;
            memset(message.data, 'x', MOST);
            result(msgsnd(id, &message, size, flags));
        } else if (sscanf(line, "rcv %d %lu %ld %o", &id, &size, &type, (unsigned *)&flags) == 4) {
            long got = msgrcv(id, &message, size, type, flags);
            if (got == -1) {
                result(got);
                continue;
            }
            for (long n = 0; n < got; n++) sprintf(hex + 2 * n, "%02x", message.data[n]);
            printf("ok %ld %s\n", message.type, got ? hex : "-");
        } else if (sscanf(line, "stat %d", &id) == 1) {
            struct msqid_ds ds;
            if (msgctl(id, IPC_STAT, &ds) == -1) {
                result(-1);
                continue;
            }
            printf("ok %u %u %u %u %u %lu %lu %lu %d %d %ld %ld %ld\n", ds.msg_perm.uid, ds.msg_perm.gid,
                   ds.msg_perm.cuid, ds.msg_perm.cgid, ds.msg_perm.mode, ds.__msg_cbytes, ds.msg_qnum,
                   ds.msg_qbytes, ds.msg_lspid, ds.msg_lrpid, ds.msg_stime, ds.msg_rtime, ds.msg_ctime);
        } else if (sscanf(line, "set %d %u %u %o %lu", &id, &uid, &gid, &mode, &size) == 5) {
            struct msqid_ds ds = {.msg_perm = {.uid = uid, .gid = gid, .mode = mode}, .msg_qbytes = size};
            result(msgctl(id, IPC_SET, &ds));
        } else if (sscanf(line, "rm %d", &id) == 1) {
            result(msgctl(id, IPC_RMID, NULL));
        } else {
            puts("what?");
        }
    }
}
