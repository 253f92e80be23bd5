/* Window scores against their definition, and the same bits on any number of threads. */
#include "tests/check.h"
#include "tests/definitions/attention.h"
#include "tests/kernels/helpers_act.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct shape {
    int window, n_keys, q_heads, kv_heads, head_dim, sliding_window;
};

struct problem {
    struct act q, k;
    float *out, *weights, *lse;
    int32_t *positions;
    size_t n_out;
    struct window_scores args;
};

static struct problem problem_make(enum dtype dtype, const struct shape *s, uint64_t seed)
{
    struct problem p = {0};
    size_t d = (size_t)s->head_dim, stride = ((size_t)s->n_keys + 1) * d;

    p.q = act_random(dtype, (size_t)s->window * (size_t)s->q_heads * d, 2.0f, &seed);
    p.k = act_random(dtype, stride * (size_t)s->kv_heads, 1.0f, &seed);
    p.n_out = (size_t)s->q_heads * (size_t)(s->n_keys - s->window);
    p.out = calloc(p.n_out + 1, sizeof(float));
    p.positions = calloc((size_t)s->n_keys, sizeof(int32_t));
    p.weights = calloc((size_t)s->window, sizeof(float));
    p.lse = calloc((size_t)s->window * (size_t)s->q_heads, sizeof(float));
    assert_non_null(p.out);
    assert_non_null(p.positions);
    assert_non_null(p.weights);
    assert_non_null(p.lse);
    for (int t = 0; t < s->window; t++) {
        p.weights[t] = 1.0f + 0.2f * (float)t;
    }
    for (int j = 0; j < s->n_keys; j++) {
        p.positions[j] = j + j / 9;
    }
    p.out[p.n_out] = 42.0f; /* not to be overwritten */
    p.args = (struct window_scores){
        .out = p.out,
        .q = p.q.act,
        .k = p.k.act,
        .kv_stride = stride,
        .positions = p.positions,
        .window = s->window,
        .n_keys = s->n_keys,
        .q_heads = s->q_heads,
        .kv_heads = s->kv_heads,
        .head_dim = s->head_dim,
        .sliding_window = s->sliding_window,
    };
    return p;
}

static void problem_free(struct problem *p)
{
    act_free(&p->q);
    act_free(&p->k);
    free(p->out);
    free(p->positions);
    free(p->weights);
    free(p->lse);
}

static const struct shape shapes[] = {
    {1, 1, 1, 1, 8, 0},      {8, 9, 4, 2, 32, 0},      {8, 64, 4, 1, 16, 0},
    {8, 300, 6, 2, 64, 0},   {32, 1100, 4, 4, 24, 0},  {13, 2111, 6, 3, 40, 0},
    {8, 500, 4, 2, 128, 90}, {5, 1500, 5, 1, 256, 40}, {64, 200, 2, 2, 72, 0},
    {3, 70, 3, 1, 104, 17},  {33, 130, 8, 2, 200, 60},
};

/* p->lse = what the attention of the window's rows leaves. */
static void attend(struct device *dev, struct problem *p)
{
    const struct window_scores *args = &p->args;
    void *out = calloc(p->q.n, sizeof(float));

    assert_non_null(out);
    CHECK_OK(op_attention(dev, &(struct attention){
                                   .out = out,
                                   .q = args->q,
                                   .k = args->k,
                                   .v = args->k,
                                   .kv_stride = args->kv_stride,
                                   .positions = args->positions,
                                   .lse = p->lse,
                                   .first_row = args->n_keys - args->window,
                                   .rows = args->window,
                                   .n_keys = args->n_keys,
                                   .q_heads = args->q_heads,
                                   .kv_heads = args->kv_heads,
                                   .head_dim = args->head_dim,
                                   .sliding_window = args->sliding_window,
                               }));
    free(out);
}

/* What is compared with the definition. */
struct how {
    bool weighted;
    bool attended; /* the sums of the rows' attention are given */
    float scale;   /* too large by this factor, which makes the scores as much smaller */
};

static void check_shape(struct device *dev, const struct variant *variant, size_t n,
                        const struct how *how)
{
    struct problem p = problem_make(variant->dtype, &shapes[n], n);
    p.args.weights = how->weighted ? p.weights : NULL;
    struct window_scores defined = p.args;
    double *expected = calloc(p.n_out + 1, sizeof(double));

    assert_non_null(expected);
    defined.q = p.q.f32;
    defined.k = p.k.f32;
    define_window_scores(expected, &defined);
    if (how->attended) {
        attend(dev, &p);
        p.args.lse = p.lse;
    }
    for (size_t i = 0; i < (size_t)(p.args.window * p.args.q_heads); i++) {
        p.lse[i] += logf(how->scale);
    }
    for (size_t i = 0; i < p.n_out; i++) {
        expected[i] /= (double)how->scale;
    }
    CHECK_OK(op_window_scores(dev, &p.args));
    double worst = act_worst(p.out, expected, p.n_out, 1e-6);
    if (!(worst < 1e-5)) {
        fail_msg("%s: shape %zu: off by %g", device_description(dev), n, worst);
    }
    CHECK(p.out[p.n_out] == 42.0f);
    free(expected);
    problem_free(&p);
}

