// FILTER [COMMAND...]: limits itself, and becomes the command. Without a command, says that it has
// limited itself by a byte, and waits for the end of its standard input.
#define _GNU_SOURCE
#include "say.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static void forbid(int call, unsigned action) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no new privileges");
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
}

int main(int argc, char **argv) {
    check(argc >= 2, "usage: filtered FILTER [COMMAND...]");
    const char *filter = argv[1];
    if (strcmp(filter, "none") == 0) forbid(SYS_personality, SECCOMP_RET_KILL_PROCESS);
    if (strcmp(filter, "futex") == 0) forbid(SYS_futex, SECCOMP_RET_KILL_PROCESS);
    if (strcmp(filter, "memfd") == 0) forbid(SYS_memfd_create, SECCOMP_RET_TRAP);
    if (strcmp(filter, "nomemfd") == 0) forbid(SYS_memfd_create, SECCOMP_RET_ERRNO | 1);
    if (strcmp(filter, "noptrace") == 0) forbid(SYS_ptrace, SECCOMP_RET_ERRNO | 1);
    if (strcmp(filter, "nommap") == 0) forbid(SYS_mmap, SECCOMP_RET_ERRNO | 12);
    if (strcmp(filter, "fsize") == 0) {
        struct rlimit limit = {1 << 20, 1 << 20};
        check(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
    }
    if (strcmp(filter, "strict") == 0) check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0, "strict");
    if (argc > 2) execvp(argv[2], argv + 2);
    if (write(1, ".", 1) != 1) return 1;
    char byte;
    while (read(0, &byte, 1) > 0) continue;
    // exit_group is forbidden in strict mode.
    syscall(SYS_exit, 0);
    return 1;
}
