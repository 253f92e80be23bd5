/*
 * columns.h - attention seen by its keys: normalisers of rows over all their keys, unless their
 * attention left them, then how much of every row's attention each key gets.  The matrix itself
 * never exists.
 *
 * Shared by op_window_scores() and op_column_sums().
 */
#ifndef KERNELS_CUDA_COLUMNS_H
#define KERNELS_CUDA_COLUMNS_H

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/visible.h"

enum { COLUMNS_RUN_KEYS = 1024 }; /* a block's share of the keys, for normalisers */

/* Rows first_row.. of the sequence, as in struct column_sums; `weights` (rows) or NULL. */
struct columns {
    float *out;   /* (q_heads, stride), keys 0..n_out */
    float *local; /* likewise, of pairs with i - j < n_local; or NULL */
    size_t stride;
    const void *q, *k;
    size_t kv_stride;
    const int32_t *positions;
    const float *weights;
    const float *lse; /* (rows, q_heads) normalisers; NULL: found first */
    int n_out;
    int first_row, rows, n_keys;
    int open_rows, fresh, n_local;
    int q_heads, kv_heads, head_dim;
    int sliding_window;
};

/* Adds to out (keys below args->fresh) or sets it. */
status columns_sum(struct device *dev, const struct columns *args);

/* Bytes of normalisers that are found first, and behind them of what that takes. */
size_t columns_workspace(int q_heads, int rows, int n_keys);

/* The tensor-core parts of both, for bfloat16 and float16. */
unsigned columns_runs(const struct columns *args);
status columns_mma_sums(struct device *dev, const struct columns *args);
status columns_mma_parts(struct device *dev, const struct columns *args, float *out);

/* The keys that row r of the chunk sees; none past the last row. */
__device__ __forceinline__ struct span columns_keys_of(const struct columns &args, int r)
{
    int i = args.first_row + r;

    if (r >= args.rows) {
        return {0, 0};
    }
    if (i < args.open_rows) {
        return {0, args.n_keys};
    }
    return visible_keys(args.positions, i, args.sliding_window);
}

#endif
