/*
 * decode.h - how the kernels of decoding share out the rows of a cache head.
 *
 * A head's rows go to at most DECODE_SPLITS blocks, in runs of whole multiples of
 * DECODE_SPLIT_ROWS: a function of the head's own length alone.
 */
#ifndef KERNELS_CUDA_DECODE_H
#define KERNELS_CUDA_DECODE_H

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"
#include "kernels/op.h"

enum { DECODE_SPLITS = 64, DECODE_SPLIT_ROWS = 64 };

/* Peak (in units of log2) and sum of a split, (heads, splits, group), and its values (heads,
 * splits, group, head_dim). */
struct decode_parts {
    float *peak, *sum, *values;
};

/* The splits of bfloat16 and float16 (decode_attention_mma.cu). */
status cuda_decode_splits_mma(struct device *dev, const struct decode_attention *args,
                              const struct decode_parts &parts);

__device__ __forceinline__ int decode_split_rows(int rows)
{
    int each = (rows + DECODE_SPLITS - 1) / DECODE_SPLITS;

    return (each + DECODE_SPLIT_ROWS - 1) / DECODE_SPLIT_ROWS * DECODE_SPLIT_ROWS;
}
__device__ __forceinline__ int decode_splits(int rows)
{
    int each = decode_split_rows(rows);

    return (rows + each - 1) / each;
}

/* Lanes that read one row: the least power of two that holds its pieces of 8 elements. */
__host__ __device__ __forceinline__ int decode_team_lanes(int head_dim)
{
    int lanes = 1;

    while (lanes * 8 < head_dim) {
        lanes *= 2;
    }
    return lanes;
}

/* The rows of one cache head (of all sequences') that one block reads. */
struct decode_rows {
    const void *k, *v;
    const int32_t *pages;
    int head, from, to;
    int page_rows, head_dim, team_lanes;
    float to_log2; /* 1 / sqrt(head_dim), for powers of two */

    /* of the pool, where row `row` begins */
    __device__ __forceinline__ size_t element(int row) const
    {
        size_t at = (size_t)pages[row / page_rows] * (size_t)page_rows + (size_t)(row % page_rows);
        return at * (size_t)head_dim;
    }
};

__device__ __forceinline__ struct decode_rows decode_rows_of(const struct decode_attention &args,
                                                             const struct kv_pool &pool, int head,
                                                             int split)
{
    int first = args.first[head], end = args.length[head];
    int each = decode_split_rows(end - first), from = first + split * each;

    return {pool.k,
            pool.v,
            args.pages[head],
            head,
            from,
            min(from + each, end),
            pool.page_rows,
            args.head_dim,
            decode_team_lanes(args.head_dim),
            LOG2_E / sqrtf((float)args.head_dim)};
}

/* q . k over the lanes of a team, each with 8 elements: the same bits in all of them. */
__device__ __forceinline__ float decode_dot(const float q[8], const float k[8], int lanes)
{
    float sum = 0.0f;

    for (int i = 0; i < 8; i++) {
        sum = fmaf(q[i], k[i], sum);
    }
    for (int by = lanes / 2; by > 0; by /= 2) {
        sum += __shfl_xor_sync((unsigned)WHOLE_WARP, sum, by);
    }
    return sum;
}

#endif
