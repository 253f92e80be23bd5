/*
 * window.h - window scores in passes over blocks of keys.
 *
 * The rows of one KV head are flattened head by head: row f is head f / window of the group,
 * window row f % window.  Where the rows' attention did not leave their sums, a first pass finds
 * each row's peak and sum in every block, and the blocks are combined in ascending order.  The
 * last pass adds the probabilities up, window rows ascending.  All products are float32.
 */
#ifndef KERNELS_CPU_WINDOW_H
#define KERNELS_CPU_WINDOW_H

#include "kernels/cpu/attention.h"

enum { WINDOW_BLOCK_KEYS = 1024 };

struct window_scratch {
    float *k;     /* one tile of keys, transposed */
    float *s;     /* (BLOCK_ROWS, TILE_KEYS) */
    float *lanes; /* (rows, VEC_LANES) */
};

struct window_block {
    const struct window_scores *args;
    enum dtype dtype;
    int kv_head;
    int begin, end;      /* keys; begin is a multiple of WINDOW_BLOCK_KEYS */
    int rows;            /* group * window */
    const float *q;      /* (rows, head_dim), and zeros up to a multiple of every BLOCK_ROWS */
    const int32_t *from; /* (window) first visible key */
    float *peak;         /* (rows) largest score of the block */
    float *sum;          /* (rows) of the block: of 2^(c s - c peak) */
    const float *offset; /* (rows) probabilities are scale 2^(c s - offset) */
    const float *scale;
};

struct window_kernels {
    void (*load_rows)(const struct window_block *block, float *q);
    void (*sums)(const struct window_block *block, const struct window_scratch *scratch);
    void (*scores)(const struct window_block *block, const struct window_scratch *scratch);
};

extern const struct window_kernels window_generic;
extern const struct window_kernels window_avx2;
extern const struct window_kernels window_avx512;

#endif
