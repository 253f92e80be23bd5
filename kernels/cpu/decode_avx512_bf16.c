/*
 * decode_avx512_bf16.c - decode attention on pairs of bf16 with AVX512-BF16; what is not bf16 goes
 * the way of decode_avx512.c.
 *
 * A query meets a key by pairs of elements.  Values are read by pairs of rows, their elements
 * interleaved, under pairs of weights, which are rounded to bf16 for this; their sum is not.
 * The values of a tile are fetched while its keys are read, and the next tile's keys while its
 * values are.
 */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/decode.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/decode_template.h"
/* clang-format on */

enum {
    PAIRS_CHUNK = 32,                   /* bf16 of a register */
    PAIRS_PITCH = 2 * DECODE_TILE_ROWS, /* bf16 from one head's weights to the next one's */
    PAIRS_HEADS = 4,                    /* that read values together */
    PAIRS_CHUNKS = 2,                   /* of their elements at a time */
};

/* The first n elements of a chunk, zeros behind them. */
DECODE_INLINE __m512i pairs_load(const bf16 *p, int n)
{
    return n >= PAIRS_CHUNK ? _mm512_loadu_si512(p)
                            : _mm512_maskz_loadu_epi16((__mmask32)((1u << n) - 1u), p);
}

DECODE_INLINE vec pairs_dot(vec sum, __m512i a, __m512i b)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

/* A tile's rows: the elements where they start, the last one again behind it. */
struct pairs_tile {
    int n;
    size_t at[DECODE_TILE_ROWS];
};

static void pairs_find(struct pairs_tile *tile, const struct decode_split *s, int begin)
{
    const size_t d = (size_t)s->pool->head_dim;
    const int page_rows = s->pool->page_rows;
    int i = 0;

    tile->n = s->end - begin < DECODE_TILE_ROWS ? s->end - begin : DECODE_TILE_ROWS;
    while (i < tile->n) {
        int row = (begin + i) % page_rows;
        size_t at = decode_row_at(s->pool, s->pages, begin + i);

        for (; i < tile->n && row < page_rows; i++, row++, at += d) {
            tile->at[i] = at;
        }
    }
    for (; tile->n > 0 && i < DECODE_TILE_ROWS; i++) {
        tile->at[i] = tile->at[tile->n - 1];
    }
}

/* n rows from row i on are needed soon. */
DECODE_INLINE void pairs_fetch(const void *rows, const struct pairs_tile *tile, int i, int n, int d)
{
    for (int j = i; j < i + n && j < tile->n; j++) {
        const bf16 *from = (const bf16 *)rows + tile->at[j];

        for (int c = 0; c < d; c += 64 / (int)sizeof(bf16)) {
            __builtin_prefetch(from + c, 0, 3);
        }
    }
}

/* Dot products of q with the rows at `at`. */
DECODE_INLINE vec pairs_dots(const bf16 *q, const bf16 *k, const size_t *at, int d)
{
    vec sum[VEC_LANES];

    for (int i = 0; i < VEC_LANES; i++) {
        sum[i] = vec_zero();
    }
    for (int c = 0; c < d; c += PAIRS_CHUNK) {
        __m512i x = pairs_load(q + c, d - c);

        if (d - c >= PAIRS_CHUNK) {
            for (int i = 0; i < VEC_LANES; i++) {
                sum[i] = pairs_dot(sum[i], x, _mm512_loadu_si512(k + at[i] + c));
            }
        } else {
            for (int i = 0; i < VEC_LANES; i++) {
                sum[i] = pairs_dot(sum[i], x, pairs_load(k + at[i] + c, d - c));
            }
        }
    }
    return vec_sums(sum);
}

static void pairs_scores(const struct decode_split *s, const struct pairs_tile *tile)
{
    const int d = s->pool->head_dim;

    for (int i = 0; i < tile->n; i += VEC_LANES) {
        pairs_fetch(s->pool->v, tile, i, VEC_LANES, d);
        for (int h = 0; h < s->group; h++) {
            const bf16 *q = (const bf16 *)s->queries + (size_t)h * (size_t)d;

            vec_store(s->weights + (size_t)h * DECODE_TILE_ROWS + i,
                      pairs_dots(q, s->pool->k, tile->at + i, d));
        }
    }
}

/* The weights of a head, which become bf16 where they lie. */
static void pairs_round(float *w)
{
    __m512bh x[DECODE_TILE_VECS / 2];

    for (int i = 0; i < DECODE_TILE_VECS / 2; i++) {
        x[i] = _mm512_cvtne2ps_pbh(vec_load(w + (size_t)(2 * i + 1) * VEC_LANES),
                                   vec_load(w + (size_t)(2 * i) * VEC_LANES));
    }
    memcpy(w, x, sizeof(x));
}

/* Interleaving two rows leaves the low half of each 128-bit lane's elements in one register and
 * the high half in the other: from the order of memory to this, and back. */
DECODE_INLINE void pairs_swap(vec *a, vec *b)
{
    vec even = _mm512_shuffle_f32x4(*a, *b, 0x88), odd = _mm512_shuffle_f32x4(*a, *b, 0xdd);

    *a = even;
    *b = odd;
}

DECODE_INLINE void pairs_swap_back(vec *a, vec *b)
{
    vec low = _mm512_shuffle_f32x4(*a, *b, 0x44), high = _mm512_shuffle_f32x4(*a, *b, 0xee);

    *a = _mm512_shuffle_f32x4(low, low, 0xd8);
    *b = _mm512_shuffle_f32x4(high, high, 0xd8);
}

