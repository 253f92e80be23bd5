/* Raw scores of one row against their definition, and the same bits on any number of threads. */
#include "tests/check.h"
#include "tests/definitions/attention.h"
#include "tests/kernels/helpers_act.h"

#include <stdlib.h>
#include <string.h>

struct shape {
    int n_keys, q_heads, kv_heads, head_dim;
};

struct problem {
    struct act q, k;
    float *out;
    struct dot_scores args;
};

static struct problem problem_make(enum dtype dtype, const struct shape *s, uint64_t seed)
{
    struct problem p = {0};
    size_t d = (size_t)s->head_dim, stride = ((size_t)s->n_keys + 3) * d;

    p.q = act_random(dtype, (size_t)s->q_heads * d, 2.0f, &seed);
    p.k = act_random(dtype, stride * (size_t)s->kv_heads, 1.0f, &seed);
    p.out = calloc((size_t)s->n_keys + 1, sizeof(float));
    assert_non_null(p.out);
    p.out[s->n_keys] = 42.0f; /* not to be overwritten */
    p.args = (struct dot_scores){
        .out = p.out,
        .q = p.q.act,
        .k = p.k.act,
        .kv_stride = stride,
        .n_keys = s->n_keys,
        .q_heads = s->q_heads,
        .kv_heads = s->kv_heads,
        .head_dim = s->head_dim,
    };
    return p;
}

static void problem_free(struct problem *p)
{
    act_free(&p->q);
    act_free(&p->k);
    free(p->out);
}

static void check_shape(struct device *dev, const struct variant *variant, const struct shape *s,
                        uint64_t seed)
{
    struct problem p = problem_make(variant->dtype, s, seed);
    struct dot_scores defined = p.args;
    double *expected = calloc((size_t)s->n_keys, sizeof(double));

    assert_non_null(expected);
    defined.q = p.q.f32;
    defined.k = p.k.f32;
    define_dot_scores(expected, &defined);
    CHECK_OK(op_dot_scores(dev, &p.args));
    double worst = act_worst(p.out, expected, (size_t)s->n_keys, 10.0);
    if (!(worst < 1e-5)) {
        fail_msg("%s: %d keys: off by %g", device_description(dev), s->n_keys, worst);
    }
    CHECK(p.out[s->n_keys] == 42.0f);
    free(expected);
    problem_free(&p);
}

static void test_dot_scores_match_their_definition(void **state)
{
    static const struct shape shapes[] = {
        {1, 1, 1, 8},    {9, 4, 2, 32},    {64, 4, 1, 16},    {300, 6, 2, 64},
        {257, 8, 8, 24}, {2111, 6, 3, 40}, {1024, 5, 1, 256}, {131072, 4, 2, 16},
    };

    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        for (size_t n = 0; n < sizeof(shapes) / sizeof(shapes[0]); n++) {
            check_shape(dev, &variants[i], &shapes[n], n);
        }
        device_close(dev);
    }
}

static void test_threads_do_not_change_a_bit(void **state)
{
    struct shape s = {20000, 4, 2, 32};

    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct problem p = problem_make(variants[i].dtype, &s, 3);
        float *first = calloc((size_t)s.n_keys, sizeof(float));

        assert_non_null(first);
        for (int threads = 1; threads <= 3; threads++) {
            struct device *dev = act_device(&variants[i], threads);

            p.args.out = threads == 1 ? first : p.out;
            CHECK_OK(op_dot_scores(dev, &p.args));
            CHECK(threads == 1 || memcmp(first, p.out, (size_t)s.n_keys * sizeof(float)) == 0);
            device_close(dev);
        }
        free(first);
        problem_free(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dot_scores_match_their_definition),
        cmocka_unit_test(test_threads_do_not_change_a_bit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
