/*
 * decode_template.h - one split of decode attention; included once by each decode_<isa>.c.
 *
 * Tile by tile: dot products VEC_LANES rows at a time, weights with a running peak, then the
 * weighted rows of values.  Bound by memory: while a tile's scores are computed, the keys of the
 * next one are fetched, and its values beside the values.
 *
 * A vector of bf16 is widened as two, its even and its odd elements.  Queries and sums of values
 * have this order of pairs, too, in each whole block of 2 VEC_LANES elements.
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

enum { DECODE_PAIR_LANES = 2 * VEC_LANES };

/* Up to one vector of a row from element `at`; of int8 before its scale. */
DECODE_INLINE vec decode_load(enum decode_form form, const void *data, size_t at, int n)
{
    bool whole = n >= VEC_LANES;

    switch (form) {
    case DECODE_INT8:
        return whole ? vec_load_int8((const int8_t *)data + at)
                     : vec_load_int8_part((const int8_t *)data + at, n);
    case DECODE_BF16:
        return whole ? vec_load_bf16((const bf16 *)data + at)
                     : vec_load_bf16_part((const bf16 *)data + at, n);
    default:
        return whole ? vec_load((const float *)data + at)
                     : vec_load_part((const float *)data + at, n);
    }
}

/* The elements of a row that are taken in pairs: all but the last ones. */
DECODE_INLINE int decode_paired(enum decode_form form, int d)
{
    return form == DECODE_BF16 ? d / DECODE_PAIR_LANES * DECODE_PAIR_LANES : 0;
}

/* from (d) in the order of pairs. */
static void decode_to_pairs(float *to, const float *from, int d)
{
    int paired = decode_paired(DECODE_BF16, d);

    for (int c = 0; c < paired; c++) {
        int block = c / DECODE_PAIR_LANES * DECODE_PAIR_LANES, i = c - block;

        to[block + i % 2 * VEC_LANES + i / 2] = from[c];
    }
    for (int c = paired; c < d; c++) {
        to[c] = from[c];
    }
}

/* And back, in place. */
static void decode_from_pairs(float *x, int d)
{
    int paired = decode_paired(DECODE_BF16, d);

    for (int block = 0; block < paired; block += DECODE_PAIR_LANES) {
        float own[DECODE_PAIR_LANES];

        memcpy(own, x + block, sizeof(own));
        for (int i = 0; i < DECODE_PAIR_LANES; i++) {
            x[block + i] = own[i % 2 * VEC_LANES + i / 2];
        }
    }
}