/* Elements of a row from chunk c on, where it has `left` from chunk 0 on. */
DECODE_INLINE int pairs_left(int left, size_t c)
{
    return left - (int)c * PAIRS_CHUNK;
}

/* values[0..heads)[0..32 chunks) += weights times a tile's rows; heads and chunks are constants. */
DECODE_INLINE void pairs_add(const struct decode_split *s, const struct pairs_tile *tile,
                             const struct pairs_tile *next, int h0, int c0, const size_t heads,
                             const size_t chunks)
{
    const bf16 *w = (const bf16 *)(s->weights + (size_t)h0 * DECODE_TILE_ROWS);
    const bf16 *v = (const bf16 *)s->pool->v + c0;
    const int left = s->pool->head_dim - c0;
    float *values = s->values + (size_t)h0 * s->stride + (size_t)c0;
    vec sum[PAIRS_HEADS][PAIRS_CHUNKS][2];

    for (size_t h = 0; h < heads; h++) {
        for (size_t c = 0; c < chunks; c++) {
            const float *from = values + h * s->stride + c * PAIRS_CHUNK;
            bool both = pairs_left(left, c) > VEC_LANES;

            sum[h][c][0] = vec_load(from);
            sum[h][c][1] = both ? vec_load(from + VEC_LANES) : vec_zero();
            pairs_swap(&sum[h][c][0], &sum[h][c][1]);
        }
    }
    for (int i = 0; i < tile->n; i += 2) {
        if (next) {
            pairs_fetch(s->pool->k, next, i, 2, s->pool->head_dim);
        }
        for (size_t c = 0; c < chunks; c++) {
            const bf16 *from = v + c * PAIRS_CHUNK;
            __m512i a = pairs_load(from + tile->at[i], pairs_left(left, c));
            __m512i b = pairs_load(from + tile->at[i + 1], pairs_left(left, c));
            __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);

            for (size_t h = 0; h < heads; h++) {
                int32_t pair;

                memcpy(&pair, w + h * PAIRS_PITCH + i, sizeof(pair));
                sum[h][c][0] = pairs_dot(sum[h][c][0], low, _mm512_set1_epi32(pair));
                sum[h][c][1] = pairs_dot(sum[h][c][1], high, _mm512_set1_epi32(pair));
            }
        }
    }
    for (size_t h = 0; h < heads; h++) {
        for (size_t c = 0; c < chunks; c++) {
            float *to = values + h * s->stride + c * PAIRS_CHUNK;

            pairs_swap_back(&sum[h][c][0], &sum[h][c][1]);
            vec_store(to, sum[h][c][0]);
            if (pairs_left(left, c) > VEC_LANES) {
                vec_store(to + VEC_LANES, sum[h][c][1]);
            }
        }
    }
}

/* The heads from h0 on, at most PAIRS_HEADS. */
DECODE_INLINE void pairs_add_heads(const struct decode_split *s, const struct pairs_tile *tile,
                                   const struct pairs_tile *next, int h0, const size_t heads)
{
    const int d = s->pool->head_dim;
    int c = 0;

    for (; d - c >= PAIRS_CHUNKS * PAIRS_CHUNK; c += PAIRS_CHUNKS * PAIRS_CHUNK) {
        pairs_add(s, tile, c + h0 == 0 ? next : NULL, h0, c, heads, PAIRS_CHUNKS);
    }
    for (; c < d; c += PAIRS_CHUNK) {
        pairs_add(s, tile, c + h0 == 0 ? next : NULL, h0, c, heads, 1);
    }
}

static void pairs_values(const struct decode_split *s, const struct pairs_tile *tile,
                         const struct pairs_tile *next)
{
    for (int h = 0; h < s->group; h += PAIRS_HEADS) {
        switch (s->group - h) {
        case 1:
            pairs_add_heads(s, tile, next, h, 1);
            break;
        case 2:
            pairs_add_heads(s, tile, next, h, 2);
            break;
        case 3:
            pairs_add_heads(s, tile, next, h, 3);
            break;
        default:
            pairs_add_heads(s, tile, next, h, PAIRS_HEADS);
        }
    }
}

static void pairs_run_split(const struct decode_split *s)
{
    struct pairs_tile tiles[2], *tile = &tiles[0], *next = &tiles[1];
    float *lanes = decode_begin(s);

    pairs_find(tile, s, s->begin);
    for (int i = s->begin; i < s->end; i += DECODE_TILE_ROWS) {
        struct pairs_tile *done = tile;

        pairs_find(next, s, i + tile->n);
        pairs_scores(s, tile);
        for (int h = 0; h < s->group; h++) {
            decode_weights(s, lanes + (size_t)h * VEC_LANES, h, tile->n);
            pairs_round(s->weights + (size_t)h * DECODE_TILE_ROWS);
        }
        pairs_values(s, tile, next);
        tile = next;
        next = done;
    }
    decode_finish(s, lanes);
}

static void run_split(const struct decode_split *s)
{
    if (decode_form(s) == DECODE_BF16) {
        pairs_run_split(s);
    } else {
        decode_run_split(s);
    }
}

const struct decode_kernels decode_avx512_bf16 = {
    .split = run_split,
    .mass = decode_run_mass,
};
