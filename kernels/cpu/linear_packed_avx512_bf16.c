/* linear_packed_avx512_bf16.c - packing and products of linear_packed.h with AVX512-BF16. */
#include "kernels/cpu/linear_packed.h"
#include "kernels/cpu/simd_avx512.h"

enum { FEATURE_VECS = PACKED_FEATURES / VEC_LANES, LINE = 64 };

/* Vector v of row i of a panel of PACKED_FEATURES columns. */
static inline size_t word_at(int i, int v)
{
    return (size_t)i * PACKED_FEATURES + (size_t)v * VEC_LANES;
}

/* VEC_LANES pairs from column `col` of up to VEC_LANES rows, transposed. */
static inline void load_pairs(vec x[VEC_LANES], const bf16 *from, size_t stride, int rows, int left)
{
    __mmask32 mask = left >= 2 * VEC_LANES ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;

    for (int i = 0; i < VEC_LANES; i++) {
        x[i] = i < rows
                   ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, from + (size_t)i * stride))
                   : vec_zero();
    }
    vec_transpose(x);
}

static void pack_rows(uint32_t *out, const bf16 *x, size_t stride, int rows, int block_rows,
                      int cols)
{
    const __mmask16 lanes = vec_first_lanes(block_rows);

    for (int col = 0; col < cols; col += 2 * VEC_LANES) {
        int pairs = (cols - col + 1) / 2;
        vec words[VEC_LANES];

        load_pairs(words, x + col, stride, rows, cols - col);
        for (int p = 0; p < VEC_LANES && p < pairs; p++) {
            _mm512_mask_storeu_ps(out, lanes, words[p]);
            out += block_rows;
        }
    }
}

static void pack_panel(uint32_t *out, const bf16 *w, size_t stride, int features, int cols)
{
    for (int col = 0; col < cols; col += 2 * VEC_LANES) {
        int pairs = (cols - col + 1) / 2;

        for (int v = 0; v < FEATURE_VECS; v++) {
            vec words[VEC_LANES];

            load_pairs(words, w + (size_t)(v * VEC_LANES) * stride + col, stride,
                       features - v * VEC_LANES, cols - col);
            for (int p = 0; p < VEC_LANES && p < pairs; p++) {
                _mm512_store_ps(out + word_at(p, v), words[p]);
            }
        }
        out += (size_t)VEC_LANES * PACKED_FEATURES;
    }
}

static inline void store_out(const struct packed_tile *t, int row, int v, vec sum)
{
    int left = t->features - v * VEC_LANES;
    size_t at = (size_t)row * t->out_stride + (size_t)(v * VEC_LANES);
    __mmask16 lanes = left >= VEC_LANES ? 0xffff : left <= 0 ? 0 : vec_first_lanes(left);

    if (t->add) {
        sum = vec_add(_mm512_maskz_loadu_ps(lanes, (const float *)t->out + at), sum);
    }
    if (t->wide) {
        _mm512_mask_storeu_ps((float *)t->out + at, lanes, sum);
    } else {
        _mm256_mask_storeu_epi16((bf16 *)t->out + at, lanes, vec_to_bits16(sum));
    }
}

typedef vec block_sums[PACKED_ROWS][FEATURE_VECS];

static inline __attribute__((always_inline)) void add_sums(block_sums sum,
                                                           const struct packed_tile *t,
                                                           const int block_rows)
{
#pragma GCC unroll 12
    for (int r = 0; r < block_rows; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < FEATURE_VECS; v++) {
            sum[r][v] = vec_add(vec_load(t->sums + word_at(r, v)), sum[r][v]);
        }
    }
}

static inline __attribute__((always_inline)) void store_sums(block_sums sum,
                                                             const struct packed_tile *t,
                                                             const int block_rows)
{
#pragma GCC unroll 12
    for (int r = 0; r < block_rows; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < FEATURE_VECS; v++) {
            if (!t->last) {
                vec_store(t->sums + word_at(r, v), sum[r][v]);
            } else if (r < t->rows) {
                store_out(t, r, v, sum[r][v]);
            }
        }
    }
}

static inline __attribute__((always_inline)) void product(const struct packed_tile *t,
                                                          const int block_rows)
{
    const uint32_t *x = t->x, *w = t->w;
    const char *next = t->next;
    block_sums sum;

#pragma GCC unroll 12
    for (int r = 0; r < block_rows; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < FEATURE_VECS; v++) {
            sum[r][v] = vec_zero();
        }
    }
    for (int k = 0; k < t->pairs; k++) {
        __m512bh b[FEATURE_VECS];

        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + LINE, 0, 2);
        next += t->next_step;
#pragma GCC unroll 2
        for (int v = 0; v < FEATURE_VECS; v++) {
            b[v] = (__m512bh)_mm512_load_si512(w + word_at(0, v));
        }
#pragma GCC unroll 12
        for (int r = 0; r < block_rows; r++) {
            __m512bh a = (__m512bh)_mm512_set1_epi32((int)x[r]);

#pragma GCC unroll 2
            for (int v = 0; v < FEATURE_VECS; v++) {
                sum[r][v] = _mm512_dpbf16_ps(sum[r][v], a, b[v]);
            }
        }
        x += block_rows;
        w += PACKED_FEATURES;
    }
    if (!t->first) {
        add_sums(sum, t, block_rows);
    }
    store_sums(sum, t, block_rows);
}

static void product_of_block(const struct packed_tile *tile)
{
    switch (tile->block_rows) {
    case 1:
        product(tile, 1);
        break;
    case 4:
        product(tile, 4);
        break;
    case 8:
        product(tile, 8);
        break;
    default:
        product(tile, PACKED_ROWS);
        break;
    }
}

const struct linear_packed_kernels linear_packed_avx512_bf16 = {
    .pack_rows = pack_rows,
    .pack_panel = pack_panel,
    .product = product_of_block,
};
