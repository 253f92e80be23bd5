/* test_int8_kv.c - a pool of int8 rows: what enters it, and attention over it against the
 * definition over the rounded rows, with the same bits in any batch. */
#include "tests/check.h"
#include "tests/definitions/attention.h"
#include "tests/kernels/helpers_act.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_HEADS = 64 };

struct shape {
    int rows, q_heads, cache_heads, head_dim, page_rows, longest;
};

struct problem {
    struct act q, k, v, out;  /* k, v: the rows of the pool before they are rounded */
    struct kv_pool pool;      /* int8 */
    float *k_means, *v_means; /* what its rows stand for */
    int32_t *tables, *slots;
    const int32_t *pages[MAX_HEADS];
    int32_t first[MAX_HEADS], length[MAX_HEADS];
    struct decode_attention args;
    size_t n; /* rows of the pool */
};

static float *means(const void *rows, const float *scale, size_t n, size_t d)
{
    float *out = calloc(n * d, sizeof(float));

    CHECK(out);
    for (size_t i = 0; i < n * d; i++) {
        out[i] = (float)((const int8_t *)rows)[i] * scale[i / d];
    }
    return out;
}

/* The rows of the pool in order, one by one; at position 0 keys stay as they are. */
static void append_all(const struct problem *p, struct device *dev)
{
    static const float inv_freq[OP_MAX_HEAD_DIM / 2];
    int32_t *positions = calloc(p->n, sizeof(*positions));

    CHECK(positions);
    CHECK_OK(op_kv_append(dev, &(struct kv_append){.pool = &p->pool,
                                                   .slot = p->slots,
                                                   .k = p->k.act,
                                                   .v = p->v.act,
                                                   .positions = positions,
                                                   .inv_freq = inv_freq,
                                                   .rows = (int)p->n,
                                                   .kv_heads = 1,
                                                   .cache_heads = 1}));
    free(positions);
}

static void fill_pool(struct problem *p, struct device *dev, const struct shape *s)
{
    size_t d = (size_t)s->head_dim;

    p->pool = (struct kv_pool){.k = calloc(p->n, d),
                               .v = calloc(p->n, d),
                               .k_scale = calloc(p->n, sizeof(float)),
                               .v_scale = calloc(p->n, sizeof(float)),
                               .page_rows = s->page_rows,
                               .head_dim = s->head_dim};
    p->slots = calloc(p->n, sizeof(int32_t));
    CHECK(p->pool.k && p->pool.v && p->pool.k_scale && p->pool.v_scale && p->slots);
    for (size_t i = 0; i < p->n; i++) {
        p->slots[i] = (int32_t)i;
    }
    append_all(p, dev);
    p->k_means = means(p->pool.k, p->pool.k_scale, p->n, d);
    p->v_means = means(p->pool.v, p->pool.v_scale, p->n, d);
}

static void problem_make(struct problem *p, struct device *dev, const struct shape *s)
{
    uint64_t seed = 11;
    enum dtype dtype = device_dtype(dev);
    int heads = s->rows * s->cache_heads, each = (s->longest + s->page_rows - 1) / s->page_rows;
    size_t n_q = (size_t)s->rows * (size_t)s->q_heads * (size_t)s->head_dim;

    *p = (struct problem){.n = (size_t)heads * (size_t)each * (size_t)s->page_rows};
    p->q = act_random(dtype, n_q, 2.0f, &seed);
    p->k = act_random(dtype, p->n * (size_t)s->head_dim, 1.0f, &seed);
    p->v = act_random(dtype, p->n * (size_t)s->head_dim, 1.0f, &seed);
    p->out = act_zeros(dtype, n_q);
    p->tables = calloc((size_t)(heads * each), sizeof(int32_t));
    CHECK(p->tables);
    for (int i = 0; i < heads * each; i++) {
        int j = test_below(&seed, i + 1);
        p->tables[i] = p->tables[j];
        p->tables[j] = i;
    }
    for (int i = 0; i < heads; i++) {
        p->pages[i] = p->tables + (ptrdiff_t)i * each;
        p->length[i] = i == 0 ? s->longest : 1 + test_below(&seed, s->longest);
        p->first[i] = i % 3 == 2 ? test_below(&seed, p->length[i]) : 0;
    }
    fill_pool(p, dev, s);
    p->args = (struct decode_attention){
        .out = p->out.act,
        .q = p->q.act,
        .pool = &p->pool,
        .pages = p->pages,
        .first = p->first,
        .length = p->length,
        .rows = s->rows,
        .q_heads = s->q_heads,
        .cache_heads = s->cache_heads,
        .head_dim = s->head_dim,
    };
}

static void problem_free(struct problem *p)
{
    act_free(&p->q);
    act_free(&p->k);
    act_free(&p->v);
    act_free(&p->out);
    free(p->pool.k);
    free(p->pool.v);
    free(p->pool.k_scale);
    free(p->pool.v_scale);
    free(p->k_means);
    free(p->v_means);
    free(p->tables);
    free(p->slots);
}

static const struct shape shapes[] = {
    {1, 1, 1, 8, 16, 1},   {1, 4, 2, 32, 16, 100},   {3, 8, 2, 64, 16, 700},
    {2, 6, 6, 24, 5, 333}, {1, 11, 1, 80, 48, 2049}, {2, 6, 2, 256, 16, 200},
};

