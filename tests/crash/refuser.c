/* Makes one call of a process fail, or that one and all that follow: loaded with LD_PRELOAD, built by the tests.
 *
 * EDGEMAIL_REFUSE="accept:3:EMFILE" refuses the third accept, "accept:3+:EMFILE" that one and every later one. The calls
 * are mmap, munmap, socket, bind, listen, accept, connect, send, recv (each with its kin); "alloc" is malloc, calloc and
 * realloc by whomever, "lmdb" the same by LMDB alone: it returns NULL with ENOMEM. EDGEMAIL_REFUSE_COUNT names a file of
 * 16 octets: how many such calls there were, and how many were refused.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static char refused[16];
static long at = -1;
static int on, with = EIO;
static uint64_t here[2], *counts = here;
static int ready;

static const struct { const char *name; int number; } ERRORS[] = {
    {"EMFILE", EMFILE}, {"ENFILE", ENFILE}, {"ENOMEM", ENOMEM}, {"ENOBUFS", ENOBUFS}, {"ENOSPC", ENOSPC},
    {"EDQUOT", EDQUOT}, {"ECONNABORTED", ECONNABORTED}, {"ECONNRESET", ECONNRESET}, {"EPIPE", EPIPE},
    {"ETIMEDOUT", ETIMEDOUT}, {"ENETUNREACH", ENETUNREACH}, {"EADDRNOTAVAIL", EADDRNOTAVAIL}, {"EIO", EIO},
};

static void setup(void)
{
    if (ready)
        return;
    ready = 1;
    const char *text = getenv("EDGEMAIL_REFUSE"), *path = getenv("EDGEMAIL_REFUSE_COUNT");
    char word[16] = "";
    if (!text || sscanf(text, "%15[a-z]:%ld", refused, &at) != 2)
        return;
    on = strchr(text, '+') != NULL;
    sscanf(strrchr(text, ':'), ":%15s", word);
    for (size_t i = 0; i < sizeof ERRORS / sizeof ERRORS[0]; i++)
        if (!strcmp(word, ERRORS[i].name))
            with = ERRORS[i].number;
    if (path) {
        int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0 && syscall(SYS_ftruncate, fd, 16) == 0) {
            long place = syscall(SYS_mmap, NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (place > 0)
                counts = (uint64_t *)place;
        }
        syscall(SYS_close, fd);
    }
}

/* Whether this call is the one. A child that the process starts is none of ours. */
static int refuse(const char *what)
{
    static pid_t self;
    setup();
    if (at < 0 || strcmp(what, refused))
        return 0;
    if (!self)
        self = syscall(SYS_getpid);
    if (self != syscall(SYS_getpid))
        return 0;
    long number = __atomic_add_fetch(&counts[0], 1, __ATOMIC_SEQ_CST);
    if (number != at && !(on && number > at))
        return 0;
    __atomic_add_fetch(&counts[1], 1, __ATOMIC_SEQ_CST);
    errno = with;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void *mmap(void *place, size_t length, int protection, int flags, int fd, off_t offset)
{
    return refuse("mmap") ? MAP_FAILED : (void *)syscall(SYS_mmap, place, length, protection, flags, fd, offset);
}

void *mmap64(void *place, size_t length, int protection, int flags, int fd, off64_t offset)
{
    return refuse("mmap") ? MAP_FAILED : (void *)syscall(SYS_mmap, place, length, protection, flags, fd, offset);
}

int munmap(void *place, size_t length)
{
    return refuse("munmap") ? -1 : (int)syscall(SYS_munmap, place, length);
}

int socket(int domain, int type, int protocol)
{
    return refuse("socket") ? -1 : (int)syscall(SYS_socket, domain, type, protocol);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    return refuse("bind") ? -1 : (int)syscall(SYS_bind, fd, address, length);
}

int listen(int fd, int backlog)
{
    return refuse("listen") ? -1 : (int)syscall(SYS_listen, fd, backlog);
}

int accept(int fd, struct sockaddr *address, socklen_t *length)
{
    return refuse("accept") ? -1 : (int)syscall(SYS_accept4, fd, address, length, 0);
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    return refuse("accept") ? -1 : (int)syscall(SYS_accept4, fd, address, length, flags);
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    return refuse("connect") ? -1 : (int)syscall(SYS_connect, fd, address, length);
}

ssize_t send(int fd, const void *data, size_t length, int flags)
{
    return refuse("send") ? -1 : syscall(SYS_sendto, fd, data, length, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    return refuse("send") ? -1 : syscall(SYS_sendmsg, fd, message, flags);
}

ssize_t recv(int fd, void *data, size_t length, int flags)
{
    return refuse("recv") ? -1 : syscall(SYS_recvfrom, fd, data, length, flags, NULL, NULL);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    return refuse("recv") ? -1 : syscall(SYS_recvmsg, fd, message, flags);
}

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

static int starved(void *caller)
{
    static __thread int inside;
    Dl_info found;
    if (inside || (ready && at < 0))
        return 0;
    inside = 1;
    setup();
    int no = 0;
    if (!strcmp(refused, "alloc"))
        no = refuse("alloc");
    else if (!strcmp(refused, "lmdb") && dladdr(caller, &found) && found.dli_fname && strstr(found.dli_fname, "/lmdb/"))
        no = refuse("lmdb");
    inside = 0;
    if (no)
        errno = ENOMEM;
    return no;
}

void *malloc(size_t size)
{
    return starved(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return starved(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *place, size_t size)
{
    return starved(__builtin_return_address(0)) ? NULL : __libc_realloc(place, size);
}
