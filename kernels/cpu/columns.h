/*
 * columns.h - column sums of the softmax, over blocks of keys.
 *
 * The rows of one KV head are laid out head by head, each head's padded to whole blocks of
 * rows.  An item of the sums is COLUMNS_BLOCK_KEYS keys of one KV head against all rows, rows
 * ascending: what a key gets depends on the rows alone, not on the threads.  An item of the
 * log-sum-exp is COLUMNS_LSE_ROWS rows against all keys.
 */
#ifndef KERNELS_CPU_COLUMNS_H
#define KERNELS_CPU_COLUMNS_H

#include "kernels/cpu/attention.h"

enum {
    COLUMNS_BLOCK_KEYS = 256,
    COLUMNS_LSE_ROWS = 192, /* a multiple of every variant's block of rows */
};

/* One thread's buffers. */
struct columns_scratch {
    float *k;     /* one tile of keys, transposed */
    float *s;     /* (ATTENTION_BLOCK_ROWS, ATTENTION_TILE_KEYS) scores of one block */
    float *lanes; /* (COLUMNS_LSE_ROWS, VEC_LANES) */
    float *peak;  /* (COLUMNS_LSE_ROWS) */
};

struct columns_item {
    const struct column_sums *args;
    enum dtype dtype;
    int kv_head;
    int begin, end;      /* keys (sums), or rows of head `head` of the group (lse) */
    int head;            /* lse only */
    size_t head_stride;  /* of q, in floats */
    float *q;            /* (group, head_stride): rows as units, zeros behind them */
    const int32_t *from; /* (rows) first visible key */
    const int32_t *to;   /* (rows) one past the last */
    float *lse;          /* (group, rows) times log2(e) */
};

struct columns_kernels {
    void (*load_rows)(const struct columns_item *item);
    void (*lse)(const struct columns_item *item, const struct columns_scratch *scratch);
    void (*sums)(const struct columns_item *item, const struct columns_scratch *scratch);
};

extern const struct columns_kernels columns_generic;
extern const struct columns_kernels columns_avx2;
extern const struct columns_kernels columns_avx512;
extern const struct columns_kernels columns_avx512_bf16; /* bf16 devices only, */
extern const struct columns_kernels columns_amx;         /* like this one */

#endif
