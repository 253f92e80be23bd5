/*
 * int8_dot_template.h - dot products of int8 weights with planes of x, for one instruction set.
 *
 * Written in words that the including file defines: ivec (sums), wvec (weights of a step),
 * DOT_STEP, DOT_OFFSET (what dot_load() adds to each weight), dot_zero, dot_load, dot_load_part,
 * dot_add and dot_sum.
 */
#include "kernels/cpu/int8.h"

enum { DOT_ROWS = 4, DOT_FEATURES = 2, DOT_AHEAD = 2048 };

struct dot_tile {
    const int8_t *x, *w;
    size_t x_row, x_plane, w_row;
    ivec sum[DOT_ROWS][DOT_FEATURES][INT8_PLANES];
};

#define DOT_INLINE static inline __attribute__((always_inline))

/* One step of every row and feature: n weights from k, a whole step if n is 0. */
DOT_INLINE void dot_tile_step(struct dot_tile *t, const int rows, const int features, size_t k,
                              size_t n)
{
    wvec w[DOT_FEATURES];

#pragma GCC unroll 2
    for (int j = 0; j < features; j++) {
        const int8_t *from = t->w + (size_t)j * t->w_row + k;

        w[j] = n ? dot_load_part(from, n) : dot_load(from);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 2
        for (int p = 0; p < INT8_PLANES; p++) {
            const int8_t *x = t->x + (size_t)r * t->x_row + (size_t)p * t->x_plane + k;

#pragma GCC unroll 2
            for (int j = 0; j < features; j++) {
                t->sum[r][j][p] = dot_add(t->sum[r][j][p], w[j], x);
            }
        }
    }
}

/* Rows r0.. and features j0.. */
DOT_INLINE void dot_tile(const struct int8_dot *a, int r0, int j0, const int rows,
                         const int features)
{
    size_t cols = (size_t)a->cols, k = 0;
    struct dot_tile t;

    t.x = a->x + (size_t)r0 * INT8_PLANES * a->padded;
    t.w = a->w + (size_t)j0 * a->w_stride;
    t.x_row = INT8_PLANES * a->padded;
    t.x_plane = a->padded;
    t.w_row = a->w_stride;
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < features; j++) {
            t.sum[r][j][0] = t.sum[r][j][1] = dot_zero();
        }
    }
    for (; k + DOT_STEP <= cols; k += DOT_STEP) {
        for (int j = 0; j < features && r0 == 0; j++) {
            __builtin_prefetch(t.w + (size_t)j * t.w_row + k + DOT_AHEAD);
        }
        dot_tile_step(&t, rows, features, k, 0);
    }
    if (k < cols) {
        dot_tile_step(&t, rows, features, k, cols - k);
    }
    for (int r = 0; r < rows; r++) {
        const int32_t *x_sum = a->x_sum + (size_t)(r0 + r) * INT8_PLANES;

        for (int j = 0; j < features; j++) {
            int64_t high = dot_sum(t.sum[r][j][0]) - (int64_t)DOT_OFFSET * x_sum[0];
            int64_t low = dot_sum(t.sum[r][j][1]) - (int64_t)DOT_OFFSET * x_sum[1];

            a->out[(size_t)(r0 + r) * a->out_stride + (size_t)(j0 + j)] = 256 * high + low;
        }
    }
}

DOT_INLINE void dot_features(const struct int8_dot *a, int r0, const int rows, const int at_once)
{
    int j = 0;

    for (; j + at_once <= a->features; j += at_once) {
        dot_tile(a, r0, j, rows, at_once);
    }
    for (; j < a->features; j++) {
        dot_tile(a, r0, j, rows, 1);
    }
}

/* The first rows read the weights from memory, which likes one stream; the others find them in a
 * cache. */
static void dot_run(const struct int8_dot *a)
{
    int r = 0;

    for (; r + DOT_ROWS <= a->rows; r += DOT_ROWS) {
        dot_features(a, r, DOT_ROWS, DOT_FEATURES);
    }
    switch (a->rows - r) {
    case 3:
        dot_features(a, r, 3, DOT_FEATURES);
        break;
    case 2:
        dot_features(a, r, 2, 1);
        break;
    case 1:
        dot_features(a, r, 1, 1);
        break;
    default:
        break;
    }
}
