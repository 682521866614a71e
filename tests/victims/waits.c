// KIND: waits in this way until standard input ends, while nothing else in the process runs; exits
// with 0. The kind `handler` is not in the list: it waits in a signal handler, where no thread can
// be borrowed.
//
// A helper process holds the awaited resource, reads standard input, and then releases the
// resource. `waits list` prints all kinds.
#define _GNU_SOURCE
#include "say.h"
#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <search.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <threads.h>
#include <time.h>
#include <wchar.h>

// What this process and the helper share.
static struct {
    sem_t semaphore;
    pthread_mutex_t mutex, other;
    pthread_rwlock_t rwlock;
    pthread_cond_t cond;
    pthread_barrier_t barrier;
    int is_released;
} *shared;
static int pair[2], event, queue, set, file;
static char folder[] = "/tmp/waits-XXXXXX", path[64], fifo[64];
static pid_t waiter, helper;

static struct timespec in_an_hour(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    time.tv_sec += 3600;
    return time;
}
#define AGAIN(call)                                                                                                    \
    ({                                                                                                                 \
        long result;                                                                                                   \
        while ((result = (call)) == -1 && errno == EINTR) continue;                                                    \
        result;                                                                                                        \
    })

struct kind {
    const char *name;
    int (*wait)(void);
    void (*release)(void);
    void (*hold)(void);
};

// Streams: nothing comes, then standard input ends.
static int in_getchar(void) { return getchar() == EOF; }
static int in_getc(void) { return getc(stdin) == EOF; }
static int in_fgetc(void) { return fgetc(stdin) == EOF; }
static int in_getc_unlocked(void) { return getc_unlocked(stdin) == EOF; }
static int in_getwchar(void) { return getwchar() == WEOF; }
static int in_fgets(void) { char line[9]; return fgets(line, sizeof line, stdin) == NULL; }
static int in_fread(void) { char bytes[9]; return fread(bytes, 1, sizeof bytes, stdin) == 0; }
static int in_getline(void) { char *line = NULL; size_t room = 0; return getline(&line, &room, stdin) == -1; }
static int in_scanf(void) { int number; return scanf("%d", &number) == EOF; }
static int in_wscanf(void) { int number; return wscanf(L"%d", &number) == EOF; }
// Output: a pipe that nobody reads from, until the helper does.
static FILE *full(void) {
    fcntl(pair[1], F_SETFL, O_NONBLOCK);
    char page[4096] = {0};
    while (write(pair[1], page, sizeof page) > 0) continue;
    fcntl(pair[1], F_SETFL, 0);
    return fdopen(pair[1], "w");
}
static int in_fflush(void) { FILE *to = full(); return fputs("text", to) >= 0 && fflush(to) == 0; }
static int in_fprintf(void) { FILE *to = full(); setvbuf(to, NULL, _IONBF, 0); return fprintf(to, "%d", 12345) == 5; }
static int in_fputs(void) { FILE *to = full(); setvbuf(to, NULL, _IONBF, 0); return fputs("text", to) >= 0; }
static int in_fclose(void) { FILE *to = full(); return fputs("text", to) >= 0 && fclose(to) == 0; }
static int in_dprintf(void) { full(); return dprintf(pair[1], "%d", 12345) == 5; }
static void drain(void) { char page[4096]; while (recv(pair[0], page, sizeof page, MSG_DONTWAIT) > 0) continue; }
// A stream whose bytes come from the program itself.
static ssize_t from_cookie(void *cookie, char *bytes, size_t room) { return read(0, bytes, room); }
static int in_cookie(void) { return fgetc(fopencookie(NULL, "r", (cookie_io_functions_t){.read = from_cookie})) == EOF; }

// Programs.
static int in_system(void) { return system("cat >/dev/null") == 0; }
static int in_pclose(void) { return pclose(popen("cat", "r")) == 0; }
static int in_popen_read(void) { return fgetc(popen("cat", "r")) == EOF; }
static int in_waitpid(void) { int status; return waitpid(helper, &status, 0) == helper; }
static int in_waitid(void) { siginfo_t info; return waitid(P_PID, (id_t)helper, &info, WEXITED) == 0; }

