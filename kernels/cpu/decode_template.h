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

/* What rows of keys or values are made of. */
enum decode_form { DECODE_F32, DECODE_BF16, DECODE_INT8 };

DECODE_INLINE enum decode_form decode_form(const struct decode_split *s)
{
    return s->pool->k_scale ? DECODE_INT8 : s->dtype == DTYPE_BF16 ? DECODE_BF16 : DECODE_F32;
}

/* Up to one vector of a row from element `at`; of int8 before its scale. */
DECODE_INLINE vec decode_load(enum decode_form form, const void *data, size_t at)
{
    switch (form) {
    case DECODE_INT8:
        return vec_load_int8((const int8_t *)data + at);
    case DECODE_BF16:
        return vec_load_bf16((const bf16 *)data + at);
    default:
        return vec_load((const float *)data + at);
    }
}

DECODE_INLINE vec decode_load_part(enum decode_form form, const void *data, size_t at, int n)
{
    switch (form) {
    case DECODE_INT8:
        return vec_load_int8_part((const int8_t *)data + at, n);
    case DECODE_BF16:
        return vec_load_bf16_part((const bf16 *)data + at, n);
    default:
        return vec_load_part((const float *)data + at, n);
    }
}

/* Dot products of q with VEC_LANES rows of k that follow each other from element `at`. */
DECODE_INLINE vec decode_dots(enum decode_form form, const float *q, const void *k, size_t at,
                              int d)
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

            sum[i] = vec_fma(decode_load(form, k, row), x, sum[i]);
        }
    }
    if (c < d) {
        vec x = vec_load_part(q + c, d - c);

        for (int i = 0; i < VEC_LANES; i++) {
            size_t row = at + (size_t)i * (size_t)d + (size_t)c;

            sum[i] = vec_fma(decode_load_part(form, k, row, d - c), x, sum[i]);
        }
    }
    return vec_sums(sum);
}

/* Rows i.. of the cache as VEC_LANES rows that follow each other, `left` of them real: where they
 * lie, or a copy.  A group widens bf16 once; int8 is always widened, and gets its scale. */
struct decode_keys {
    const void *data;
    size_t at;
    enum decode_form form;
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

static void decode_widen_int8(float *out, const int8_t *row, float scale, int d)
{
    const vec by = vec_set1(scale);
    int c = 0;

    for (; c + VEC_LANES <= d; c += VEC_LANES) {
        vec_store(out + c, vec_mul(vec_load_int8(row + c), by));
    }
    for (; c < d; c++) {
        out[c] = (float)row[c] * scale;
    }
}

static void decode_copy_key(const struct decode_split *s, float *to, int i)
{
    const struct kv_pool *pool = s->pool;
    size_t at = decode_row_at(pool, s->pages, i), d = (size_t)pool->head_dim;

    switch (decode_form(s)) {
    case DECODE_INT8:
        decode_widen_int8(to, (const int8_t *)pool->k + at, pool->k_scale[at / d], pool->head_dim);
        break;
    case DECODE_BF16:
        decode_widen(to, (const bf16 *)pool->k + at, pool->head_dim);
        break;
    default:
        memcpy(to, (const float *)pool->k + at, d * sizeof(*to));
    }
}

static struct decode_keys decode_rows(const struct decode_split *s, int i, int left)
{
    const struct kv_pool *pool = s->pool;
    size_t d = (size_t)pool->head_dim;
    enum decode_form form = decode_form(s);
    bool widen = form == DECODE_INT8 || (form == DECODE_BF16 && s->group > 1);

