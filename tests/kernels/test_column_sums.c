/* Column sums against their definition: in chunks, open rows, local sums, any number of threads. */
#include "tests/check.h"
#include "tests/definitions/attention.h"
#include "tests/kernels/helpers_act.h"

#include <stdlib.h>
#include <string.h>

struct shape {
    int n, chunk, q_heads, kv_heads, head_dim, sliding_window, n_local;
};

struct problem {
    struct shape shape;
    struct act q, k;
    float *sums[2]; /* all pairs, local ones */
    int32_t *positions;
    size_t n_out;
};

static struct problem problem_make(enum dtype dtype, const struct shape *s, uint64_t seed)
{
    struct problem p = {.shape = *s};
    size_t d = (size_t)s->head_dim, n = (size_t)s->n;

    p.q = act_random(dtype, n * (size_t)s->q_heads * d, 2.0f, &seed);
    p.k = act_random(dtype, n * (size_t)s->kv_heads * d, 1.0f, &seed);
    p.n_out = (size_t)s->q_heads * n;
    p.positions = calloc(n, sizeof(int32_t));
    assert_non_null(p.positions);
    for (int i = 0; i < 2; i++) {
        p.sums[i] = calloc(p.n_out, sizeof(float));
        assert_non_null(p.sums[i]);
        memset(p.sums[i], 0x7f, p.n_out * sizeof(float)); /* what was there does not matter */
    }
    for (int j = 0; j < s->n; j++) {
        p.positions[j] = j + j / 9;
    }
    return p;
}

static void problem_free(struct problem *p)
{
    act_free(&p->q);
    act_free(&p->k);
    free(p->sums[0]);
    free(p->sums[1]);
    free(p->positions);
}

/* The rows begin..end of the problem; `wide`: in float32, for the definition. */
static struct column_sums chunk_args(const struct problem *p, enum dtype dtype, int begin, int end,
                                     bool wide)
{
    const struct shape *s = &p->shape;
    size_t at = (size_t)begin * (size_t)s->q_heads * (size_t)s->head_dim;
    size_t bytes = wide || dtype == DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);

    return (struct column_sums){
        .out = p->sums[0],
        .local = s->n_local ? p->sums[1] : NULL,
        .stride = (size_t)s->n,
        .q = (const char *)(wide ? (void *)p->q.f32 : p->q.act) + at * bytes,
        .k = wide ? (void *)p->k.f32 : p->k.act,
        .kv_stride = (size_t)s->n * (size_t)s->head_dim,
        .positions = p->positions,
        .first_row = begin,
        .rows = end - begin,
        .n_keys = end,
        .fresh = begin,
        .n_local = s->n_local,
        .q_heads = s->q_heads,
        .kv_heads = s->kv_heads,
        .head_dim = s->head_dim,
        .sliding_window = s->sliding_window,
    };
}

/* The log-sum-exp that attention leaves for the rows of `args`. */
static float *attention_lse(struct device *dev, const struct column_sums *args)
{
    size_t rows = (size_t)args->rows * (size_t)args->q_heads;
    float *lse = calloc(rows, sizeof(float));
    float *out = calloc(rows * (size_t)args->head_dim, sizeof(float));

    assert_non_null(lse);
    assert_non_null(out);
    CHECK_OK(op_attention(dev, &(struct attention){
                                   .out = out,
                                   .q = args->q,
                                   .k = args->k,
                                   .v = args->k,
                                   .kv_stride = args->kv_stride,
                                   .positions = args->positions,
                                   .lse = lse,
                                   .first_row = args->first_row,
                                   .rows = args->rows,
                                   .n_keys = args->n_keys,
                                   .q_heads = args->q_heads,
                                   .kv_heads = args->kv_heads,
                                   .head_dim = args->head_dim,
                                   .sliding_window = args->sliding_window,
                               }));
    free(out);
    return lse;
}

static void run_chunks(struct device *dev, const struct problem *p, enum dtype dtype, bool given)
{
    for (int begin = 0; begin < p->shape.n; begin += p->shape.chunk) {
        int end = begin + p->shape.chunk < p->shape.n ? begin + p->shape.chunk : p->shape.n;
        struct column_sums args = chunk_args(p, dtype, begin, end, false);
        float *lse = given ? attention_lse(dev, &args) : NULL;

        args.lse = lse;
        CHECK_OK(op_column_sums(dev, &args));
        free(lse);
    }
}

