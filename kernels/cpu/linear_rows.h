/*
 * linear_rows.h - inner kernels of op_linear_rows(): dot products of a few rows with many
 * weight rows.  Every instruction set compiles linear_rows_template.h.
 */
#ifndef KERNELS_CPU_LINEAR_ROWS_H
#define KERNELS_CPU_LINEAR_ROWS_H

#include "kernels/cpu/bf16.h"
#include "kernels/op.h"

#include <stddef.h>

/*
 * What a kernel wants x to be.  Tiles: groups of DOT_TILE_ROWS rows, x_stride words of 32 bits
 * apart; word [p][r] of a group is the pair of columns 2p and 2p + 1 of its row r.  Columns are
 * padded with zeros to whole tiles, rows to whole groups.
 */
enum dot_x { DOT_X_PLAIN, DOT_X_WIDENED, DOT_X_TILES };
enum { DOT_TILE_ROWS = 16, DOT_TILE_COLS = 32 };

/* out[r * out_stride + j] = x[r] . w[j] for r < rows, j < features; strides in elements. */
struct dot_rows {
    float *out;
    size_t out_stride;
    const void *x;
    size_t x_stride;
    const void *w;
    size_t w_stride;
    int rows, features, cols;
};

struct linear_rows_kernels {
    enum dot_x x_form;
    void (*dot_rows)(const struct dot_rows *args);
};

extern const struct linear_rows_kernels linear_rows_f32_generic;
extern const struct linear_rows_kernels linear_rows_f32_avx2;
extern const struct linear_rows_kernels linear_rows_f32_avx512;
extern const struct linear_rows_kernels linear_rows_bf16_generic;
extern const struct linear_rows_kernels linear_rows_bf16_avx2;
extern const struct linear_rows_kernels linear_rows_bf16_avx512;
extern const struct linear_rows_kernels linear_rows_bf16_amx;

#endif
