/*
 * loader.h - parts of tensors, to where operations read them: model.c's way to its weights.
 *
 * A part stays in the mapping where its dtype and layout are the device's; otherwise it becomes a
 * copy, converted, in int8 or packed, and the pages that it came from are given back.
 */
#ifndef WORKER_LOADER_H
#define WORKER_LOADER_H

#include "worker/model.h"
#include "worker/weights.h"

/* What stays as long as the model, but for the staging. */
struct model_memory {
    struct device *dev;
    struct weights *weights;
    void **buffers; /* max_buffers */
    size_t n_buffers, max_buffers;
    char *packed; /* where the next packed weights go; NULL: weights stay by rows */
    char
        *staging; /* while loading only: OP_PACK_ROWS rows of the widest part in float32, or more */
    size_t staging_bytes;
};

/* The rows and columns of a tensor that this rank takes. */
struct part {
    int total_rows, total_cols;
    int row, rows;
    int col, cols;
};

struct loader {
    struct device *dev;
    struct model *model; /* bytes is added to */
    struct model_memory *memory;
    const struct weights *weights;
};

/* A matrix, or with cols 0 a vector; a shape other than the configuration's is an error. */
status loader_find(const struct loader *loader, const struct tensor **out, const char *name,
                   int rows, int cols);
status loader_dtype(enum dtype *out, const struct tensor *tensor);

/* A tensor is not read again: its pages need not count as this process's. */
void loader_forget(const struct tensor *tensor);

/* Device memory that the model keeps. */
status loader_buffer(struct loader *loader, void **out, size_t bytes, const char *name);

/* The part as `dtype`: *out with its stride in elements. */
status loader_part(struct loader *loader, const void **out, size_t *stride, enum dtype dtype,
                   const struct tensor *tensor, const struct part *part);

/* A matrix that is read by rows. */
status loader_matrix(struct loader *loader, struct matrix *out, const char *name,
                     const struct part *part);

/* A matrix that linear operations read, and op_embed() if the device has no weights in int8.  A
 * scale is of the columns that this rank has. */
status loader_linear(struct loader *loader, struct matrix *out, const char *name,
                     const struct part *part);

#endif
