/*
 * weights.h - the tensors of a model directory, whichever files they are in.
 *
 * DIR/model.safetensors, or else the files that DIR/model.safetensors.index.json names; those
 * must lie in DIR itself.
 */
#ifndef WORKER_WEIGHTS_H
#define WORKER_WEIGHTS_H

#include "worker/safetensors.h"

enum weights_limits {
    WEIGHTS_MAX_FILES = 1024,
    WEIGHTS_MAX_INDEX = 16 << 20, /* bytes of the index */
};

struct weights;

status weights_open(struct weights **out, const char *dir);
void weights_close(struct weights *weights); /* NULL is fine; tensors go with it */

/* Reads every file from front to back; see file_preload(). */
status weights_preload(const struct weights *weights);

/* Tensors in ascending order of their names. */
size_t weights_count(const struct weights *weights);
const struct tensor *weights_at(const struct weights *weights, size_t index);
const struct tensor *weights_find(const struct weights *weights, const char *name);

#endif