static void check_attention(struct device *dev, const struct shape *shape)
{
    struct problem p;

    problem_make(&p, dev, shape);
    double *expected = calloc(p.out.n, sizeof(double));
    struct kv_pool pool = {
        .k = p.k_means, .v = p.v_means, .page_rows = shape->page_rows, .head_dim = shape->head_dim};
    struct decode_attention defined = p.args;

    CHECK(expected);
    defined.q = p.q.f32;
    defined.pool = &pool;
    define_decode_attention(expected, &defined);
    CHECK_OK(op_decode_attention(dev, &p.args));
    act_read(device_dtype(dev), &p.out);
    double worst = act_worst(p.out.f32, expected, p.out.n, 1.0);
    if (!(worst < (device_dtype(dev) == DTYPE_BF16 ? 0.005 : 4e-6))) {
        fail_msg("%s: longest %d: off by %g", device_description(dev), shape->longest, worst);
    }
    free(expected);
    problem_free(&p);
}

static void test_attention_is_that_over_the_rounded_rows(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        for (size_t n = 0; n < sizeof(shapes) / sizeof(shapes[0]); n++) {
            check_attention(dev, &shapes[n]);
        }
        device_close(dev);
    }
}

static void test_a_row_has_the_same_bits_in_any_batch(void **state)
{
    const struct shape s = {16, 8, 2, 32, 16, 1600};

    (void)state;
    for (int i = 0; i < n_variants; i++) {
        size_t row = (size_t)s.q_heads * (size_t)s.head_dim * dtype_bytes(variants[i].dtype);
        struct device *dev = act_device(&variants[i], 2), *single = act_device(&variants[i], 1);
        struct act part = act_zeros(variants[i].dtype, 16 * 8 * 32);
        struct problem p;

        problem_make(&p, dev, &s);
        CHECK_OK(op_decode_attention(dev, &p.args));
        for (int r = 0; r < s.rows; r++) {
            struct decode_attention one = p.args;

            one.out = (char *)part.act + (size_t)r * row;
            one.q = (const char *)p.args.q + (size_t)r * row;
            one.pages = p.args.pages + (ptrdiff_t)r * 2;
            one.first = p.args.first + (ptrdiff_t)r * 2;
            one.length = p.args.length + (ptrdiff_t)r * 2;
            one.rows = 1;
            CHECK_OK(op_decode_attention(single, &one));
        }
        CHECK(memcmp(part.act, p.out.act, (size_t)s.rows * row) == 0);
        act_free(&part);
        problem_free(&p);
        device_close(single);
        device_close(dev);
    }
}

/* Rows that enter, all at once or one by one, are off by half a step; moved they are what they
 * were. */
static void test_rows_are_rounded_once_and_stay_so(void **state)
{
    const struct shape s = {1, 2, 1, 40, 8, 24};
    enum { N = 24, D = 40 };
    static const int32_t to[] = {0, 20}, from[] = {5, 0};

    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);
        int8_t before[N * D];
        struct problem p;

        problem_make(&p, dev, &s);
        for (int e = 0; e < N * D; e++) {
            CHECK(fabsf(p.k_means[e] - p.k.f32[e]) <= 0.5001f * p.pool.k_scale[e / D]);
            CHECK(fabsf(p.v_means[e] - p.v.f32[e]) <= 0.5001f * p.pool.v_scale[e / D]);
        }
        memcpy(before, p.pool.k, sizeof(before));
        CHECK_OK(op_kv_move(dev, &p.pool, to, from, 2));
        CHECK(memcmp((int8_t *)p.pool.k + 20 * D, before + 5 * D, D) == 0);
        CHECK(p.pool.k_scale[20] == p.pool.k_scale[5] && p.pool.v_scale[0] == p.pool.v_scale[5]);
        memset(p.pool.k, 1, N * D);
        CHECK_OK(op_kv_gather(dev, &p.pool, p.pages[0], p.k.act, p.v.act, NULL, N));
        for (int r = 0; r < N; r++) {
            int row = p.pages[0][r / s.page_rows] * s.page_rows + r % s.page_rows;

            CHECK(memcmp((int8_t *)p.pool.k + row * D, before + r * D, D) == 0);
        }
        problem_free(&p);
        device_close(dev);
    }
}

static void test_an_endless_row_is_not_hidden(void **state)
{
    const struct shape s = {1, 1, 1, 8, 4, 4};
    struct device *dev = act_device(&variants[0], 1);
    struct problem p;

    (void)state;
    problem_make(&p, dev, &s);
    ((float *)p.v.act)[3] = INFINITY;
    append_all(&p, dev);
    CHECK_OK(op_decode_attention(dev, &p.args));
    CHECK(!isfinite(((float *)p.out.act)[0]));
    problem_free(&p);
    device_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_are_rounded_once_and_stay_so),
        cmocka_unit_test(test_attention_is_that_over_the_rounded_rows),
        cmocka_unit_test(test_a_row_has_the_same_bits_in_any_batch),
        cmocka_unit_test(test_an_endless_row_is_not_hidden),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
