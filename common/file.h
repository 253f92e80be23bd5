/* file.h - reading and mapping whole files, with a limit on their size. */
#ifndef COMMON_FILE_H
#define COMMON_FILE_H

#include "common/status.h"

/* *out is malloc'd and has a NUL after its *out_bytes.  Errors name the path. */
status file_read(char **out, size_t *out_bytes, const char *path, size_t max_bytes);

/* A private read-only mapping; an empty file is STATUS_INVALID. */
status file_map(const void **out, size_t *out_bytes, const char *path);
void file_unmap(const void *data, size_t bytes);

/* "DIR/NAME" into out; STATUS_INVALID when it does not fit. */
status file_join(char *out, size_t out_size, const char *dir, const char *name);

#endif
