/*
 * linear_packed.h - out = x w^T for many rows in bf16, with operands packed on the way.
 *
 * A word of 32 bits holds two neighbouring columns, what one bf16 multiply-add takes.  x is packed
 * once a call, in blocks of up to PACKED_ROWS rows: [pairs][rows] words.  Weights are packed by the
 * thread that uses them, PACKED_FEATURES at a time: [pairs][PACKED_FEATURES] words, small enough
 * for its second-level cache, and then serve all rows.  Each output is one chain of multiply-adds
 * in ascending columns a pass, and the passes are added up in order, whatever the number of rows
 * and threads.
 */
#ifndef KERNELS_CPU_LINEAR_PACKED_H
#define KERNELS_CPU_LINEAR_PACKED_H

#include "kernels/cpu/bf16.h"
#include "kernels/op.h"

#include <stdbool.h>
#include <stddef.h>

enum {
    PACKED_ROWS = 12,
    PACKED_ROWS_STEP = 4, /* the last block has a multiple of this, filled up with zeros */
    PACKED_FEATURES = 32,
    PACKED_PAIRS = 1024, /* of a pass; longer products are sums of passes, in float32 */
};

/* One block of rows times the packed features. */
struct packed_tile {
    const uint32_t *x, *w;
    float *sums; /* (PACKED_ROWS, PACKED_FEATURES) between passes */
    void *out;   /* row 0, the first of the features; used in the last pass */
    size_t out_stride;
    int block_rows; /* packed */
    int rows, features, pairs;
    bool wide;        /* out is float32 */
    bool first, last; /* pass */
};

struct linear_packed_kernels {
    /* Columns cols past the end of a row, and rows past `rows` up to block_rows, are zeros. */
    void (*pack_rows)(uint32_t *out, const bf16 *x, size_t stride, int rows, int block_rows,
                      int cols);
    void (*pack_features)(uint32_t *out, const bf16 *w, size_t stride, int features, int cols);
    void (*product)(const struct packed_tile *tile);
};

extern const struct linear_packed_kernels linear_packed_avx512_bf16;

/* op_linear() of a bf16 device whose table has these kernels. */
status linear_packed(struct device *dev, void *out, enum dtype out_dtype, const bf16 *x,
                     const struct matrix *w, int rows);

#endif
