/* A chunk of a prompt between its projections and attention: its queries are rotated in place, its
 * keys and values come to the layer's. */
#include "tests/check.h"
#include "tests/definitions/basic.h"
#include "tests/kernels/helpers_act.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 70 };

/* The layer has `before` rows in front of the chunk and `after` behind it. */
struct shape {
    int rows, q_heads, kv_heads, head_dim, before, after;
};

static const struct shape shapes[] = {
    {1, 1, 1, 8, 0, 0},   {3, 4, 2, 24, 1, 0},   {5, 6, 2, 40, 3, 2},   {7, 3, 1, 256, 0, 5},
    {33, 8, 8, 16, 7, 1}, {40, 8, 2, 128, 5, 9}, {70, 5, 5, 72, 13, 0}, {2, 14, 2, 64, 31, 31},
};
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

struct problem {
    const struct shape *shape;
    enum dtype dtype;
    struct act q, k, v;
    struct act layer_k, layer_v; /* (kv_heads, before + rows + after, head_dim) */
    int32_t positions[MAX_ROWS];
    float inv_freq[OP_MAX_HEAD_DIM / 2];
};

static int layer_rows(const struct shape *s)
{
    return s->before + s->rows + s->after;
}

static void problem_make(struct problem *p, enum dtype dtype, const struct shape *s)
{
    size_t d = (size_t)s->head_dim, rows = (size_t)s->rows;
    size_t keys = rows * (size_t)s->kv_heads * d;
    size_t layer = (size_t)layer_rows(s) * (size_t)s->kv_heads * d;
    uint64_t seed = (uint64_t)s->head_dim;

    *p = (struct problem){.shape = s, .dtype = dtype};
    p->q = act_random(dtype, rows * (size_t)s->q_heads * d, 1.0f, &seed);
    p->k = act_random(dtype, keys, 1.0f, &seed);
    p->v = act_random(dtype, keys, 1.0f, &seed);
    p->layer_k = act_zeros(dtype, layer);
    p->layer_v = act_zeros(dtype, layer);
    for (int r = 0; r < s->rows; r++) {
        p->positions[r] = r < 2 ? r : test_below(&seed, 131072);
    }
    for (int i = 0; i < s->head_dim / 2; i++) {
        p->inv_freq[i] = 1.0f / powf(500000.0f, 2.0f * (float)i / (float)s->head_dim);
    }
}

static void problem_free(struct problem *p)
{
    act_free(&p->q);
    act_free(&p->k);
    act_free(&p->v);
    act_free(&p->layer_k);
    act_free(&p->layer_v);
}

static void *row_of(const struct problem *p, const struct act *x, size_t row, size_t heads)
{
    return (char *)x->act + row * heads * (size_t)p->shape->head_dim * dtype_bytes(p->dtype);
}

/* Rows begin..end of the chunk. */
static struct rope args_of(const struct problem *p, int begin, int end)
{
    const struct shape *s = p->shape;
    size_t first = (size_t)begin, at = (size_t)(s->before + begin);

    return (struct rope){
        .q = row_of(p, &p->q, first, (size_t)s->q_heads),
        .k = row_of(p, &p->k, first, (size_t)s->kv_heads),
        .v = row_of(p, &p->v, first, (size_t)s->kv_heads),
        .layer_k = row_of(p, &p->layer_k, at, 1),
        .layer_v = row_of(p, &p->layer_v, at, 1),
        .kv_stride = (size_t)layer_rows(s) * (size_t)s->head_dim,
        .positions = p->positions + begin,
        .inv_freq = p->inv_freq,
        .rows = end - begin,
        .q_heads = s->q_heads,
        .kv_heads = s->kv_heads,
        .head_dim = s->head_dim,
    };
}

static double tolerance(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? 0x1p-8 : dtype == DTYPE_F16 ? 0x1p-10 : 1e-6;
}

/* Row r of the chunk, of one head, is that of `expected` (rows, kv_heads, head_dim); what is no row
 * of the chunk is zeros. */
static void check_row(const struct problem *p, const float *got, const double *expected, int head,
                      int r, double limit)
{
    const struct shape *s = p->shape;
    bool here = r >= 0 && r < s->rows;
    const double none[OP_MAX_HEAD_DIM] = {0};
    const double *from =
        here ? expected + (size_t)(r * s->kv_heads + head) * (size_t)s->head_dim : none;
    double worst = act_worst(got, from, (size_t)s->head_dim, 1.0);

    if (!(worst <= (here ? limit : 0.0))) {
        fail_msg("%s: head %d, row %d of %d rows: off by %g", dtype_name(p->dtype), head, r,
                 s->rows, worst);
    }
}

static void check_layer(const struct problem *p, struct act *layer, const double *expected,
                        double limit)
{
    const struct shape *s = p->shape;

    act_read(p->dtype, layer);
    for (int h = 0; h < s->kv_heads; h++) {
        for (int row = 0; row < layer_rows(s); row++) {
            size_t at = (size_t)(h * layer_rows(s) + row) * (size_t)s->head_dim;

            check_row(p, layer->f32 + at, expected, h, row - s->before, limit);
        }
    }
}

static double *doubles(size_t n, const float *from)
{
    double *out = calloc(n, sizeof(*out));

    assert_non_null(out);
    for (size_t i = 0; from && i < n; i++) {
        out[i] = (double)from[i];
    }
    return out;
}

