/* A slow medium: one file, served by FUSE, where each write request and each flush costs what it costs on an SD card.
 *
 * usage: slow BACKING MOUNTPOINT WRITE_US FLUSH_US BYTES_PER_SECOND
 * MOUNTPOINT/image is BACKING. Needs root. One request at a time, as a card takes them. Ends when it is unmounted.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAX_WRITE (128 * 1024)
#define FILE_ID 2

static int fuse, backing;
static long write_us, flush_us, rate;

static void spend(long us)
{
    struct timespec wait = {us / 1000000, us % 1000000 * 1000};
    while (us > 0 && nanosleep(&wait, &wait) && errno == EINTR) {
    }
}

static void answer(const struct fuse_in_header *in, int error, const void *data, size_t size)
{
    struct fuse_out_header out = {sizeof out + size, error, in->unique};
    struct iovec parts[2] = {{&out, sizeof out}, {(void *)data, size}};
    if (writev(fuse, parts, size ? 2 : 1) < 0 && errno != ENOENT)
        perror("slow: answer");
}

static void attributes(uint64_t node, struct fuse_attr *to)
{
    struct stat found;
    fstat(backing, &found);
    memset(to, 0, sizeof *to);
    to->ino = node;
    to->nlink = 1;
    to->mode = node == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0600;
    to->size = node == FUSE_ROOT_ID ? 0 : found.st_size;
    to->blocks = to->size / 512;
    to->blksize = 4096;
}

static void serve(const struct fuse_in_header *in, char *data)
{
    static char content[MAX_WRITE];
    switch (in->opcode) {
    case FUSE_INIT: {
        struct fuse_init_out out = {.major = 7, .minor = 31, .max_readahead = MAX_WRITE, .flags = FUSE_BIG_WRITES, .max_write = MAX_WRITE};
        answer(in, 0, &out, sizeof out);
        return;
    }
    case FUSE_LOOKUP: {
        struct fuse_entry_out out = {.nodeid = FILE_ID, .entry_valid = 3600, .attr_valid = 3600};
        attributes(FILE_ID, &out.attr);
        answer(in, strcmp(data, "image") ? -ENOENT : 0, &out, strcmp(data, "image") ? 0 : sizeof out);
        return;
    }
    case FUSE_GETATTR:
    case FUSE_SETATTR: {
        struct fuse_attr_out out = {.attr_valid = 3600};
        attributes(in->nodeid, &out.attr);
        answer(in, 0, &out, sizeof out);
        return;
    }
    case FUSE_OPEN:
    case FUSE_OPENDIR: {
        struct fuse_open_out out = {.open_flags = FOPEN_KEEP_CACHE};
        answer(in, 0, &out, sizeof out);
        return;
    }
    case FUSE_READ: {
        const struct fuse_read_in *asked = (void *)data;
        ssize_t got = pread(backing, content, asked->size < MAX_WRITE ? asked->size : MAX_WRITE, asked->offset);
        answer(in, got < 0 ? -errno : 0, content, got < 0 ? 0 : got);
        return;
    }
    case FUSE_WRITE: {
        const struct fuse_write_in *asked = (void *)data;
        struct fuse_write_out out = {0};
        ssize_t done = pwrite(backing, data + sizeof *asked, asked->size, asked->offset);
        spend(write_us + (long)(asked->size * 1000000LL / rate));
        out.size = done;
        answer(in, done < 0 ? -errno : 0, &out, done < 0 ? 0 : sizeof out);
        return;
    }
    case FUSE_FSYNC:
        spend(flush_us);
        answer(in, 0, 0, 0);
        return;
    case FUSE_STATFS: {
        struct fuse_statfs_out out = {.st = {.bsize = 4096, .namelen = 255, .frsize = 4096}};
        answer(in, 0, &out, sizeof out);
        return;
    }
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_ACCESS:
        answer(in, 0, 0, 0);
        return;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        return;
    default:
        answer(in, -ENOSYS, 0, 0);
    }
}

int main(int count, char **given)
{
    static char request[MAX_WRITE + 64 * 1024] __attribute__((aligned(8)));
    char options[128];
    if (count != 6)
        return 64;
    backing = open(given[1], O_RDWR | O_CLOEXEC);
    fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    write_us = atol(given[3]), flush_us = atol(given[4]), rate = atol(given[5]);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fuse);
    if (backing < 0 || fuse < 0 || rate <= 0 || mount("slow", given[2], "fuse.slow", MS_NOSUID | MS_NODEV, options)) {
        perror("slow");
        return 71;
    }
    if (fork())
        return 0; /* mounted: the parent tells so by its end */
    setsid();
    for (int each = 0; each < 3; each++)
        close(each); /* who started it reads them to their end */
    for (;;) {
        ssize_t got = read(fuse, request, sizeof request);
        if (got < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
            continue;
        if (got <= 0)
            return 0;
        serve((void *)request, request + sizeof(struct fuse_in_header));
    }
}
