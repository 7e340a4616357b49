/*
 * Counts the operations of a process that change files, and disturbs one of them. The tests preload
 * it into the binary.
 *
 *   FAULTS_LOG      appends a line for each operation to this file: its number, its name, a path
 *   FAULTS_AT       the number of the operation to disturb, from 1
 *   FAULTS_DO       how:
 *                     kill-before, kill-after   SIGKILL before the operation, or once it is done
 *                     fail                      it fails with FAULTS_CODE, an errno
 *                     short                     a write stores half of its bytes, and the next
 *                                               write fails with FAULTS_CODE; another operation
 *                                               fails
 *                     full                      from here on all that takes space fails with
 *                                               FAULTS_CODE
 *                     signal                    the process gets the signal FAULTS_CODE, goes on
 *   FAULTS_WITHOUT  what the file system lacks, such as "exchange,link": renameat2 with flags fails
 *                   with EINVAL, link with EPERM
 *
 * An operation is: an open that may create or truncate, a write of any kind to a regular file, a
 * rename, a link, the making or removal of a file or folder, a truncation, a change of mode, or a
 * sync. Locks, reads, standard streams, pipes, and what is below /proc and /dev do not count.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* What happens to an operation. */
enum verdict { PASS, FAIL, HALF, KILL_AFTER };
/* Whether it needs room on the disk. */
enum space { FREES, TAKES };

static atomic_long counter;
static atomic_int disk_is_full, next_write_fails;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static long (*real_syscall)(long, ...);
static long at;
static int code, without_exchange, without_link, log_file = -1;
static char how[16];

static void setup(void) {
    const char *text = getenv("FAULTS_AT");
    real_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    at = text ? atol(text) : 0;
    text = getenv("FAULTS_CODE");
    code = text ? atoi(text) : EIO;
    text = getenv("FAULTS_DO");
    snprintf(how, sizeof how, "%s", text ? text : "");
    text = getenv("FAULTS_WITHOUT");
    without_exchange = text && strstr(text, "exchange");
    without_link = text && strstr(text, "link");
    text = getenv("FAULTS_LOG");
    if (text)
        log_file = (int)real_syscall(SYS_openat, AT_FDCWD, text,
                                     O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
}

static void ready(void) { pthread_once(&once, setup); }

/* Whether a path is that of a file on a disk. */
static int on_disk(const char *path) {
    return strncmp(path, "/proc/", 6) && strncmp(path, "/dev/", 5) && strncmp(path, "/sys/", 5);
}

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static enum verdict operation(const char *name, const char *path, enum space space, int is_write) {
    ready();
    long number = atomic_fetch_add(&counter, 1) + 1;
    if (log_file >= 0) {
        char line[1200];
        const char *shown = path ? path : "";
        int length = snprintf(line, sizeof line, "%ld %s %.1000s\n", number, name, shown);
        real_syscall(SYS_write, log_file, line, (long)length);
    }
    if ((is_write && atomic_exchange(&next_write_fails, 0)) ||
        (space == TAKES && atomic_load(&disk_is_full))) {
        errno = code;
        return FAIL;
    }
    if (number != at)
        return PASS;
    if (!strcmp(how, "kill-before"))
        end();
    if (!strcmp(how, "kill-after"))
        return KILL_AFTER;
    if (!strcmp(how, "signal")) {
        kill(getpid(), code);
        return PASS;
    }
    if (!strcmp(how, "full")) {
        atomic_store(&disk_is_full, 1);
        if (space == FREES)
            return PASS;
    }
    if (!strcmp(how, "short") && is_write)
        return HALF;
    errno = code;
    return *how ? FAIL : PASS;
}

/* Ends the process after an operation, if that is its verdict. */
static long done(enum verdict verdict, long result) {
    if (verdict == KILL_AFTER)
        end();
    return result;
}

#define REAL(name)                                                                                \
    static __typeof__(&name) real;                                                                \
    if (!real)                                                                                    \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* An operation that returns -1 and errno when it fails. */
#define DO(space, path, call)                                                                     \
    enum verdict verdict = operation(__func__, path, space, 0);                                   \
    return verdict == FAIL ? -1 : done(verdict, call)

/* The path of an open file, for the log; whether it is a regular one. */
static int regular(int file, char path[static 512]) {
    struct stat status;
    char link[64];
    int before = errno;
    path[0] = 0;
    if (file <= 2 || file == log_file || fstat(file, &status) || !S_ISREG(status.st_mode)) {
        errno = before;
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, 511);
    path[length > 0 ? length : 0] = 0;
    errno = before;
    return on_disk(path);
}

/* A write of `size` bytes; CALL uses `n` for the bytes to write. */
#define WRITE(file, size, CALL)                                                                   \
    char path[512];                                                                               \
    size_t n = size;                                                                              \
    ready();                                                                                      \
    if (!regular(file, path))                                                                     \
        return CALL;                                                                              \
    enum verdict verdict = operation(__func__, path, TAKES, 1);                                   \
    if (verdict == FAIL)                                                                          \
        return -1;                                                                                \
    if (verdict == HALF) {                                                                        \
        if (n < 2) {                                                                              \
            errno = code;                                                                         \
            return -1;                                                                            \
        }                                                                                         \
        n /= 2;                                                                                   \
        atomic_store(&next_write_fails, 1);                                                       \
    }                                                                                             \
    return done(verdict, CALL)

#define MODE_OF(flags)                                                                            \
    mode_t mode = 0;                                                                              \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                        \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode = va_arg(rest, mode_t);                                                              \
        va_end(rest);                                                                             \
    }

#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC))

