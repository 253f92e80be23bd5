/*
 * linear_packed.h - out = x w^T in bf16 for weights that op_pack() laid out: prompts and decode
 * steps alike.
 *
 * A word of 32 bits holds two neighbouring columns, what one bf16 multiply-add takes.  Weights lie
 * in panels of PACKED_FEATURES rows of w, one after the other: [pairs][PACKED_FEATURES] words each,
 * so that a thread reads one stream.  x is packed once a call, in blocks of up to PACKED_ROWS
 * rows: [pairs][rows] words.  A part of a panel, PACKED_PAIRS long and small enough for the
 * second-level cache, serves all rows while the next part is fetched.
 *
 * Each output is one chain of multiply-adds in ascending columns a part, and the parts are added
 * up in order, whatever the number of rows and threads.
 */
#ifndef KERNELS_CPU_LINEAR_PACKED_H
#define KERNELS_CPU_LINEAR_PACKED_H

#include "kernels/cpu/bf16.h"
#include "kernels/op.h"

#include <stdbool.h>
#include <stddef.h>

enum {
    PACKED_ROWS = 12,
    PACKED_ROWS_STEP = 4, /* blocks have a multiple of this, filled up with zeros; or one row */
    PACKED_FEATURES = OP_PACK_ROWS,
    PACKED_PAIRS = 1024, /* of a part */
};

/* One block of rows times a part of a panel. */
struct packed_tile {
    const uint32_t *x, *w;
    const char *next; /* what is read soon, to be fetched: next_step bytes a pair */
    size_t next_step;
    float *sums; /* (PACKED_ROWS, PACKED_FEATURES) between parts */
    void *out;   /* row 0, the first of the features; used in the last part */
    size_t out_stride;
    int block_rows; /* packed */
    int rows, features, pairs;
    bool wide;        /* out is float32 */
    bool add;         /* and added to */
    bool first, last; /* part */
};

struct linear_packed_kernels {
    /* Columns cols past the end of a row, and rows past `rows` up to block_rows, are zeros. */
    void (*pack_rows)(uint32_t *out, const bf16 *x, size_t stride, int rows, int block_rows,
                      int cols);
    void (*pack_panel)(uint32_t *out, const bf16 *w, size_t stride, int features, int cols);
    void (*product)(const struct packed_tile *tile);
};

extern const struct linear_packed_kernels linear_packed_avx512_bf16;

/* op_linear() and op_linear_rows() for a packed w, and the same added to what `sum` holds. */
status linear_packed(struct device *dev, void *out, enum dtype out_dtype, const bf16 *x,
                     const struct matrix *w, int rows);
size_t linear_packed_workspace(const struct device *dev, const struct matrix *w, int rows);
status linear_packed_add(struct device *dev, float *sum, const bf16 *x, const struct matrix *w,
                         int rows);

/* Row `row` of a packed matrix, widened. */
void linear_packed_row(float *out, const struct matrix *w, size_t row);

#endif
