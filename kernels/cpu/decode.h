/*
 * decode.h - decode attention in splits of DECODE_SPLIT_ROWS cache rows.
 *
 * One item is one cache head of one sequence and one split, counted from the head's first row,
 * or from its first row behind the sinks, whose splits come before: where the cuts are depends on
 * that head's own length and sinks only, and so do its bits.  A split leaves
 * for every query head of the group a peak, a sum and unnormalised values; they are combined in
 * ascending order.  A row of keys or values is read from memory once for the whole group.
 */
#ifndef KERNELS_CPU_DECODE_H
#define KERNELS_CPU_DECODE_H

#include "kernels/op.h"

enum {
    DECODE_SPLIT_ROWS = 1024,
    DECODE_TILE_ROWS = 64,
    DECODE_MAX_LANES = 16,
};

struct decode_split {
    const struct kv_pool *pool;
    const int32_t *pages;
    enum dtype dtype;
    int begin, end;      /* rows of the cache head */
    int group;           /* query heads */
    size_t stride;       /* of a head in q and values: head_dim in whole lines of 16 */
    const float *q;      /* (group, stride), zeros past head_dim */
    const void *queries; /* the same as they came: (group, head_dim) of dtype */
    float *peak;         /* (group) largest score times to_log2 */
    float *sum;          /* (group) of 2^(to_log2 s - peak) */
    float *values;       /* (group, stride) */
    float *weights;      /* (group, DECODE_TILE_ROWS + DECODE_MAX_LANES) scratch */
    float *rows;         /* (DECODE_MAX_LANES, head_dim) scratch */
};

struct decode_kernels {
    void (*split)(const struct decode_split *split);
    /* The probabilities of rows begin..end, all that the head sees, to values (group, stride):
     * stride is then that many rows in whole lines.  q_stride is that of q. */
    void (*mass)(const struct decode_split *split, size_t q_stride);
};

extern const struct decode_kernels decode_generic;
extern const struct decode_kernels decode_avx2;
extern const struct decode_kernels decode_avx512;
extern const struct decode_kernels decode_avx512_bf16;

/* The element at which cache row i starts. */
static inline size_t decode_row_at(const struct kv_pool *pool, const int32_t *pages, int i)
{
    size_t row = (size_t)pages[i / pool->page_rows] * (size_t)pool->page_rows +
                 (size_t)(i % pool->page_rows);

    return row * (size_t)pool->head_dim;
}

#endif
