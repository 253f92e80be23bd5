/*
 * decode.h - decode attention in splits of DECODE_SPLIT_ROWS cache rows.
 *
 * One item is one cache head of one sequence and one split, counted from the head's first row:
 * where the cuts are depends on that head's own length only, and so do its bits.  A split leaves
 * for every query head of the group a peak, a sum and unnormalised values; they are combined in
 * ascending order.  A row of keys or values is read from memory once for the whole group.
 */
#ifndef KERNELS_CPU_DECODE_H
#define KERNELS_CPU_DECODE_H

#include "kernels/op.h"

#include <math.h>

enum {
    DECODE_SPLIT_ROWS = 1024,
    DECODE_TILE_ROWS = 64,
    DECODE_MAX_LANES = 16,
};

struct decode_split {
    const struct kv_pool *pool;
    const int32_t *pages;
    enum dtype dtype;
    int begin, end;   /* rows of the cache head */
    int group;        /* query heads */
    size_t stride;    /* of a head in values: head_dim, of mass() rows, in whole lines of 16 */
    size_t q_stride;  /* of a head in q: head_dim in whole lines */
    float to_log2;    /* decode_to_log2() */
    const float *q;   /* (group, q_stride), zeros past head_dim */
    float *peak;      /* (group) largest score times to_log2 */
    float *sum;       /* (group) of 2^(to_log2 s - peak) */
    float *values;    /* (group, stride) */
    float *weights;   /* (group, DECODE_TILE_ROWS + DECODE_MAX_LANES) scratch */
    float *rows;      /* (DECODE_MAX_LANES, head_dim) scratch */
    float *ordered_q; /* (group, q_stride) scratch */
};

struct decode_kernels {
    void (*split)(const struct decode_split *split);
    /* The probabilities of rows begin..end, all that the head sees, to values (group, stride). */
    void (*mass)(const struct decode_split *split);
};

extern const struct decode_kernels decode_generic;
extern const struct decode_kernels decode_avx2;
extern const struct decode_kernels decode_avx512;

/* Where row i of a cache head lies in the pool, in rows. */
static inline size_t decode_row_at(const struct kv_pool *pool, const int32_t *pages, int i)
{
    return (size_t)pages[i / pool->page_rows] * (size_t)pool->page_rows +
           (size_t)(i % pool->page_rows);
}

/* What a score is multiplied with to be an exponent of 2. */
static inline float decode_to_log2(int head_dim)
{
    return (float)(1.4426950408889634 / sqrt(head_dim));
}

#endif
