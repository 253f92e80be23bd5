/*
 * safetensors.h - one mapped safetensors file, its header checked before anything is used.
 *
 * The file: eight bytes of length, a JSON header of that length, then the data.  Every tensor's
 * bytes lie inside the file, are as many as dtype and shape say, and the tensors together cover
 * the data without overlap or hole; a file that differs is refused by the name of the tensor and
 * the field.  Data need not be aligned for its type: the user looks.
 */
#ifndef WORKER_SAFETENSORS_H
#define WORKER_SAFETENSORS_H

#include "common/status.h"

#include <stdint.h>

enum safetensors_limits {
    SAFETENSORS_MAX_HEADER = 16 << 20, /* bytes */
    SAFETENSORS_MAX_DIMS = 8,
};

struct tensor {
    const char *name;
    const char *dtype; /* as in the file: "F32", "BF16", "I64", ... */
    const char *path;  /* of the file, for errors */
    const void *data;  /* in the mapping */
    size_t bytes;
    int dims;
    uint64_t shape[SAFETENSORS_MAX_DIMS];
};

struct safetensors;

status safetensors_open(struct safetensors **out, const char *path);
/* The same for a file already in memory, which is borrowed; `path` names it in errors. */
status safetensors_parse(struct safetensors **out, const char *path, const void *data,
                         size_t bytes);
void safetensors_close(struct safetensors *file); /* NULL is fine; tensors go with it */

/* Tensors in ascending order of their names. */
size_t safetensors_count(const struct safetensors *file);
const struct tensor *safetensors_at(const struct safetensors *file, size_t index);
const struct tensor *safetensors_find(const struct safetensors *file, const char *name);

#endif
