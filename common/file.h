/* file.h - reading and mapping whole files, with a limit on their size; noticing new contents. */
#ifndef COMMON_FILE_H
#define COMMON_FILE_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

/* *out is malloc'd and has a NUL after its *out_bytes.  Errors name the path. */
status file_read(char **out, size_t *out_bytes, const char *path, size_t max_bytes);

/* A private read-only mapping; an empty file is STATUS_INVALID. */
status file_map(const void **out, size_t *out_bytes, const char *path);
void file_unmap(const void *data, size_t bytes);

/* What changes when somebody writes to a file or puts another in its place. */
struct file_stamp {
    uint64_t device, inode, bytes;
    int64_t modified_ns;
    bool for_everyone; /* all users of this machine may read it */
};

status file_stamp_take(struct file_stamp *out, const char *path);
bool file_stamp_same(const struct file_stamp *a, const struct file_stamp *b);

/* Reads the file from front to back and keeps nothing: what is mapped later is found in the page
 * cache.  Disks behind a network give the whole of a file many times faster than its pages. */
status file_preload(const char *path);

/* "DIR/NAME" into out; STATUS_INVALID when it does not fit. */
status file_join(char *out, size_t out_size, const char *dir, const char *name);

#endif