// Semaphores and locks.
static int in_sem_wait(void) { return AGAIN(sem_wait(&shared->semaphore)) == 0; }
static int in_sem_timedwait(void) {
    struct timespec end = in_an_hour(CLOCK_REALTIME);
    return AGAIN(sem_timedwait(&shared->semaphore, &end)) == 0;
}
#ifdef __GLIBC__
static int in_sem_clockwait(void) {
    struct timespec end = in_an_hour(CLOCK_MONOTONIC);
    return AGAIN(sem_clockwait(&shared->semaphore, CLOCK_MONOTONIC, &end)) == 0;
}
#endif
static void post(void) { sem_post(&shared->semaphore); }
static void lock(void) { pthread_mutex_lock(&shared->mutex); }
static void unlock(void) { pthread_mutex_unlock(&shared->mutex); }
static int in_mutex(void) { return pthread_mutex_lock(&shared->mutex) == 0; }
static int in_mutex_timed(void) {
    struct timespec end = in_an_hour(CLOCK_REALTIME);
    return pthread_mutex_timedlock(&shared->mutex, &end) == 0;
}
static void lock_other(void) { pthread_mutex_lock(&shared->other); }
static void unlock_other(void) { pthread_mutex_unlock(&shared->other); }
static int in_mutex_inheriting(void) { return pthread_mutex_lock(&shared->other) == 0; }
static void write_lock(void) { pthread_rwlock_wrlock(&shared->rwlock); }
static void unlock_rwlock(void) { pthread_rwlock_unlock(&shared->rwlock); }
static int in_rdlock(void) { return pthread_rwlock_rdlock(&shared->rwlock) == 0; }
static int in_wrlock(void) { return pthread_rwlock_wrlock(&shared->rwlock) == 0; }
static int in_rdlock_timed(void) {
    struct timespec end = in_an_hour(CLOCK_REALTIME);
    return pthread_rwlock_timedrdlock(&shared->rwlock, &end) == 0;
}
static int in_cond(void) {
    lock();
    while (!shared->is_released) pthread_cond_wait(&shared->cond, &shared->mutex);
    unlock();
    return 1;
}
static int in_cond_timed(void) {
    struct timespec end = in_an_hour(CLOCK_REALTIME);
    lock();
    while (!shared->is_released) pthread_cond_timedwait(&shared->cond, &shared->mutex, &end);
    unlock();
    return 1;
}
static void wake(void) {
    lock();
    shared->is_released = 1;
    pthread_cond_broadcast(&shared->cond);
    unlock();
}
static int in_barrier(void) { pthread_barrier_wait(&shared->barrier); return 1; }
static void meet(void) { pthread_barrier_wait(&shared->barrier); }

// Other threads, all of which wait as well.
static void *thread(void *unused) { in_sem_wait(); return NULL; }
static int c11_thread(void *unused) { return !in_sem_wait(); }
static pthread_t started(void *(*start)(void *)) {
    pthread_t thread;
    check(pthread_create(&thread, NULL, start, NULL) == 0, "pthread_create");
    return thread;
}
static int in_join(void) { return pthread_join(started(thread), NULL) == 0; }
static int in_join_timed(void) {
    struct timespec end = in_an_hour(CLOCK_REALTIME);
    return pthread_timedjoin_np(started(thread), NULL, &end) == 0;
}
static int in_thrd_join(void) {
    thrd_t thread;
    int result = 1;
    return thrd_create(&thread, c11_thread, NULL) == thrd_success && thrd_join(thread, &result) == 0 && result == 0;
}
static mtx_t c11_mutex;
static cnd_t c11_cond;
static sem_t is_locked;
static void *mtx_holder(void *unused) { mtx_lock(&c11_mutex); sem_post(&is_locked); in_sem_wait(); mtx_unlock(&c11_mutex); return NULL; }
static int in_mtx(void) {
    mtx_init(&c11_mutex, mtx_plain);
    started(mtx_holder);
    sem_wait(&is_locked);
    return mtx_lock(&c11_mutex) == thrd_success;
}
static int c11_is_released;
static void *cnd_waker(void *unused) {
    in_sem_wait();
    mtx_lock(&c11_mutex);
    c11_is_released = 1;
    cnd_signal(&c11_cond);
    mtx_unlock(&c11_mutex);
    return NULL;
}
static int in_cnd(void) {
    mtx_init(&c11_mutex, mtx_plain);
    cnd_init(&c11_cond);
    started(cnd_waker);
    mtx_lock(&c11_mutex);
    while (!c11_is_released) cnd_wait(&c11_cond, &c11_mutex);
    return 1;
}
static void *file_holder(void *unused) { flockfile(stdout); sem_post(&is_locked); in_sem_wait(); funlockfile(stdout); return NULL; }
static int in_flockfile(void) { started(file_holder); sem_wait(&is_locked); flockfile(stdout); return 1; }
static int in_puts_locked(void) { started(file_holder); sem_wait(&is_locked); return fputs("", stdout) >= 0; }
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void slow_once(void) { sem_post(&is_locked); in_sem_wait(); }
static void *once_holder(void *unused) { pthread_once(&once, slow_once); return NULL; }
static int in_once(void) { started(once_holder); sem_wait(&is_locked); return pthread_once(&once, slow_once) == 0; }
static int in_once_itself(void) { return pthread_once(&once, slow_once) == 0; }

