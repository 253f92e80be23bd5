/*
 * linear_rows_template.h - dot products of a few rows with many weight rows, for one instruction
 * set.
 *
 * The order of a dot product is fixed and knows nothing of the other rows: two vector
 * accumulators take the elements in turn, one vector each, and are added once at the end.  Tiles
 * of up to TILE_ROWS rows and TILE_FEATURES weight rows only share loads.
 *
 * x is float32, weights are float32 (`wide`) or bf16.
 */
#include "kernels/cpu/linear_rows.h"

enum { TILE_ROWS = 4, TILE_FEATURES = VEC_LANES == 16 ? 3 : 1, AHEAD = 2048, LINE = 64 };

struct dot_tile {
    const float *x[TILE_ROWS];
    const char *w[TILE_FEATURES];
    vec sum[TILE_ROWS][TILE_FEATURES][2];
};

/* One vector of every row and weight row: the n elements from k, all of a vector if n is 0. */
static inline __attribute__((always_inline)) void dot_tile_step(struct dot_tile *t, const bool wide,
                                                                const int rows, const int features,
                                                                size_t k, int n, const int turn)
{
    vec x[TILE_ROWS];

#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        x[r] = n ? vec_load_part(t->x[r] + k, n) : vec_load(t->x[r] + k);
    }
#pragma GCC unroll 4
    for (int j = 0; j < features; j++) {
        vec w = n ? vec_load_act_part(wide, t->w[j], k, n) : vec_load_act(wide, t->w[j], k);

#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            t->sum[r][j][turn] = vec_fma(x[r], w, t->sum[r][j][turn]);
        }
    }
}

/* out of rows r0.. and features j0..; the first tile of a weight row also fetches ahead, since the
 * processor's own prefetching ends at every page. */
static inline __attribute__((always_inline)) void dot_tile(const struct dot_rows *a,
                                                           const bool wide, int r0, int j0,
                                                           const int rows, const int features)
{
    const size_t w_bytes = wide ? sizeof(float) : sizeof(bf16);
    const size_t lanes = VEC_LANES, cols = (size_t)a->cols;
    struct dot_tile t;
    size_t k = 0;

    for (int r = 0; r < rows; r++) {
        t.x[r] = (const float *)a->x + (size_t)(r0 + r) * a->x_stride;
        for (int j = 0; j < features; j++) {
            t.sum[r][j][0] = t.sum[r][j][1] = vec_zero();
        }
    }
    for (int j = 0; j < features; j++) {
        t.w[j] = (const char *)a->w + (size_t)(j0 + j) * a->w_stride * w_bytes;
    }
    for (; k + 2 * lanes <= cols; k += 2 * lanes) {
        for (int j = 0; j < features && r0 == 0; j++) {
            for (size_t line = 0; line < 2 * lanes * w_bytes; line += LINE) {
                __builtin_prefetch(t.w[j] + k * w_bytes + AHEAD + line);
            }
        }
        dot_tile_step(&t, wide, rows, features, k, 0, 0);
        dot_tile_step(&t, wide, rows, features, k + lanes, 0, 1);
    }
    if (k + lanes <= cols) {
        dot_tile_step(&t, wide, rows, features, k, 0, 0);
        k += lanes;
        if (k < cols) {
            dot_tile_step(&t, wide, rows, features, k, (int)(cols - k), 1);
        }
    } else if (k < cols) {
        dot_tile_step(&t, wide, rows, features, k, (int)(cols - k), 0);
    }
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < features; j++) {
            a->out[(size_t)(r0 + r) * a->out_stride + (size_t)(j0 + j)] =
                vec_hsum(vec_add(t.sum[r][j][0], t.sum[r][j][1]));
        }
    }
}

static inline __attribute__((always_inline)) void dot_features(const struct dot_rows *a,
                                                               const bool wide, int j0,
                                                               const int features)
{
    int r = 0;

    for (; r + TILE_ROWS <= a->rows; r += TILE_ROWS) {
        dot_tile(a, wide, r, j0, TILE_ROWS, features);
    }
    switch (a->rows - r) {
    case 3:
        dot_tile(a, wide, r, j0, 3, features);
        break;
    case 2:
        dot_tile(a, wide, r, j0, 2, features);
        break;
    case 1:
        dot_tile(a, wide, r, j0, 1, features);
        break;
    default:
        break;
    }
}

/* Few rows are bound by memory, which likes one stream; many by arithmetic, which likes tiles. */
static inline __attribute__((always_inline)) void dot_rows(const struct dot_rows *a,
                                                           const bool wide)
{
    int j = 0;

    if (a->rows > TILE_ROWS && TILE_FEATURES > 1) {
        for (; j + TILE_FEATURES <= a->features; j += TILE_FEATURES) {
            dot_features(a, wide, j, TILE_FEATURES);
        }
    }
    for (; j < a->features; j++) {
        dot_features(a, wide, j, 1);
    }
}
