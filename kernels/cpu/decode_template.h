/*
 * decode_template.h - one split of decode attention; included once by each decode_<isa>.c.
 *
 * Tile by tile: dot products VEC_LANES rows at a time, weights with a running peak, then the
 * weighted rows of values.  Bound by memory: the values of a tile are fetched while its scores
 * are computed.
 */
#ifndef KERNELS_CPU_DECODE_TEMPLATE_H
#define KERNELS_CPU_DECODE_TEMPLATE_H

#include <float.h>
#include <math.h>

enum { DECODE_TILE_VECS = DECODE_TILE_ROWS / VEC_LANES };

#define DECODE_INLINE static inline __attribute__((always_inline))

/* Up to one vector of a row from element `at`. */
DECODE_INLINE vec decode_load(enum dtype dtype, const void *data, size_t at)
{
    return dtype == DTYPE_BF16 ? vec_load_bf16((const bf16 *)data + at)
                               : vec_load((const float *)data + at);
}

DECODE_INLINE vec decode_load_part(enum dtype dtype, const void *data, size_t at, int n)
{
    return dtype == DTYPE_BF16 ? vec_load_bf16_part((const bf16 *)data + at, n)
                               : vec_load_part((const float *)data + at, n);
}

/* Dot products of q with VEC_LANES rows of k that follow each other from element `at`. */
DECODE_INLINE vec decode_dots(enum dtype dtype, const float *q, const void *k, size_t at, int d)
{
    vec sum[VEC_LANES];
    int c = 0;

    for (int i = 0; i < VEC_LANES; i++) {
        sum[i] = vec_zero();
    }
    for (; c + VEC_LANES <= d; c += VEC_LANES) {
        vec x = vec_load(q + c);

        for (int i = 0; i < VEC_LANES; i++) {
            size_t row = at + (size_t)i * (size_t)d + (size_t)c;

            sum[i] = vec_fma(decode_load(dtype, k, row), x, sum[i]);
        }
    }
    if (c < d) {
        vec x = vec_load_part(q + c, d - c);

        for (int i = 0; i < VEC_LANES; i++) {
            size_t row = at + (size_t)i * (size_t)d + (size_t)c;

            sum[i] = vec_fma(decode_load_part(dtype, k, row, d - c), x, sum[i]);
        }
    }
    return vec_sums(sum);
}

/* Rows i.. of the cache as VEC_LANES rows that follow each other, `left` of them real: where they
 * lie, or a copy.  A group widens bf16 once. */
struct decode_keys {
    const void *data;
    size_t at;
    enum dtype dtype;
};

static void decode_widen(float *out, const bf16 *row, int d)
{
    int c = 0;

    for (; c + VEC_LANES <= d; c += VEC_LANES) {
        vec_store(out + c, vec_load_bf16(row + c));
    }
    for (; c < d; c++) {
        out[c] = bf16_to_float(row[c]);
    }
}

static struct decode_keys decode_rows(const struct decode_split *s, int i, int left)
{
    const struct kv_pool *pool = s->pool;
    size_t d = (size_t)pool->head_dim;
    bool widen = s->dtype == DTYPE_BF16 && s->group > 1;

    if (!widen && left >= VEC_LANES && i % pool->page_rows + VEC_LANES <= pool->page_rows) {
        return (struct decode_keys){pool->k, decode_row_at(pool, s->pages, i), s->dtype};
    }
    for (int j = 0; j < VEC_LANES; j++) {
        float *to = s->rows + (size_t)j * d;

        if (j >= left) {
            memset(to, 0, d * sizeof(*to));
            continue;
        }
        size_t at = decode_row_at(pool, s->pages, i + j);

        if (s->dtype == DTYPE_BF16) {
            decode_widen(to, (const bf16 *)pool->k + at, pool->head_dim);
        } else {
            memcpy(to, (const float *)pool->k + at, d * sizeof(*to));
        }
    }
    return (struct decode_keys){s->rows, 0, DTYPE_F32};
}

