/*
 * model.h - one rank's weights.
 *
 * The files stay mapped, and only this rank's rows or columns are ever touched.  A weight whose
 * dtype and layout are the device's is used where it lies in the file, without a copy; others are
 * converted once, at load, into device memory.  Where the device packs weights or has them in int8,
 * all matrices become copies, but for an embedding that is not also such an output.  Rotary
 * tables of old files are ignored; tensors that the configuration has no place for (bias,
 * quantization, more layers, ...) are refused by name.
 */
#ifndef WORKER_MODEL_H
#define WORKER_MODEL_H

#include "common/model_config.h"
#include "common/split.h"
#include "kernels/op.h"

struct layer_weights {
    struct matrix q, k, v;       /* (heads of this rank * head_dim, hidden) */
    struct matrix o;             /* (hidden, query heads of this rank * head_dim): a column slice */
    struct matrix gate, up;      /* (mlp columns of this rank, hidden) */
    struct matrix down;          /* (hidden, mlp columns of this rank): a column slice */
    const float *input_norm;     /* (hidden) */
    const float *attention_norm; /* post_attention_layernorm (hidden) */
};

struct model {
    struct model_config config;
    struct split split;
    struct matrix embed;   /* (vocab rows of this rank, hidden) */
    struct matrix lm_head; /* likewise; == embed when tied, but for int8 */
    const float *final_norm;
    const float *inv_freq; /* (head_dim / 2) */
    struct layer_weights *layers;
    size_t bytes;                /* of this rank's weights, mapped or copied */
    struct model_memory *memory; /* what model_close() gives back */
};

status model_open(struct model **out, struct device *dev, const char *dir, int rank, int ranks);
/* Before model_open(), where the files are on a disk behind a network: brings them into the page
 * cache in the order in which they lie. */
status model_preload(const char *dir);
void model_close(struct model *model); /* NULL is fine */

/* A fingerprint of configuration and tensor headers (not contents): ranks with different files
 * are refused before they can disagree. */
status model_fingerprint(uint64_t *out, const char *dir);

#endif
