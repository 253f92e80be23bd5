/*
 * attention.h - how prompt attention and window scores are cut into pieces, and the pieces.
 *
 * The query rows of one KV head are flattened: row f is token f / group, head f % group of the
 * group, so a tile of keys and values is packed once for the whole group.  An item is
 * ATTENTION_ITEM_ROWS such rows against all keys they see, in tiles of ATTENTION_TILE_KEYS keys
 * counted from key 0: what a row gets depends on nothing but itself and the keys.
 *
 * Every instruction set compiles attention_template.h into one struct attention_kernels.
 */
#ifndef KERNELS_CPU_ATTENTION_H
#define KERNELS_CPU_ATTENTION_H

#include "kernels/op.h"

enum {
    ATTENTION_TILE_KEYS = 64,
    ATTENTION_ITEM_ROWS = 192, /* a multiple of every variant's block of rows */
    ATTENTION_BLOCK_ROWS = 32, /* the largest block of rows */
    ATTENTION_MAX_LANES = 16,
};

/* One thread's buffers; 64-byte aligned. */
struct attention_scratch {
    float *q;      /* (ITEM_ROWS, units) rows of queries */
    float *o;      /* (ITEM_ROWS, head_dim rounded up) sums of values, not yet normalised */
    float *k;      /* one tile of keys, transposed */
    float *v;      /* one tile of values */
    float *s;      /* (BLOCK_ROWS, TILE_KEYS) scores of one block */
    float *p;      /* (BLOCK_ROWS, TILE_KEYS) its weights, where they cannot replace the scores */
    float *lanes;  /* (ITEM_ROWS, VEC_LANES) sums of weights, lane by lane */
    float *peak;   /* (ITEM_ROWS) largest score so far */
    int32_t *from; /* (ITEM_ROWS) first visible key */
    int32_t *to;   /* (ITEM_ROWS) one past the last; 0 for padding rows */
};

struct attention_item {
    const struct attention *args;
    enum dtype dtype;
    int kv_head;
    int begin, end; /* flattened rows */
};

struct attention_kernels {
    const char *name;
    void (*item)(const struct attention_item *item, const struct attention_scratch *scratch);
};

extern const struct attention_kernels attention_generic;
extern const struct attention_kernels attention_avx2;
extern const struct attention_kernels attention_avx512;
extern const struct attention_kernels attention_avx512_bf16; /* bf16 devices only, */
extern const struct attention_kernels attention_amx;         /* like this one */

/* The first key that row `i` sees: a sliding window counts original positions. */
static inline int attention_first_key(const int32_t *positions, int i, int sliding_window)
{
    int lo = 0, hi = i;

    if (sliding_window == 0) {
        return 0;
    }
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;

        if (positions[i] - positions[mid] < sliding_window) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    return lo;
}

#endif