/* Rows i..i + VEC_LANES of values are needed soon. */
static inline void decode_fetch_values(const struct decode_split *s, int i, int end)
{
    size_t bytes =
        (size_t)s->pool->head_dim * (s->dtype == DTYPE_BF16 ? sizeof(bf16) : sizeof(float));

    for (int j = i; j < i + VEC_LANES && j < end; j++) {
        size_t row = decode_row_at(s->pool, s->pages, j) / (size_t)s->pool->head_dim;
        const char *from = (const char *)s->pool->v + row * bytes;

        for (size_t b = 0; b < bytes; b += 64) {
            __builtin_prefetch(from + b, 0, 2);
        }
    }
}

static void decode_scores(const struct decode_split *s, int begin, int end)
{
    int d = s->pool->head_dim;

    for (int i = begin; i < end; i += VEC_LANES) {
        struct decode_keys k = decode_rows(s, i, end - i);

        decode_fetch_values(s, i, end);
        for (int h = 0; h < s->group; h++) {
            const float *q = s->q + (size_t)h * s->stride;
            vec dots = k.dtype == DTYPE_BF16 ? decode_dots(DTYPE_BF16, q, k.data, k.at, d)
                                             : decode_dots(DTYPE_F32, q, k.data, k.at, d);

            vec_store(s->weights + (size_t)h * DECODE_TILE_ROWS + (i - begin), dots);
        }
    }
}

/* The n scores of head h become weights; zeros behind them. */
static void decode_weights(const struct decode_split *s, float *lanes, int h, int n)
{
    const vec to_log2 = vec_set1((float)(1.4426950408889634 / sqrt(s->pool->head_dim)));
    float *w = s->weights + (size_t)h * DECODE_TILE_ROWS;
    vec x[DECODE_TILE_VECS], top = vec_set1(-FLT_MAX);

    for (int i = 0; i < DECODE_TILE_VECS; i++) {
        x[i] = vec_mul(vec_load(w + (size_t)i * VEC_LANES), to_log2);
        x[i] = vec_between(x[i], -FLT_MAX, 0, n - i * VEC_LANES);
        top = vec_max(top, x[i]);
    }
    if (vec_any_greater(top, vec_set1(s->peak[h]))) {
        float peak = vec_hmax(top);
        vec shrink = vec_exp2(vec_set1(s->peak[h] - peak));
        float *values = s->values + (size_t)h * s->stride;

        for (size_t c = 0; c < s->stride; c += VEC_LANES) {
            vec_store(values + c, vec_mul(vec_load(values + c), shrink));
        }
        vec_store(lanes, vec_mul(vec_load(lanes), shrink));
        s->peak[h] = peak;
    }
    vec sum = vec_load(lanes), offset = vec_set1(-s->peak[h]);

    for (int i = 0; i < DECODE_TILE_VECS; i++) {
        vec p = vec_exp2(vec_add(x[i], offset));

        sum = vec_add(sum, p);
        vec_store(w + (size_t)i * VEC_LANES, p);
    }
    vec_store(lanes, sum);
}

/* values[0..heads) += weights times `n` rows that follow each other; heads is a constant. */
DECODE_INLINE void decode_add_rows(enum dtype dtype, const int heads, float *values, size_t stride,
                                   const float *w, const void *v, size_t at, const int shape[2])
{
    const int n = shape[0], d = shape[1];

    for (int c = 0; c < d; c += VEC_LANES) {
        vec sum[4];
        int part = d - c;

        for (int h = 0; h < heads; h++) {
            sum[h] = vec_load(values + (size_t)h * stride + c);
        }
        for (int j = 0; j < n; j++) {
            size_t from = at + (size_t)j * (size_t)d + (size_t)c;
            vec row = part >= VEC_LANES ? decode_load(dtype, v, from)
                                        : decode_load_part(dtype, v, from, part);

            for (int h = 0; h < heads; h++) {
                vec x = vec_set1(w[(size_t)h * DECODE_TILE_ROWS + (size_t)j]);
                sum[h] = vec_fma(row, x, sum[h]);
            }
        }
        for (int h = 0; h < heads; h++) {
            vec_store(values + (size_t)h * stride + c, sum[h]);
        }
    }
}

