#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PRELOAD_BYTES = 8 << 20 };

static status open_regular(int *out, size_t *out_bytes, const char *path)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0) {
        status code = errno == ENOENT || errno == ENOTDIR ? STATUS_NOT_FOUND
                      : errno == EACCES                   ? STATUS_PERMISSION
                                                          : STATUS_INTERNAL;
        return status_fail(code, "%s: %s", path, strerror(errno));
    }
    status st = STATUS_OK;
    if (fstat(fd, &info) != 0) {
        st = status_fail(STATUS_INTERNAL, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        st = status_fail(STATUS_INVALID, "%s: not a regular file", path);
    } else if (info.st_size < 0 || (uint64_t)info.st_size > SIZE_MAX) {
        st = status_fail(STATUS_INVALID, "%s: too large", path);
    }
    if (st) {
        close(fd);
        return st;
    }
    *out = fd;
    *out_bytes = (size_t)info.st_size;
    return STATUS_OK;
}

/* The file may shrink meanwhile: then what was there is returned. */
static status read_all(char *out, size_t *bytes, int fd, const char *path)
{
    size_t used = 0;

    while (used < *bytes) {
        ssize_t n = read(fd, out + used, *bytes - used);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return status_fail(STATUS_INTERNAL, "%s: %s", path, strerror(errno));
        }
        if (n == 0) {
            break;
        }
        used += (size_t)n;
    }
    *bytes = used;
    return STATUS_OK;
}

status file_read(char **out, size_t *out_bytes, const char *path, size_t max_bytes)
{
    size_t bytes = 0;
    int fd = -1;
    status st = open_regular(&fd, &bytes, path);

    if (st) {
        return st;
    }
    char *data = NULL;
    if (bytes > max_bytes || bytes == SIZE_MAX) {
        st = status_fail(STATUS_INVALID, "%s: %zu bytes, more than the limit of %zu", path, bytes,
                         max_bytes);
        goto out;
    }
    data = malloc(bytes + 1);
    if (!data) {
        st = status_fail(STATUS_EXHAUSTED, "%s: no memory for %zu bytes", path, bytes);
        goto out;
    }
    st = read_all(data, &bytes, fd, path);
    if (!st) {
        data[bytes] = '\0';
        *out = data;
        *out_bytes = bytes;
        data = NULL; /* ownership moved to the caller */
    }
out:
    free(data);
    close(fd);
    return st;
}

status file_map(const void **out, size_t *out_bytes, const char *path)
{
    size_t bytes = 0;
    int fd = -1;
    status st = open_regular(&fd, &bytes, path);

    if (st) {
        return st;
    }
    if (bytes == 0) {
        close(fd);
        return status_fail(STATUS_INVALID, "%s: empty file", path);
    }
    void *data = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
        st = status_fail(STATUS_INTERNAL, "mmap %s: %s", path, strerror(errno));
    } else {
        *out = data;
        *out_bytes = bytes;
    }
    close(fd);
    return st;
}

void file_unmap(const void *data, size_t bytes)
{
    if (data) {
        munmap((void *)data, bytes);
    }
}

status file_stamp_take(struct file_stamp *out, const char *path)
{
    struct stat info;

    if (stat(path, &info) != 0) {
        return status_fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_INTERNAL, "%s: %s", path,
                           strerror(errno));
    }
    *out = (struct file_stamp){
        .device = info.st_dev,
        .inode = info.st_ino,
        .bytes = (uint64_t)info.st_size,
        .modified_ns = (int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec,
        .for_everyone = (info.st_mode & S_IROTH) != 0,
    };
    return STATUS_OK;
}

bool file_stamp_same(const struct file_stamp *a, const struct file_stamp *b)
{
    return a->device == b->device && a->inode == b->inode && a->bytes == b->bytes &&
           a->modified_ns == b->modified_ns;
}

status file_preload(const char *path)
{
    size_t bytes = 0;
    int fd = -1;
    status st = open_regular(&fd, &bytes, path);

    if (st) {
        return st;
    }
    char *block = malloc(PRELOAD_BYTES);
    ssize_t n = 1;
    if (!block) {
        st = status_fail(STATUS_EXHAUSTED, "%s: no memory for %d bytes", path, PRELOAD_BYTES);
    }
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    while (!st && n != 0) {
        n = read(fd, block, PRELOAD_BYTES);
        if (n < 0 && errno != EINTR) {
            st = status_fail(STATUS_INTERNAL, "%s: %s", path, strerror(errno));
        }
    }
    free(block);
    close(fd);
    return st;
}

status file_join(char *out, size_t out_size, const char *dir, const char *name)
{
    size_t end = strlen(dir);
    const char *slash = end > 0 && dir[end - 1] == '/' ? "" : "/";
    int n = snprintf(out, out_size, "%s%s%s", dir, slash, name);

    if (n < 0 || (size_t)n >= out_size) {
        return status_fail(STATUS_INVALID, "%.64s...: path is longer than %zu bytes", dir,
                           out_size - 1);
    }
    return STATUS_OK;
}
