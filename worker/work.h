/*
 * work.h - what a prompt and a token cost one rank, counted from the same slices and row counts
 * that the engine executes.
 *
 * Bytes are what must move if every cache were perfect: a chunk reads the weights of its layer
 * once, attention its keys and values once a chunk, the residual stream is read and written four
 * times a layer.  Collectives count what leaves a rank, without headers: P - 1 times a vector that
 * is sent whole (up to COMM_WHOLE_LIMIT floats), 2 (P - 1) / P of a longer one.
 */
#ifndef WORKER_WORK_H
#define WORKER_WORK_H

#include "common/method.h"

struct work {
    double linear;         /* floating-point operations of matrix products */
    double attention;      /* of attention, the method's scores excepted */
    double weight_bytes;   /* read */
    double kv_bytes;       /* of keys and values, read and written */
    double residual_bytes; /* read and written */
    double collective_bytes;
    double collectives; /* how many */
    double slices;      /* 0: not of a prompt */
};

struct work_config {
    const struct model_config *model;
    const struct method_params *params;
    int n_prompt;
    int ranks; /* that divide heads, columns and vocabulary evenly */
    size_t act_bytes;
};

/* The prompt phase of one prompt. */
struct work work_prefill(const struct work_config *config);

/* One token of each of `rows` sequences, just after their prompts. */
struct work work_decode(const struct work_config *config, int rows);

#endif