#define OPEN(call)                                                                                \
    ready();                                                                                      \
    if (!CHANGES(flags) || !on_disk(path))                                                        \
        return call;                                                                              \
    DO(TAKES, path, call)

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE_OF(flags)
    OPEN(real(path, flags, mode));
}
int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE_OF(flags)
    OPEN(real(path, flags, mode));
}
int openat(int folder, const char *path, int flags, ...) {
    REAL(openat);
    MODE_OF(flags)
    OPEN(real(folder, path, flags, mode));
}
int openat64(int folder, const char *path, int flags, ...) {
    REAL(openat64);
    MODE_OF(flags)
    OPEN(real(folder, path, flags, mode));
}
int creat(const char *path, mode_t mode) {
    REAL(creat);
    DO(TAKES, path, real(path, mode));
}

ssize_t write(int file, const void *bytes, size_t size) {
    REAL(write);
    WRITE(file, size, real(file, bytes, n));
}
ssize_t pwrite(int file, const void *bytes, size_t size, off_t offset) {
    REAL(pwrite);
    WRITE(file, size, real(file, bytes, n, offset));
}
ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t offset) {
    REAL(pwrite64);
    WRITE(file, size, real(file, bytes, n, offset));
}
/* Half of several parts is half of the first. */
static const struct iovec *cut(const struct iovec *parts, size_t n, size_t whole,
                               struct iovec *half, int *count) {
    if (n == whole)
        return parts;
    *half = parts[0];
    half->iov_len /= 2;
    *count = 1;
    return half;
}
static size_t total(const struct iovec *parts, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += parts[i].iov_len;
    return sum;
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    struct iovec half;
    size_t whole = total(parts, count);
    WRITE(file, whole, real(file, cut(parts, n, whole, &half, &count), count));
}
ssize_t copy_file_range(int from, off64_t *start, int file, off64_t *offset, size_t size,
                        unsigned flags) {
    REAL(copy_file_range);
    WRITE(file, size, real(from, start, file, offset, n, flags));
}
ssize_t sendfile(int file, int from, off_t *start, size_t size) {
    REAL(sendfile);
    WRITE(file, size, real(file, from, start, n));
}
ssize_t sendfile64(int file, int from, off64_t *start, size_t size) {
    REAL(sendfile64);
    WRITE(file, size, real(file, from, start, n));
}
ssize_t splice(int from, off64_t *start, int file, off64_t *offset, size_t size, unsigned flags) {
    REAL(splice);
    WRITE(file, size, real(from, start, file, offset, n, flags));
}
int ftruncate(int file, off_t size) {
    REAL(ftruncate);
    DO(TAKES, "", real(file, size));
}
int ftruncate64(int file, off64_t size) {
    REAL(ftruncate64);
    DO(TAKES, "", real(file, size));
}
int fallocate(int file, int mode, off_t offset, off_t size) {
    REAL(fallocate);
    DO(TAKES, "", real(file, mode, offset, size));
}
int fsync(int file) {
    REAL(fsync);
    DO(TAKES, "", real(file));
}
int fdatasync(int file) {
    REAL(fdatasync);
    DO(TAKES, "", real(file));
}
int syncfs(int file) {
    REAL(syncfs);
    DO(TAKES, "", real(file));
}

int rename(const char *from, const char *path) {
    REAL(rename);
    DO(FREES, path, real(from, path));
}
int renameat(int from_folder, const char *from, int folder, const char *path) {
    REAL(renameat);
    DO(FREES, path, real(from_folder, from, folder, path));
}
int renameat2(int from_folder, const char *from, int folder, const char *path, unsigned flags) {
    REAL(renameat2);
    ready();
    if (flags && without_exchange) {
        errno = EINVAL;
        return -1;
    }
    DO(FREES, path, real(from_folder, from, folder, path, flags));
}
int link(const char *from, const char *path) {
    REAL(link);
    ready();
    if (without_link) {
        errno = EPERM;
        return -1;
    }
    DO(TAKES, path, real(from, path));
}
int linkat(int from_folder, const char *from, int folder, const char *path, int flags) {
    REAL(linkat);
    ready();
    if (without_link) {
        errno = EPERM;
        return -1;
    }
    DO(TAKES, path, real(from_folder, from, folder, path, flags));
}
int symlink(const char *to, const char *path) {
    REAL(symlink);
    DO(TAKES, path, real(to, path));
}
int symlinkat(const char *to, int folder, const char *path) {
    REAL(symlinkat);
    DO(TAKES, path, real(to, folder, path));
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    DO(TAKES, path, real(path, mode));
}
int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    DO(TAKES, path, real(folder, path, mode));
}
int unlink(const char *path) {
    REAL(unlink);
    DO(FREES, path, real(path));
}
int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    DO(FREES, path, real(folder, path, flags));
}
int rmdir(const char *path) {
    REAL(rmdir);
    DO(FREES, path, real(path));
}
int chmod(const char *path, mode_t mode) {
    REAL(chmod);
    DO(FREES, path, real(path, mode));
}
int fchmod(int file, mode_t mode) {
    REAL(fchmod);
    DO(FREES, "", real(file, mode));
}
int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    REAL(fchmodat);
    DO(FREES, path, real(folder, path, mode, flags));
}

/* What the standard library calls by number, as it may be missing in the C library. */
long syscall(long number, ...) {
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    ready();
    switch (number) {
    case SYS_renameat2:
        return renameat2((int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3],
                         (unsigned)a[4]);
    case SYS_copy_file_range:
        return copy_file_range((int)a[0], (off64_t *)a[1], (int)a[2], (off64_t *)a[3], (size_t)a[4],
                               (unsigned)a[5]);
    case SYS_openat:
        return openat((int)a[0], (const char *)a[1], (int)a[2], (mode_t)a[3]);
    case SYS_write:
        return write((int)a[0], (const void *)a[1], (size_t)a[2]);
    }
    return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