/* Rows i..i + n of one page; their weights start at column `col`. */
DECODE_INLINE void decode_add_run(enum dtype dtype, const struct decode_split *s, int i, int n,
                                  int col)
{
    const int shape[2] = {n, s->pool->head_dim};
    size_t at = decode_row_at(s->pool, s->pages, i);
    int h = 0;

    for (; h + 4 <= s->group; h += 4) {
        decode_add_rows(dtype, 4, s->values + (size_t)h * s->stride, s->stride,
                        s->weights + (size_t)h * DECODE_TILE_ROWS + col, s->pool->v, at, shape);
    }
    for (; h + 2 <= s->group; h += 2) {
        decode_add_rows(dtype, 2, s->values + (size_t)h * s->stride, s->stride,
                        s->weights + (size_t)h * DECODE_TILE_ROWS + col, s->pool->v, at, shape);
    }
    for (; h < s->group; h++) {
        decode_add_rows(dtype, 1, s->values + (size_t)h * s->stride, s->stride,
                        s->weights + (size_t)h * DECODE_TILE_ROWS + col, s->pool->v, at, shape);
    }
}

static void decode_values(const struct decode_split *s, int begin, int end)
{
    for (int i = begin; i < end;) {
        int left = s->pool->page_rows - i % s->pool->page_rows;
        int n = left < end - i ? left : end - i;

        if (s->dtype == DTYPE_BF16) {
            decode_add_run(DTYPE_BF16, s, i, n, i - begin);
        } else {
            decode_add_run(DTYPE_F32, s, i, n, i - begin);
        }
        i += n;
    }
}

static void decode_run_split(const struct decode_split *s)
{
    float *lanes = s->weights + (size_t)s->group * DECODE_TILE_ROWS;

    memset(s->values, 0, (size_t)s->group * s->stride * sizeof(float));
    memset(lanes, 0, (size_t)s->group * VEC_LANES * sizeof(float));
    for (int h = 0; h < s->group; h++) {
        s->peak[h] = -FLT_MAX;
    }
    for (int i = s->begin; i < s->end; i += DECODE_TILE_ROWS) {
        int end = s->end - i < DECODE_TILE_ROWS ? s->end : i + DECODE_TILE_ROWS;

        decode_scores(s, i, end);
        for (int h = 0; h < s->group; h++) {
            decode_weights(s, lanes + (size_t)h * VEC_LANES, h, end - i);
        }
        decode_values(s, i, end);
    }
    for (int h = 0; h < s->group; h++) {
        s->sum[h] = vec_hsum(vec_load(lanes + (size_t)h * VEC_LANES));
    }
}

/* One row of scaled scores becomes probabilities; n is padded to whole vectors. */
static void decode_softmax(float *p, int n)
{
    vec top = vec_set1(-FLT_MAX), sum = vec_zero();

    for (int i = 0; i < n; i += VEC_LANES) {
        vec x = vec_between(vec_load(p + i), -FLT_MAX, 0, n - i);

        vec_store(p + i, x);
        top = vec_max(top, x);
    }
    vec offset = vec_set1(-vec_hmax(top));
    for (int i = 0; i < n; i += VEC_LANES) {
        vec x = vec_exp2(vec_add(vec_load(p + i), offset));

        vec_store(p + i, x);
        sum = vec_add(sum, x);
    }
    vec scale = vec_set1(1.0f / vec_hsum(sum));
    for (int i = 0; i < n; i += VEC_LANES) {
        vec_store(p + i, vec_mul(vec_load(p + i), scale));
    }
}

static void decode_run_mass(const struct decode_split *s, size_t q_stride)
{
    const vec to_log2 = vec_set1((float)(1.4426950408889634 / sqrt(s->pool->head_dim)));
    struct decode_split tile = *s;

    tile.stride = q_stride; /* decode_scores() reads q alone by it */
    for (int i = s->begin; i < s->end; i += DECODE_TILE_ROWS) {
        int end = s->end - i < DECODE_TILE_ROWS ? s->end : i + DECODE_TILE_ROWS;

        decode_scores(&tile, i, end);
        for (int h = 0; h < s->group; h++) {
            const float *from = s->weights + (size_t)h * DECODE_TILE_ROWS;
            float *to = s->values + (size_t)h * s->stride + (size_t)(i - s->begin);

            for (int j = 0; j < end - i; j += VEC_LANES) {
                vec_store(to + j, vec_mul(vec_load(from + j), to_log2));
            }
        }
    }
    for (int h = 0; h < s->group; h++) {
        decode_softmax(s->values + (size_t)h * s->stride, s->end - s->begin);
    }
}

#endif
