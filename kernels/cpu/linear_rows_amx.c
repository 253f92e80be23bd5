/*
 * linear_rows_amx.c - the matrix products of decoding on AMX tiles.
 *
 * A tile of 16 weight rows by 32 columns is loaded from where it lies and multiplied with up to
 * four tiles of 16 packed rows of x each; an element of the result is the sum along the columns
 * in their order, whatever the other elements are.  16 to 64 rows cost little more than one, and
 * all of them wait for memory only.
 */
#include "kernels/cpu/linear_rows.h"

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum {
    GROUPS = OP_MAX_DECODE_ROWS / DOT_TILE_ROWS,
    AHEAD = 12 * DOT_TILE_COLS, /* elements fetched ahead in each of the 16 rows */
    TILE_BYTES = 64,            /* of one row of a tile */
};

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tiles 0..3: sums of four groups; 4: weights; 5: x. */
static void tiles_open(void)
{
    struct tile_config config = {.palette = 1};

    for (int i = 0; i < GROUPS + 2; i++) {
        config.row_bytes[i] = TILE_BYTES;
        config.rows[i] = DOT_TILE_ROWS;
    }
    _tile_loadconfig(&config);
}

/* sum of every group += weights, tile 4, times x of the group at this step along the columns. */
static inline __attribute__((always_inline)) void tiles_multiply(const uint32_t *x,
                                                                 size_t group_words,
                                                                 const int groups)
{
    _tile_loadd(5, x, TILE_BYTES);
    _tile_dpbf16ps(0, 4, 5);
    if (groups > 1) {
        _tile_loadd(5, x + group_words, TILE_BYTES);
        _tile_dpbf16ps(1, 4, 5);
    }
    if (groups > 2) {
        _tile_loadd(5, x + 2 * group_words, TILE_BYTES);
        _tile_dpbf16ps(2, 4, 5);
    }
    if (groups > 3) {
        _tile_loadd(5, x + 3 * group_words, TILE_BYTES);
        _tile_dpbf16ps(3, 4, 5);
    }
}

/* A tile at the edge of the weights, zeros outside. */
static void tile_load_part(const bf16 *w, size_t stride, int rows, size_t cols)
{
    bf16 part[DOT_TILE_ROWS * DOT_TILE_COLS] = {0};

    for (int r = 0; r < rows; r++) {
        memcpy(part + (size_t)r * DOT_TILE_COLS, w + (size_t)r * stride, cols * sizeof(bf16));
    }
    /* gcc 12 does not know that a tile load reads memory: without this it drops the stores. */
    __asm__ volatile("" : : "r"(part) : "memory");
    _tile_loadd(4, part, TILE_BYTES);
}

/* The next lines of all 16 rows; past the end of a row, those of the next 16 rows. */
static inline void fetch_ahead(const bf16 *w, size_t stride, size_t cols, size_t k)
{
    size_t at = k + AHEAD;

    if (at >= cols) {
        at = at - cols + DOT_TILE_ROWS * stride;
    }
    for (size_t r = 0; r < DOT_TILE_ROWS; r++) {
        __builtin_prefetch(w + r * stride + at, 0, 2);
    }
}

/* Into tiles 0..: the products of the weight rows from j with all groups. */
static inline __attribute__((always_inline)) void tiles_run(const struct dot_rows *a, int j,
                                                            int features, const int groups)
{
    const bf16 *w = (const bf16 *)a->w + (size_t)j * a->w_stride;
    const uint32_t *x = a->x;
    size_t cols = (size_t)a->cols, group_words = a->x_stride, k = 0;

    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (; features == DOT_TILE_ROWS && k + DOT_TILE_COLS <= cols; k += DOT_TILE_COLS) {
        fetch_ahead(w, a->w_stride, cols, k);
        _tile_loadd(4, w + k, a->w_stride * sizeof(bf16));
        tiles_multiply(x + k / 2 * DOT_TILE_ROWS, group_words, groups);
    }
    for (; k < cols; k += DOT_TILE_COLS) {
        size_t n = cols - k < DOT_TILE_COLS ? cols - k : DOT_TILE_COLS;

        tile_load_part(w + k, a->w_stride, features, n);
        tiles_multiply(x + k / 2 * DOT_TILE_ROWS, group_words, groups);
    }
}

/* out of group g, from sums (weight row, row of x). */
static void store_group(const struct dot_rows *a, const float *sums, int g, int j, int features)
{
    int first = g * DOT_TILE_ROWS;
    int rows = a->rows - first < DOT_TILE_ROWS ? a->rows - first : DOT_TILE_ROWS;

    for (int r = 0; r < rows; r++) {
        for (int f = 0; f < features; f++) {
            a->out[(size_t)(first + r) * a->out_stride + (size_t)(j + f)] =
                sums[f * DOT_TILE_ROWS + r];
        }
    }
}

static void store_all(const struct dot_rows *a, int j, int features, int groups)
{
    float sums[GROUPS][DOT_TILE_ROWS * DOT_TILE_ROWS];

    _tile_stored(0, sums[0], TILE_BYTES);
    _tile_stored(1, sums[1], TILE_BYTES);
    _tile_stored(2, sums[2], TILE_BYTES);
    _tile_stored(3, sums[3], TILE_BYTES);
    for (int g = 0; g < groups; g++) {
        store_group(a, sums[g], g, j, features);
    }
}

static void dot_rows_amx(const struct dot_rows *args)
{
    int groups = (args->rows + DOT_TILE_ROWS - 1) / DOT_TILE_ROWS;

    tiles_open();
    for (int j = 0; j < args->features; j += DOT_TILE_ROWS) {
        int rest = args->features - j;
        int features = rest < DOT_TILE_ROWS ? rest : DOT_TILE_ROWS;

        switch (groups) {
        case 1:
            tiles_run(args, j, features, 1);
            break;
        case 2:
            tiles_run(args, j, features, 2);
            break;
        case 3:
            tiles_run(args, j, features, 3);
            break;
        default:
            tiles_run(args, j, features, GROUPS);
            break;
        }
        store_all(args, j, features, groups);
    }
    _tile_release();
}

const struct linear_rows_kernels linear_rows_bf16_amx = {
    .x_form = DOT_X_TILES,
    .dot_rows = dot_rows_amx,
};