static void check_shapes(const struct how *how)
{
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        for (size_t n = 0; n < sizeof(shapes) / sizeof(shapes[0]); n++) {
            check_shape(dev, &variants[i], n, how);
        }
        device_close(dev);
    }
}

static void test_window_scores_match_their_definition(void **state)
{
    (void)state;
    check_shapes(&(struct how){.scale = 1.0f});
}

static void test_rows_count_by_their_weights(void **state)
{
    (void)state;
    check_shapes(&(struct how){.weighted = true, .scale = 1.0f});
}

/* So the keys need not be read for them: sums that are too large are not found out. */
static void test_sums_of_attention_are_taken_as_they_are(void **state)
{
    (void)state;
    check_shapes(&(struct how){.weighted = true, .attended = true, .scale = 4.0f});
}

/* A long window scores chunk by chunk, by the sums of its rows' columns. */
static void check_sums(struct device *dev, const struct variant *variant, size_t n)
{
    const struct shape *s = &shapes[n];
    struct problem p = problem_make(variant->dtype, s, n);
    size_t keys = (size_t)s->n_keys, heads = (size_t)s->q_heads, scored = keys - (size_t)s->window;
    size_t row = heads * (size_t)s->head_dim * dtype_bytes(variant->dtype);
    struct window_scores defined = p.args;
    double *expected = calloc(p.n_out + 1, sizeof(double));
    float *sums = calloc(heads * keys, sizeof(float));
    int begin = s->n_keys - s->window;

    assert_non_null(expected);
    assert_non_null(sums);
    defined.q = p.q.f32;
    defined.k = p.k.f32;
    define_window_scores(expected, &defined);
    for (int at = begin; at < s->n_keys; at += 3) {
        int rows = s->n_keys - at < 3 ? s->n_keys - at : 3;
        CHECK_OK(op_column_sums(dev, &(struct column_sums){
                                         .out = sums,
                                         .stride = keys,
                                         .q = (const char *)p.args.q + (size_t)(at - begin) * row,
                                         .k = p.args.k,
                                         .kv_stride = p.args.kv_stride,
                                         .positions = p.args.positions,
                                         .first_row = at,
                                         .rows = rows,
                                         .n_keys = at + rows,
                                         .fresh = at == begin ? 0 : at,
                                         .q_heads = s->q_heads,
                                         .kv_heads = s->kv_heads,
                                         .head_dim = s->head_dim,
                                         .sliding_window = s->sliding_window,
                                     }));
    }
    for (size_t h = 0; h < heads; h++) {
        memcpy(p.out + h * scored, sums + h * keys, scored * sizeof(float));
    }
    double worst = act_worst(p.out, expected, p.n_out, 1e-6);
    if (!(worst < 1e-5)) {
        fail_msg("%s: shape %zu: off by %g", device_description(dev), n, worst);
    }
    free(expected);
    free(sums);
    problem_free(&p);
}

static void test_sums_of_chunks_are_the_scores_of_their_window(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        for (size_t n = 0; n < sizeof(shapes) / sizeof(shapes[0]); n++) {
            check_sums(dev, &variants[i], n);
        }
        device_close(dev);
    }
}

static void check_threads(const struct variant *variant, bool attended)
{
    struct shape s = {8, 3000, 4, 2, 32, 0};
    struct problem p = problem_make(variant->dtype, &s, 3);
    float *first = calloc(p.n_out, sizeof(float));

    assert_non_null(first);
    for (int threads = 1; threads <= 3; threads++) {
        struct device *dev = act_device(variant, threads);

        if (attended) {
            attend(dev, &p);
            p.args.lse = p.lse;
        }
        p.args.out = threads == 1 ? first : p.out;
        CHECK_OK(op_window_scores(dev, &p.args));
        CHECK(threads == 1 || memcmp(first, p.out, p.n_out * sizeof(float)) == 0);
        device_close(dev);
    }
    free(first);
    problem_free(&p);
}

static void test_threads_do_not_change_a_bit(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        check_threads(&variants[i], false);
        check_threads(&variants[i], true);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_window_scores_match_their_definition),
        cmocka_unit_test(test_rows_count_by_their_weights),
        cmocka_unit_test(test_sums_of_attention_are_taken_as_they_are),
        cmocka_unit_test(test_sums_of_chunks_are_the_scores_of_their_window),
        cmocka_unit_test(test_threads_do_not_change_a_bit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