static void compare(struct device *dev, const struct problem *p, const struct column_sums *defined,
                    size_t shape)
{
    double *expected[2] = {calloc(p->n_out, sizeof(double)), calloc(p->n_out, sizeof(double))};

    assert_non_null(expected[0]);
    assert_non_null(expected[1]);
    define_column_sums(expected[0], expected[1], defined);
    for (int i = 0; i < (defined->local ? 2 : 1); i++) {
        double worst = act_worst(p->sums[i], expected[i], p->n_out, 1e-3);
        if (!(worst < 2e-5)) {
            fail_msg("%s: shape %zu, sums %d: off by %g", device_description(dev), shape, i, worst);
        }
        free(expected[i]);
    }
    if (!defined->local) {
        free(expected[1]);
    }
}

static const struct shape shapes[] = {
    {1, 512, 1, 1, 8, 0, 1},        {9, 512, 4, 2, 32, 0, 3},     {64, 64, 4, 1, 16, 0, 0},
    {300, 100, 6, 2, 64, 0, 90},    {601, 512, 4, 4, 24, 0, 0},   {333, 200, 6, 3, 40, 57, 11},
    {500, 128, 4, 2, 128, 90, 200}, {257, 250, 5, 1, 256, 40, 0}, {200, 77, 2, 2, 72, 0, 500},
    {90, 37, 3, 1, 104, 17, 5},     {70, 70, 2, 1, 200, 0, 9},
};

static void sums_match(bool given)
{
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        for (size_t n = 0; n < sizeof(shapes) / sizeof(shapes[0]); n++) {
            struct problem p = problem_make(variants[i].dtype, &shapes[n], n);
            struct column_sums defined = chunk_args(&p, DTYPE_F32, 0, shapes[n].n, true);

            run_chunks(dev, &p, variants[i].dtype, given);
            compare(dev, &p, &defined, n);
            problem_free(&p);
        }
        device_close(dev);
    }
}

static void test_sums_after_attention_match_their_definition(void **state)
{
    (void)state;
    sums_match(true);
}

static void test_sums_that_find_their_own_normaliser_match(void **state)
{
    (void)state;
    sums_match(false);
}

static void test_open_rows_see_every_key(void **state)
{
    static const struct shape shape = {300, 128, 6, 2, 64, 0, 0};

    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);
        struct problem p = problem_make(variants[i].dtype, &shape, 5);
        struct column_sums defined = chunk_args(&p, DTYPE_F32, 0, shape.n, true);

        defined.open_rows = shape.n - 8;
        for (int begin = 0; begin < shape.n; begin += shape.chunk) {
            int end = begin + shape.chunk < shape.n ? begin + shape.chunk : shape.n;
            struct column_sums args = chunk_args(&p, variants[i].dtype, begin, end, false);

            args.n_keys = shape.n;
            args.open_rows = shape.n - 8;
            args.fresh = begin == 0 ? 0 : shape.n;
            CHECK_OK(op_column_sums(dev, &args));
        }
        compare(dev, &p, &defined, 0);
        problem_free(&p);
        device_close(dev);
    }
}

static void test_threads_do_not_change_a_bit(void **state)
{
    static const struct shape shape = {900, 512, 4, 2, 32, 0, 100};

    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct problem p = problem_make(variants[i].dtype, &shape, 3);
        float *first = calloc(p.n_out, sizeof(float));

        assert_non_null(first);
        for (int threads = 1; threads <= 3; threads++) {
            struct device *dev = act_device(&variants[i], threads);

            run_chunks(dev, &p, variants[i].dtype, true);
            if (threads == 1) {
                memcpy(first, p.sums[0], p.n_out * sizeof(float));
            }
            CHECK(memcmp(first, p.sums[0], p.n_out * sizeof(float)) == 0);
            device_close(dev);
        }
        free(first);
        problem_free(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums_after_attention_match_their_definition),
        cmocka_unit_test(test_sums_that_find_their_own_normaliser_match),
        cmocka_unit_test(test_open_rows_see_every_key),
        cmocka_unit_test(test_threads_do_not_change_a_bit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
