/*
 * columns.h - attention seen by its keys: normalisers of rows over all their keys, then how much
 * of every row's attention each key gets.  The matrix itself never exists.
 *
 * Shared by op_window_scores() and op_column_sums().
 */
#ifndef KERNELS_CUDA_COLUMNS_H
#define KERNELS_CUDA_COLUMNS_H

#include "kernels/cuda/cuda.h"

/* Rows first_row.. of the sequence, as in struct column_sums; `weights` (rows) or NULL. */
struct columns {
    float *out;   /* (q_heads, stride), keys 0..n_out */
    float *local; /* likewise, of pairs with i - j < n_local; or NULL */
    size_t stride;
    const void *q, *k;
    size_t kv_stride;
    const int32_t *positions;
    const float *weights;
    const float *lse; /* (q_heads, rows) */
    int n_out;
    int first_row, rows, n_keys;
    int open_rows, fresh, n_local;
    int q_heads, kv_heads, head_dim;
    int sliding_window;
};

/* Adds to out (keys below args->fresh) or sets it. */
status columns_sum(struct device *dev, const struct columns *args);

/* Floats of workspace that columns_lse() needs, and the normalisers (q_heads, rows) into `lse`. */
size_t columns_lse_floats(const struct columns *args);
status columns_lse(struct device *dev, const struct columns *args, float *lse, float *workspace);

#endif