static void check_shape(const struct variant *variant, const struct shape *s)
{
    struct device *dev = act_device(variant, 2);
    struct problem p;

    problem_make(&p, variant->dtype, s);
    struct rope args = args_of(&p, 0, s->rows);
    double *q = doubles(p.q.n, NULL), *k = doubles(p.k.n, NULL);
    double *v = doubles(p.v.n, p.v.f32);

    define_rope(q, p.q.f32, p.positions, p.inv_freq, s->rows, s->q_heads, s->head_dim);
    define_rope(k, p.k.f32, p.positions, p.inv_freq, s->rows, s->kv_heads, s->head_dim);
    CHECK_OK(op_rope(dev, &args));
    act_read(p.dtype, &p.q);
    double worst = act_worst(p.q.f32, q, p.q.n, 1.0);
    if (!(worst <= tolerance(p.dtype))) {
        fail_msg("%s: queries are off by %g", device_description(dev), worst);
    }
    check_layer(&p, &p.layer_k, k, tolerance(p.dtype));
    check_layer(&p, &p.layer_v, v, 0.0);
    free(q);
    free(k);
    free(v);
    problem_free(&p);
    device_close(dev);
}

static void test_queries_turn_in_place_and_keys_and_values_join_their_layer(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        for (size_t i = 0; i < SHAPES; i++) {
            check_shape(&variants[v], &shapes[i]);
        }
    }
}

static bool same(const struct problem *p, const struct act *a, const struct act *b)
{
    return a->act && b->act && memcmp(a->act, b->act, a->n * dtype_bytes(p->dtype)) == 0;
}

static void check_equal(const struct problem *a, const struct problem *b)
{
    CHECK(same(a, &a->q, &b->q));
    CHECK(same(a, &a->layer_k, &b->layer_k));
    CHECK(same(a, &a->layer_v, &b->layer_v));
}

/* Queries alone, then keys without values, then both of these. */
static void run_in_parts(struct device *dev, const struct problem *p)
{
    struct rope queries = args_of(p, 0, p->shape->rows), keys = queries, rest = queries;

    queries.k = queries.v = NULL;
    queries.layer_k = queries.layer_v = NULL;
    queries.kv_heads = 0;
    keys.q = NULL;
    keys.v = NULL;
    keys.q_heads = 0;
    rest.q = NULL;
    CHECK_OK(op_rope(dev, &queries));
    CHECK_OK(op_rope(dev, &keys));
    CHECK_OK(op_rope(dev, &rest));
}

static void test_the_parts_of_a_chunk_have_the_bits_of_the_whole(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        for (int i = 0; i < SHAPES; i++) {
            struct device *dev = act_device(&variants[v], 1 + i % 3);
            struct problem whole, parts;

            problem_make(&whole, variants[v].dtype, &shapes[i]);
            problem_make(&parts, variants[v].dtype, &shapes[i]);
            struct rope args = args_of(&whole, 0, shapes[i].rows);
            CHECK_OK(op_rope(dev, &args));
            run_in_parts(dev, &parts);
            check_equal(&whole, &parts);
            problem_free(&whole);
            problem_free(&parts);
            device_close(dev);
        }
    }
}

/* What is not given is not touched: neither queries nor the layer's values. */
static void test_keys_alone_leave_the_rest_of_the_layer(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        struct device *dev = act_device(&variants[v], 3);
        struct problem p;

        problem_make(&p, variants[v].dtype, &shapes[2]);
        struct rope args = args_of(&p, 0, shapes[2].rows);
        double *none = doubles(p.k.n, NULL), *q = doubles(p.q.n, p.q.f32);
        args.q = NULL;
        args.v = NULL;
        CHECK_OK(op_rope(dev, &args));
        check_layer(&p, &p.layer_v, none, 0.0);
        act_read(p.dtype, &p.q);
        CHECK(act_worst(p.q.f32, q, p.q.n, 1.0) == 0.0);
        free(none);
        free(q);
        problem_free(&p);
        device_close(dev);
    }
}

/* By rows, in twos and threes, and without any: on any number of threads. */
static void test_a_row_has_its_bits_in_any_company(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        for (int step = 1; step <= 3; step++) {
            const struct shape *s = &shapes[4];
            struct device *dev = act_device(&variants[v], step);
            struct problem whole, rows;

            problem_make(&whole, variants[v].dtype, s);
            problem_make(&rows, variants[v].dtype, s);
            struct rope args = args_of(&whole, 0, s->rows);
            CHECK_OK(op_rope(dev, &args));
            for (int begin = 0; begin < s->rows; begin += step) {
                args = args_of(&rows, begin, begin + step < s->rows ? begin + step : s->rows);
                CHECK_OK(op_rope(dev, &args));
            }
            args.rows = 0;
            CHECK_OK(op_rope(dev, &args));
            check_equal(&whole, &rows);
            problem_free(&whole);
            problem_free(&rows);
            device_close(dev);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queries_turn_in_place_and_keys_and_values_join_their_layer),
        cmocka_unit_test(test_the_parts_of_a_chunk_have_the_bits_of_the_whole),
        cmocka_unit_test(test_keys_alone_leave_the_rest_of_the_layer),
        cmocka_unit_test(test_a_row_has_its_bits_in_any_company),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