    if (!widen && left >= VEC_LANES && i % pool->page_rows + VEC_LANES <= pool->page_rows) {
        return (struct decode_keys){pool->k, decode_row_at(pool, s->pages, i), form};
    }
    for (int j = 0; j < VEC_LANES; j++) {
        float *to = s->rows + (size_t)j * d;

        if (j < left) {
            decode_copy_key(s, to, i + j);
        } else {
            memset(to, 0, d * sizeof(*to));
        }
    }
    return (struct decode_keys){s->rows, 0, DECODE_F32};
}

/* Rows i..i + VEC_LANES of values are needed soon. */
static inline void decode_fetch_values(const struct decode_split *s, int i, int end)
{
    static const size_t element[] = {
        [DECODE_F32] = sizeof(float), [DECODE_BF16] = sizeof(bf16), [DECODE_INT8] = sizeof(int8_t)};
    size_t bytes = (size_t)s->pool->head_dim * element[decode_form(s)];

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
            vec dots = k.form == DECODE_BF16 ? decode_dots(DECODE_BF16, q, k.data, k.at, d)
                                             : decode_dots(DECODE_F32, q, k.data, k.at, d);

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
DECODE_INLINE void decode_add_rows(enum decode_form form, const int heads, float *values,
                                   size_t stride, const float *w, const void *v, size_t at,
                                   const int shape[2])
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
            vec row = part >= VEC_LANES ? decode_load(form, v, from)
                                        : decode_load_part(form, v, from, part);

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
DECODE_INLINE void decode_add_run(enum decode_form form, const struct decode_split *s, int i, int n,
                                  int col)
{
    const int shape[2] = {n, s->pool->head_dim};
    size_t at = decode_row_at(s->pool, s->pages, i);
    int h = 0;

    for (; h + 4 <= s->group; h += 4) {
        decode_add_rows(form, 4, s->values + (size_t)h * s->stride, s->stride,
                        s->weights + (size_t)h * DECODE_TILE_ROWS + col, s->pool->v, at, shape);
    }
    for (; h + 2 <= s->group; h += 2) {
        decode_add_rows(form, 2, s->values + (size_t)h * s->stride, s->stride,
                        s->weights + (size_t)h * DECODE_TILE_ROWS + col, s->pool->v, at, shape);
    }
    for (; h < s->group; h++) {
        decode_add_rows(form, 1, s->values + (size_t)h * s->stride, s->stride,
                        s->weights + (size_t)h * DECODE_TILE_ROWS + col, s->pool->v, at, shape);
    }
}

/* The weights of rows i..i + n take in the scales of these rows. */
static void decode_scale_weights(const struct decode_split *s, int i, int n, int col)
{
    const float *scale =
        s->pool->v_scale + decode_row_at(s->pool, s->pages, i) / (size_t)s->pool->head_dim;

    for (int h = 0; h < s->group; h++) {
        float *w = s->weights + (size_t)h * DECODE_TILE_ROWS + col;

        for (int j = 0; j < n; j++) {
            w[j] *= scale[j];
        }
    }
}

static void decode_values(const struct decode_split *s, int begin, int end)
{
    for (int i = begin; i < end;) {
        int left = s->pool->page_rows - i % s->pool->page_rows;
        int n = left < end - i ? left : end - i;

        switch (decode_form(s)) {
        case DECODE_INT8:
            decode_scale_weights(s, i, n, i - begin);
            decode_add_run(DECODE_INT8, s, i, n, i - begin);
            break;
        case DECODE_BF16:
            decode_add_run(DECODE_BF16, s, i, n, i - begin);
            break;
        default:
            decode_add_run(DECODE_F32, s, i, n, i - begin);
        }
        i += n;
    }
}

/* Returns the lanes of the sums, (group, VEC_LANES). */
static float *decode_begin(const struct decode_split *s)
{
    float *lanes = s->weights + (size_t)s->group * DECODE_TILE_ROWS;

    memset(s->values, 0, (size_t)s->group * s->stride * sizeof(float));
    memset(lanes, 0, (size_t)s->group * VEC_LANES * sizeof(float));
    for (int h = 0; h < s->group; h++) {
        s->peak[h] = -FLT_MAX;
    }
    return lanes;
}

static void decode_finish(const struct decode_split *s, const float *lanes)
{
    for (int h = 0; h < s->group; h++) {
        s->sum[h] = vec_hsum(vec_load(lanes + (size_t)h * VEC_LANES));
    }
}

static void decode_run_split(const struct decode_split *s)
{
    float *lanes = decode_begin(s);

    for (int i = s->begin; i < s->end; i += DECODE_TILE_ROWS) {
        int end = s->end - i < DECODE_TILE_ROWS ? s->end : i + DECODE_TILE_ROWS;

        decode_scores(s, i, end);
        for (int h = 0; h < s->group; h++) {
            decode_weights(s, lanes + (size_t)h * VEC_LANES, h, end - i);
        }
        decode_values(s, i, end);
    }
    decode_finish(s, lanes);
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