/* Dot products of q, zeros past d, with VEC_LANES rows of k that follow each other. */
DECODE_INLINE vec decode_dots(enum decode_form form, const float *q, const void *k, int d)
{
    int c = 0, paired = decode_paired(form, d);
    vec sum[VEC_LANES];

    for (int i = 0; i < VEC_LANES; i++) {
        sum[i] = vec_zero();
    }
    for (; c < paired; c += DECODE_PAIR_LANES) {
        vec even = vec_load(q + c), odd = vec_load(q + c + VEC_LANES);

        for (int i = 0; i < VEC_LANES; i++) {
            vec a, b;

            vec_load_bf16_pairs((const bf16 *)k + (size_t)i * (size_t)d + c, &a, &b);
            sum[i] = vec_fma(a, even, sum[i]);
            sum[i] = vec_fma(b, odd, sum[i]);
        }
    }
    for (; c < d; c += VEC_LANES) {
        vec x = vec_load_part(q + c, d - c < VEC_LANES ? d - c : VEC_LANES);

        for (int i = 0; i < VEC_LANES; i++) {
            size_t at = (size_t)i * (size_t)d + (size_t)c;

            sum[i] = vec_fma(decode_load(form, k, at, d - c), x, sum[i]);
        }
    }
    return vec_sums(sum);
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

static size_t decode_row_bytes(const struct decode_split *s)
{
    static const size_t element[] = {
        [DECODE_F32] = sizeof(float), [DECODE_BF16] = sizeof(bf16), [DECODE_INT8] = sizeof(int8_t)};

    return (size_t)s->pool->head_dim * element[decode_form(s)];
}

/* Row i of the pool's keys or values. */
static const char *decode_row(const struct decode_split *s, const void *rows, int i)
{
    size_t row = decode_row_at(s->pool, s->pages, i);

    return (const char *)rows + row * decode_row_bytes(s);
}

/* Rows i.. of keys as VEC_LANES rows that follow each other, `left` of them real: where they lie,
 * or a copy.  int8 is always widened, with its scale. */
static const void *decode_keys(const struct decode_split *s, int i, int left)
{
    const struct kv_pool *pool = s->pool;
    size_t d = (size_t)pool->head_dim, bytes = decode_row_bytes(s);
    bool widen = decode_form(s) == DECODE_INT8;

    if (!widen && left >= VEC_LANES && i % pool->page_rows + VEC_LANES <= pool->page_rows) {
        return decode_row(s, pool->k, i);
    }
    memset(s->rows, 0, VEC_LANES * d * sizeof(float));
    for (int j = 0; j < VEC_LANES && j < left; j++) {
        const char *row = decode_row(s, pool->k, i + j);

        if (widen) {
            size_t number = decode_row_at(pool, s->pages, i + j);

            decode_widen_int8(s->rows + (size_t)j * d, (const int8_t *)row, pool->k_scale[number],
                              pool->head_dim);
        } else {
            memcpy((char *)s->rows + (size_t)j * bytes, row, bytes);
        }
    }
    return s->rows;
}

/* Rows i..i + n of keys or values are needed soon, as far as there are such. */
static inline void decode_fetch(const struct decode_split *s, const void *rows, int i, int n)
{
    int end = s->end - i < n ? s->end : i + n;

    while (i < end) {
        int left = s->pool->page_rows - i % s->pool->page_rows;
        int here = left < end - i ? left : end - i;
        const char *from = decode_row(s, rows, i);
        size_t bytes = (size_t)here * decode_row_bytes(s);

        for (size_t b = 0; b < bytes; b += 64) {
            __builtin_prefetch(from + b, 0, 3);
        }
        i += here;
    }
}

/* Dot products of rows begin..end with all heads, to s->weights. */
static void decode_scores(const struct decode_split *s, int begin, int end)
{
    int d = s->pool->head_dim;
    bool bf16_rows = decode_form(s) == DECODE_BF16;

    for (int i = begin; i < end; i += VEC_LANES) {
        const void *k = decode_keys(s, i, end - i);

        decode_fetch(s, s->pool->k, i + DECODE_TILE_ROWS, VEC_LANES);
        for (int h = 0; h < s->group; h++) {
            const float *q = s->ordered_q + (size_t)h * s->q_stride;
            vec dots =
                bf16_rows ? decode_dots(DECODE_BF16, q, k, d) : decode_dots(DECODE_F32, q, k, d);

            vec_store(s->weights + (size_t)h * DECODE_TILE_ROWS + (i - begin), dots);
        }
    }
}

/* Queries in the order in which keys are widened; the first keys are fetched. */
static void decode_begin(const struct decode_split *s)
{
    int d = s->pool->head_dim;

    decode_fetch(s, s->pool->k, s->begin, DECODE_TILE_ROWS);
    for (int h = 0; h < s->group; h++) {
        const float *q = s->q + (size_t)h * s->q_stride;
        float *to = s->ordered_q + (size_t)h * s->q_stride;

        if (decode_form(s) == DECODE_BF16) {
            decode_to_pairs(to, q, d);
        } else {
            memcpy(to, q, (size_t)d * sizeof(*q));
        }
    }
}

/* The n scores of head h become weights; zeros behind them. */
static void decode_weights(const struct decode_split *s, float *lanes, int h, int n)
{
    const vec to_log2 = vec_set1(s->to_log2);
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

/* Rows of values that follow each other, and their weights. */
struct decode_run {
    float *values; /* += */
    size_t stride; /* of a head in values */
    const float *weights;
    const void *rows;
    int n, d;
};

/* Elements c.. of values[0..heads) += weights times rows; heads is a constant. */
DECODE_INLINE void decode_add_pairs(const struct decode_run *run, const int heads, int c)
{
    const bf16 *row = (const bf16 *)run->rows + c;
    vec even[4], odd[4];

    for (int h = 0; h < heads; h++) {
        even[h] = vec_load(run->values + (size_t)h * run->stride + c);
        odd[h] = vec_load(run->values + (size_t)h * run->stride + c + VEC_LANES);
    }
    for (int j = 0; j < run->n; j++, row += run->d) {
        vec a, b;

        vec_load_bf16_pairs(row, &a, &b);
        for (int h = 0; h < heads; h++) {
            vec x = vec_set1(run->weights[(size_t)h * DECODE_TILE_ROWS + (size_t)j]);

            even[h] = vec_fma(a, x, even[h]);
            odd[h] = vec_fma(b, x, odd[h]);
        }
    }
    for (int h = 0; h < heads; h++) {
        vec_store(run->values + (size_t)h * run->stride + c, even[h]);
        vec_store(run->values + (size_t)h * run->stride + c + VEC_LANES, odd[h]);
    }
}

DECODE_INLINE void decode_add_vector(enum decode_form form, const struct decode_run *run,
                                     const int heads, int c)
{
    vec sum[4];

    for (int h = 0; h < heads; h++) {
        sum[h] = vec_load(run->values + (size_t)h * run->stride + c);
    }
    for (int j = 0; j < run->n; j++) {
        size_t at = (size_t)j * (size_t)run->d + (size_t)c;
        vec row = decode_load(form, run->rows, at, run->d - c);

        for (int h = 0; h < heads; h++) {
            vec x = vec_set1(run->weights[(size_t)h * DECODE_TILE_ROWS + (size_t)j]);
            sum[h] = vec_fma(row, x, sum[h]);
        }
    }
    for (int h = 0; h < heads; h++) {
        vec_store(run->values + (size_t)h * run->stride + c, sum[h]);
    }
}

/* For `heads` heads, from head h; returns the head behind them. */
DECODE_INLINE int decode_add_rows(enum decode_form form, struct decode_run run, const int heads,
                                  int h)
{
    int c = 0, paired = decode_paired(form, run.d);

    run.values += (size_t)h * run.stride;
    run.weights += (size_t)h * DECODE_TILE_ROWS;
    for (; c < paired; c += DECODE_PAIR_LANES) {
        decode_add_pairs(&run, heads, c);
    }
    for (; c < run.d; c += VEC_LANES) {
        decode_add_vector(form, &run, heads, c);
    }
    return h + heads;
}

/* Rows i..i + n of one page; their weights start at column `col`. */
DECODE_INLINE void decode_add_run(enum decode_form form, const struct decode_split *s, int i, int n,
                                  int col)
{
    const struct decode_run run = {
        .values = s->values,
        .stride = s->stride,
        .weights = s->weights + col,
        .rows = decode_row(s, s->pool->v, i),
        .n = n,
        .d = s->pool->head_dim,
    };
    int h = 0;

    while (h + 4 <= s->group) {
        h = decode_add_rows(form, run, 4, h);
    }
    switch (s->group - h) {
    case 3:
        decode_add_rows(form, run, 3, h);
        break;
    case 2:
        decode_add_rows(form, run, 2, h);
        break;
    case 1:
        decode_add_rows(form, run, 1, h);
        break;
    default:
        break;
    }
}

/* The weights of rows i..i + n take in the scales of these rows. */
static void decode_scale_weights(const struct decode_split *s, int i, int n, int col)
{
    const float *scale = s->pool->v_scale + decode_row_at(s->pool, s->pages, i);

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

        decode_fetch(s, s->pool->v, i + DECODE_TILE_ROWS, n);
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

static void decode_run_split(const struct decode_split *s)
{
    float *lanes = s->weights + (size_t)s->group * DECODE_TILE_ROWS;

    decode_begin(s);
    decode_fetch(s, s->pool->v, s->begin, DECODE_TILE_ROWS);
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
        if (decode_form(s) == DECODE_BF16) {
            decode_from_pairs(s->values + (size_t)h * s->stride, s->pool->head_dim);
        }
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

static void decode_run_mass(const struct decode_split *s)
{
    const vec to_log2 = vec_set1(s->to_log2);

    decode_begin(s);
    for (int i = s->begin; i < s->end; i += DECODE_TILE_ROWS) {
        int end = s->end - i < DECODE_TILE_ROWS ? s->end : i + DECODE_TILE_ROWS;

        decode_scores(s, i, end);
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