// What the C library calls back.
static int compare(const void *a, const void *b) { static int did; if (!did++) in_sem_wait(); return 0; }
static int in_qsort(void) { int numbers[2] = {2, 1}; qsort(numbers, 2, sizeof(int), compare); return 1; }
static int in_bsearch(void) { int numbers[2] = {2, 1}; return bsearch(numbers, numbers, 2, sizeof(int), compare) != NULL; }
static int visit(const char *name, const struct stat *stat, int kind, struct FTW *at) { in_sem_wait(); return 1; }
static int in_nftw(void) { return nftw("/proc/self/task", visit, 3, FTW_PHYS) == 1; }

// Files.
static int set_lock(int command, short kind) {
    struct flock range = {.l_type = kind, .l_whence = SEEK_SET, .l_len = 1};
    return (int)AGAIN(fcntl(open(path, O_RDWR), command, &range));
}
static void hold_file(void) { set_lock(F_SETLK, F_WRLCK); }
static void release_file(void) { close(open(path, O_RDWR)); }
static int in_setlkw(void) { return set_lock(F_SETLKW, F_WRLCK) == 0; }
static int in_ofd_setlkw(void) { return set_lock(F_OFD_SETLKW, F_WRLCK) == 0; }
static int in_lockf(void) { return AGAIN(lockf(open(path, O_RDWR), F_LOCK, 1)) == 0; }
static void hold_flock(void) { flock(file = open(path, O_RDWR), LOCK_EX); }
static void release_flock(void) { flock(file, LOCK_UN); }
static int in_flock(void) { return AGAIN(flock(open(path, O_RDWR), LOCK_EX)) == 0; }
static void open_fifo(void) { close(open(fifo, O_WRONLY)); }
static int in_open(void) { return open(fifo, O_RDONLY) >= 0; }
static int in_fopen(void) { return fopen(fifo, "r") != NULL; }
static int in_read(void) { char byte; return read(0, &byte, 1) == 0; }
static int in_eventfd(void) { eventfd_t value; return eventfd_read(event, &value) == 0; }
static void signal_event(void) { eventfd_write(event, 1); }
#ifdef __GLIBC__
static int in_aio(void) {
    static char byte;
    struct aiocb request = {.aio_fildes = event, .aio_buf = &byte, .aio_nbytes = 8};
    const struct aiocb *list[] = {&request};
    static char room[8];
    request.aio_buf = room;
    return aio_read(&request) == 0 && AGAIN(aio_suspend(list, 1, NULL)) == 0;
}
#endif

// Sockets, and waits for several.
static int in_accept(void) {
    int listening = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un *name = (void *)(char[110]){0};
    memcpy(name, (char[]){AF_UNIX, 0}, 2);
    strcpy((char *)name + 2, path);
    unlink(path);
    check(bind(listening, (void *)name, 110) == 0 && listen(listening, 1) == 0, "listen");
    return accept(listening, NULL, NULL) >= 0;
}
static void call_up(void) {
    struct sockaddr_un *name = (void *)(char[110]){0};
    memcpy(name, (char[]){AF_UNIX, 0}, 2);
    strcpy((char *)name + 2, path);
    connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)name, 110);
}
static int in_recv(void) { char byte; return recv(pair[0], &byte, 1, 0) == 1; }
static int in_recvmsg(void) {
    char byte;
    struct iovec to = {&byte, 1};
    struct msghdr message = {.msg_iov = &to, .msg_iovlen = 1};
    return recvmsg(pair[0], &message, 0) == 1;
}
static void say_byte(void) { write(pair[1], "x", 1); }
static int in_poll(void) { struct pollfd fd = {.fd = 0, .events = POLLIN}; return AGAIN(poll(&fd, 1, -1)) == 1; }
static int in_ppoll(void) { struct pollfd fd = {.fd = 0, .events = POLLIN}; return AGAIN(ppoll(&fd, 1, NULL, NULL)) == 1; }
static int in_select(void) { fd_set fds; FD_ZERO(&fds); FD_SET(0, &fds); return AGAIN(select(1, &fds, NULL, NULL, NULL)) == 1; }
static int in_epoll(void) {
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);
    return AGAIN(epoll_wait(epoll, &event, 1, -1)) == 1;
}

