/* Records what a process asks of the medium, in order: loaded with LD_PRELOAD, built by the tests.
 *
 * Files and directories whose path ends in one of the names of EDGEMAIL_RECORD_FILES (parted by colons) are recorded into
 * the file EDGEMAIL_RECORD: for each operation a header of 32 bytes and the data. One lock is held over the real call and
 * its record, so that the order in the record is the order in the kernel. Writes to a file whose name ends in ".ledger"
 * are marks: what the process told the world, at its place among the writes.
 *
 * EDGEMAIL_RECORD_SKIP (fdatasync, fsync, dsync, or all) turns that barrier into nothing, in the process and in the
 * record: the negative control. "fdatasync@spool/journal" does so for that file alone, which must be one of the names.
 *
 * EDGEMAIL_FAIL="fdatasync:7:EIO" makes the seventh fdatasync of a recorded file fail with EIO, once; "fdatasync:7+:EIO"
 * that one and all that follow. The operations are write, fdatasync, fsync and allocate; the errors EIO, ENOSPC, EDQUOT,
 * and for a write SHORT: half of it is written.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, TRUNCATE = 3, ALLOCATE = 4, MARK = 5, MMAP_SHARED = 6, RENAME = 7, FAILED = 8 };
enum { FDS = 1024, NAMES = 8 };

struct record {
    uint8_t kind, file, dsync, pad;
    uint32_t length;
    uint64_t offset, size, seconds;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static uint8_t tracked[FDS]; /* 0: no; else 1 + index of the name */
static uint8_t dsync[FDS];
static uint8_t ledger[FDS];
static char names[NAMES][128];
static int name_count = -1;
static char skip[128] = "";
static int skip_file; /* 0: of all files */
static char failing[16];
static long fail_at, fail_count;
static int fail_on, fail_errno;
enum { SHORT = -1 };

static void read_failure(void)
{
    char word[16] = "";
    const char *text = getenv("EDGEMAIL_FAIL");
    if (!text || sscanf(text, "%15[a-z]:%ld", failing, &fail_at) != 2)
        return;
    fail_on = strchr(text, '+') != NULL;
    sscanf(strrchr(text, ':'), ":%15s", word);
    fail_errno = !strcmp(word, "ENOSPC") ? ENOSPC : !strcmp(word, "EDQUOT") ? EDQUOT : !strcmp(word, "SHORT") ? SHORT : EIO;
}

static void setup(void)
{
    if (name_count >= 0)
        return;
    name_count = 0;
    const char *list = getenv("EDGEMAIL_RECORD_FILES"), *path = getenv("EDGEMAIL_RECORD");
    if (getenv("EDGEMAIL_RECORD_SKIP"))
        strncpy(skip, getenv("EDGEMAIL_RECORD_SKIP"), sizeof skip - 1);
    if (!list || !path)
        return;
    char *copy = strdup(list), *rest = copy, *word;
    while (name_count < NAMES && (word = strsep(&rest, ":")))
        strncpy(names[name_count++], word, sizeof names[0] - 1);
    free(copy);
    if ((word = strchr(skip, '@'))) {
        *word++ = 0;
        for (int i = 0; i < name_count; i++)
            if (!strcmp(names[i], word))
                skip_file = i + 1;
        if (!skip_file)
            _exit(96);
    }
    read_failure();
    log_fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int skipped(const char *what, int fd)
{
    if (skip_file && (fd < 0 || fd >= FDS || tracked[fd] != skip_file))
        return 0;
    return strcmp(skip, "all") == 0 || strcmp(skip, what) == 0;
}

static void put(const void *data, size_t length)
{
    const char *at = data;
    while (length) {
        ssize_t n = syscall(SYS_write, log_fd, at, length);
        if (n <= 0)
            _exit(97);
        at += n;
        length -= n;
    }
}

static void note(int kind, int fd, uint64_t offset, const void *data, size_t length, uint64_t size)
{
    struct record r = {.kind = kind, .length = length, .offset = offset, .size = size};
    if (fd >= 0 && fd < FDS) {
        r.file = tracked[fd];
        r.dsync = dsync[fd] && !skipped("dsync", fd);
    }
    put(&r, sizeof r);
    if (length)
        put(data, length);
}

/* Whether this operation is the one to fail: its error, 0 for none. Under the lock. */
static int failure(const char *what, int fd)
{
    if (strcmp(what, failing))
        return 0;
    fail_count++;
    if (fail_count != fail_at && !(fail_on && fail_count > fail_at))
        return 0;
    note(FAILED, fd, 0, NULL, 0, 0);
    return fail_errno;
}

static int known(int fd)
{
    return log_fd >= 0 && fd >= 0 && fd < FDS && tracked[fd];
}

static int index_of(const char *path)
{
    size_t length = strlen(path);
    for (int i = 0; i < name_count; i++) {
        size_t n = strlen(names[i]);
        if (length >= n && strcmp(path + length - n, names[i]) == 0)
            return i + 1;
    }
    return 0;
}

static void opened(int fd, const char *path, int flags)
{
    setup();
    if (fd < 0 || fd >= FDS || log_fd < 0)
        return;
    tracked[fd] = dsync[fd] = ledger[fd] = 0;
    int index = index_of(path);
    if (index) {
        size_t n = strlen(names[index - 1]);
        tracked[fd] = index;
        dsync[fd] = (flags & O_DSYNC) != 0;
        ledger[fd] = n > 7 && strcmp(names[index - 1] + n - 7, ".ledger") == 0;
    }
}

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found)
        _exit(98);
    return found;
}

