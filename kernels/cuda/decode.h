/*
 * decode.h - how the kernels of decoding share out the rows of a cache head.
 *
 * A head's rows go to at most DECODE_SPLITS blocks, in runs of whole multiples of
 * DECODE_SPLIT_ROWS: a function of the head's own length alone.  Its sinks, if it has any, are the
 * first split, and the others have the rest.
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

/* How the rows of a cache head (of all sequences') are cut. */
struct decode_cuts {
    int sinks;      /* in the first split; 0: it is as the others */
    int begin, end; /* rows of the others */
    int each;       /* rows of one of them */
    int splits;     /* in all */
};
__device__ __forceinline__ struct decode_cuts decode_cuts_of(const struct decode_attention &args,
                                                             int head)
{
    int sinks = args.sinks ? args.sinks[head / args.cache_heads] : 0;
    int begin = args.first[head] + sinks, end = args.length[head];
    int most = DECODE_SPLITS - (sinks > 0), each = (end - begin + most - 1) / most;

    each = (each + DECODE_SPLIT_ROWS - 1) / DECODE_SPLIT_ROWS * DECODE_SPLIT_ROWS;
    return {sinks, begin, end, each, (sinks > 0) + (end - begin + each - 1) / each};
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
    const void *q; /* of all heads, that see these rows */
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
    struct decode_cuts cuts = decode_cuts_of(args, head);
    bool sinks = split < (cuts.sinks > 0);
    int from = cuts.begin + (split - (cuts.sinks > 0)) * cuts.each;

    return {pool.k,
            pool.v,
            sinks ? args.q_sinks : args.q,
            args.pages[head],
            head,
            sinks ? 0 : from,
            sinks ? cuts.sinks : min(from + cuts.each, cuts.end),
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