// Signals, messages, time.
static sigset_t signals(void) { sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR1); sigprocmask(SIG_BLOCK, &set, NULL); return set; }
static int in_sigwait(void) { sigset_t set = signals(); int got; return sigwait(&set, &got) == 0 && got == SIGUSR1; }
static int in_sigwaitinfo(void) { sigset_t set = signals(); return AGAIN(sigwaitinfo(&set, NULL)) == SIGUSR1; }
static void on_signal(int signal) {}
static int in_pause(void) { signal(SIGUSR1, on_signal); return pause() == -1 && errno == EINTR; }
static int in_sigsuspend(void) { sigset_t none; signal(SIGUSR1, on_signal); sigemptyset(&none); return sigsuspend(&none) == -1; }
static void send_signal(void) { kill(waiter, SIGUSR1); }
static void on_long_signal(int signal) { in_sem_wait(); }
static int in_handler(void) { signal(SIGUSR2, on_long_signal); return raise(SIGUSR2) == 0; }
static const struct kind HANDLER = {"handler", in_handler, post};
struct text { long kind; char byte; };
static int in_msgrcv(void) { struct text text; return AGAIN(msgrcv(queue, &text, 1, 0, 0)) == 1; }
static void send_text(void) { struct text text = {.kind = 1}; msgsnd(queue, &text, 1, 0); }
static int in_semop(void) { struct sembuf down = {.sem_op = -1}; return AGAIN(semop(set, &down, 1)) == 0; }
static void raise_set(void) { struct sembuf up = {.sem_op = 1}; semop(set, &up, 1); }
static struct timespec moment = {0, 300000000};
static int in_nanosleep(void) { while (!shared->is_released) if (nanosleep(&moment, NULL) != 0) return 0; return 1; }
static int in_thrd_sleep(void) { while (!shared->is_released) if (thrd_sleep(&moment, NULL) != 0) return 0; return 1; }
static int in_sleep(void) { while (!shared->is_released) if (sleep(1) != 0) return 0; return 1; }

static const struct kind KINDS[] = {
    {"getchar", in_getchar}, {"getc", in_getc}, {"fgetc", in_fgetc}, {"getc_unlocked", in_getc_unlocked},
    {"getwchar", in_getwchar}, {"fgets", in_fgets}, {"fread", in_fread}, {"getline", in_getline}, {"scanf", in_scanf},
    {"wscanf", in_wscanf}, {"fflush", in_fflush, drain}, {"fprintf", in_fprintf, drain}, {"fputs", in_fputs, drain},
    {"fclose", in_fclose, drain}, {"dprintf", in_dprintf, drain}, {"cookie", in_cookie}, {"system", in_system},
    {"pclose", in_pclose}, {"popen", in_popen_read}, {"waitpid", in_waitpid}, {"waitid", in_waitid},
    {"sem_wait", in_sem_wait, post}, {"sem_timedwait", in_sem_timedwait, post},
#ifdef __GLIBC__
    {"sem_clockwait", in_sem_clockwait, post},
#endif
    {"mutex", in_mutex, unlock, lock}, {"mutex-timed", in_mutex_timed, unlock, lock},
    {"mutex-inheriting", in_mutex_inheriting, unlock_other, lock_other}, {"rdlock", in_rdlock, unlock_rwlock, write_lock},
    {"wrlock", in_wrlock, unlock_rwlock, write_lock}, {"rdlock-timed", in_rdlock_timed, unlock_rwlock, write_lock},
    {"cond", in_cond, wake}, {"cond-timed", in_cond_timed, wake}, {"barrier", in_barrier, meet}, {"join", in_join, post},
    {"join-timed", in_join_timed, post}, {"thrd_join", in_thrd_join, post}, {"mtx", in_mtx, post}, {"cnd", in_cnd, post},
    {"flockfile", in_flockfile, post}, {"puts-locked", in_puts_locked, post}, {"once", in_once, post},
    {"once-itself", in_once_itself, post}, {"qsort", in_qsort, post}, {"bsearch", in_bsearch, post}, {"nftw", in_nftw, post},
    {"setlkw", in_setlkw, release_file, hold_file}, {"ofd-setlkw", in_ofd_setlkw, release_file, hold_file},
    {"lockf", in_lockf, release_file, hold_file}, {"flock", in_flock, release_flock, hold_flock}, {"open", in_open, open_fifo},
    {"fopen", in_fopen, open_fifo}, {"read", in_read}, {"eventfd", in_eventfd, signal_event},
#ifdef __GLIBC__
    {"aio", in_aio, signal_event},
#endif
    {"accept", in_accept, call_up}, {"recv", in_recv, say_byte}, {"recvmsg", in_recvmsg, say_byte}, {"poll", in_poll},
    {"ppoll", in_ppoll}, {"select", in_select}, {"epoll", in_epoll}, {"sigwait", in_sigwait, send_signal},
    {"sigwaitinfo", in_sigwaitinfo, send_signal}, {"pause", in_pause, send_signal}, {"sigsuspend", in_sigsuspend, send_signal},
    {"msgrcv", in_msgrcv, send_text}, {"semop", in_semop, raise_set}, {"nanosleep", in_nanosleep, wake},
    {"thrd_sleep", in_thrd_sleep, wake}, {"sleep", in_sleep, wake},
};
enum { COUNT = sizeof KINDS / sizeof *KINDS };