#define OPEN(NAME)                                                       \
    int NAME(const char *path, int flags, ...)                           \
    {                                                                    \
        va_list ap;                                                      \
        va_start(ap, flags);                                             \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0; \
        va_end(ap);                                                      \
        int fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);       \
        opened(fd, path, flags);                                         \
        return fd;                                                       \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(NAME)                                                     \
    int NAME(int dir, const char *path, int flags, ...)                  \
    {                                                                    \
        va_list ap;                                                      \
        va_start(ap, flags);                                             \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0; \
        va_end(ap);                                                      \
        int fd = syscall(SYS_openat, dir, path, flags, mode);            \
        opened(fd, path, flags);                                         \
        return fd;                                                       \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd)
{
    if (fd >= 0 && fd < FDS)
        tracked[fd] = 0;
    return syscall(SYS_close, fd);
}

static ssize_t written(int fd, const void *data, size_t length, off_t offset)
{
    pthread_mutex_lock(&lock);
    int fault = failure("write", fd);
    if (fault == SHORT)
        length /= 2;
    ssize_t n = fault > 0 ? -1 : syscall(SYS_pwrite64, fd, data, length, offset);
    int saved = fault > 0 ? fault : errno;
    if (n > 0)
        note(WRITE, fd, offset, data, n, 0);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return n;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    return known(fd) ? written(fd, data, length, offset) : syscall(SYS_pwrite64, fd, data, length, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    return known(fd) ? written(fd, data, length, offset) : syscall(SYS_pwrite64, fd, data, length, offset);
}

ssize_t write(int fd, const void *data, size_t length)
{
    if (!known(fd))
        return syscall(SYS_write, fd, data, length);
    if (ledger[fd]) {
        pthread_mutex_lock(&lock);
        ssize_t n = syscall(SYS_write, fd, data, length);
        note(MARK, fd, 0, data, length, 0);
        pthread_mutex_unlock(&lock);
        return n;
    }
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t n = written(fd, data, length, at);
    if (n > 0)
        lseek(fd, at + n, SEEK_SET);
    return n;
}

static ssize_t gathered(int fd, const struct iovec *parts, int count, off_t offset)
{
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t n = written(fd, parts[i].iov_base, parts[i].iov_len, offset + total);
        if (n < 0)
            return total ? total : n;
        total += n;
        if ((size_t)n < parts[i].iov_len)
            break;
    }
    return total;
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    return known(fd) ? gathered(fd, parts, count, offset) : REAL(pwritev)(fd, parts, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return known(fd) ? gathered(fd, parts, count, offset) : REAL(pwritev64)(fd, parts, count, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    if (!known(fd))
        return syscall(SYS_writev, fd, parts, count);
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t n = gathered(fd, parts, count, at);
    if (n > 0)
        lseek(fd, at + n, SEEK_SET);
    return n;
}

static int barrier(int fd, const char *what, long number)
{
    if (!known(fd))
        return syscall(number, fd);
    if (skipped(what, fd))
        return 0;
    pthread_mutex_lock(&lock);
    int fault = failure(what, fd);
    int result = fault ? -1 : syscall(number, fd);
    int saved = fault ? fault : errno;
    if (result == 0)
        note(SYNC, fd, 0, NULL, 0, 0);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int fdatasync(int fd)
{
    return barrier(fd, "fdatasync", SYS_fdatasync);
}

int fsync(int fd)
{
    return barrier(fd, "fsync", SYS_fsync);
}

static int truncated(int fd, off_t size)
{
    pthread_mutex_lock(&lock);
    int result = syscall(SYS_ftruncate, fd, size);
    if (result == 0 && known(fd))
        note(TRUNCATE, fd, 0, NULL, 0, size);
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int fd, off_t size)
{
    return truncated(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    return truncated(fd, size);
}

static int allocated(int fd, off_t offset, off_t length)
{
    pthread_mutex_lock(&lock);
    int fault = known(fd) ? failure("allocate", fd) : 0;
    int result = fault ? -1 : syscall(SYS_fallocate, fd, 0, offset, length);
    int saved = fault ? fault : errno;
    if (result == 0 && known(fd))
        note(ALLOCATE, fd, offset, NULL, 0, offset + length);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return mode ? (int)syscall(SYS_fallocate, fd, mode, offset, length) : allocated(fd, offset, length);
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
    return allocated(fd, offset, length) ? errno : 0;
}

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    return allocated(fd, offset, length) ? errno : 0;
}

int rename(const char *from, const char *to)
{
    setup();
    int source = log_fd >= 0 ? index_of(from) : 0, target = log_fd >= 0 ? index_of(to) : 0;
    pthread_mutex_lock(&lock);
    int result = syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    int saved = errno;
    if (result == 0 && (source || target)) {
        struct record r = {.kind = RENAME, .file = source, .offset = target};
        put(&r, sizeof r);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

/* A writable shared mapping of a recorded file would be a road to the medium that is not recorded: say so. */
static void *mapped(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    if (known(fd) && (protection & PROT_WRITE) && (flags & MAP_SHARED)) {
        pthread_mutex_lock(&lock);
        note(MMAP_SHARED, fd, offset, NULL, 0, length);
        pthread_mutex_unlock(&lock);
    }
    return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, offset);
}

void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    return mapped(at, length, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t length, int protection, int flags, int fd, off64_t offset)
{
    return mapped(at, length, protection, flags, fd, offset);
}