static void prepare(void) {
    check(mkdtemp(folder) != NULL, "mkdtemp");
    snprintf(path, sizeof path, "%s/file", folder);
    snprintf(fifo, sizeof fifo, "%s/fifo", folder);
    check(close(open(path, O_CREAT | O_RDWR, 0600)) == 0 && mkfifo(fifo, 0600) == 0, "files");
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sem_init(&shared->semaphore, 1, 0);
    pthread_mutexattr_t mutex;
    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->mutex, &mutex);
    pthread_mutexattr_setprotocol(&mutex, PTHREAD_PRIO_INHERIT);
    pthread_mutexattr_setrobust(&mutex, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&shared->other, &mutex);
    pthread_rwlockattr_t rwlock;
    pthread_rwlockattr_init(&rwlock);
    pthread_rwlockattr_setpshared(&rwlock, PTHREAD_PROCESS_SHARED);
    pthread_rwlock_init(&shared->rwlock, &rwlock);
    pthread_condattr_t cond;
    pthread_condattr_init(&cond);
    pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&shared->cond, &cond);
    pthread_barrierattr_t barrier;
    pthread_barrierattr_init(&barrier);
    pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&shared->barrier, &barrier, 2);
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    event = eventfd(0, 0);
    queue = msgget(IPC_PRIVATE, 0600);
    set = semget(IPC_PRIVATE, 1, 0600);
    sem_init(&is_locked, 0, 0);
}

// Runs in the helper: holds, says that it does, waits for the end of standard input, releases.
static void help(const struct kind *kind, int ready) {
    if (kind->hold) kind->hold();
    check(write(ready, "", 1) == 1, "ready");
    struct pollfd input = {.fd = 0, .events = POLLIN};
    poll(&input, 1, -1);
    if (kind->release) kind->release();
    _exit(0);
}

int main(int argc, char **argv) {
    check(argc == 2, "usage: waits KIND");
    const struct kind *kind = strcmp(argv[1], HANDLER.name) == 0 ? &HANDLER : NULL;
    for (int i = 0; i < COUNT; i++) {
        if (strcmp(argv[1], "list") == 0) puts(KINDS[i].name);
        if (strcmp(argv[1], KINDS[i].name) == 0) kind = &KINDS[i];
    }
    if (!kind) return strcmp(argv[1], "list") != 0;
    prepare();
    waiter = getpid();
    int ready[2];
    char byte;
    check(pipe(ready) == 0, "pipe");
    signal(SIGPIPE, SIG_IGN);
    helper = fork();
    if (helper == 0) help(kind, ready[1]);
    check(read(ready[0], &byte, 1) == 1, "the helper");
    check(write(1, ".", 1) == 1, "it waits");
    int is_well = kind->wait();
    unlink(path), unlink(fifo), rmdir(folder);
    msgctl(queue, IPC_RMID, NULL), semctl(set, 0, IPC_RMID);
    return !is_well;
}
