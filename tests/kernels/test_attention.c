/* Prompt attention against its definition: every variant, ragged shapes, chosen rows, windows. */
#include "tests/check.h"
#include "tests/definitions/attention.h"
#include "tests/kernels/helpers_act.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct shape {
    int first_row, rows, n_keys, q_heads, kv_heads, head_dim, sliding_window;
    int step; /* 0: rows first_row..; else every step-th row from first_row */
};

struct problem {
    struct act q, k, v, out;
    float *lse;
    int32_t *positions, *q_index;
    struct attention args;
};

static struct problem problem_make(enum dtype dtype, const struct shape *s, uint64_t seed)
{
    struct problem p = {0};
    size_t d = (size_t)s->head_dim, stride = ((size_t)s->n_keys + 3) * d;
    size_t n_q = (size_t)s->rows * (size_t)s->q_heads * d;
    int position = 0;

    p.q = act_random(dtype, n_q, 2.0f, &seed);
    p.k = act_random(dtype, stride * (size_t)s->kv_heads, 1.0f, &seed);
    p.v = act_random(dtype, stride * (size_t)s->kv_heads, 1.0f, &seed);
    p.out = act_zeros(dtype, n_q);
    p.lse = calloc((size_t)s->q_heads * (size_t)s->rows, sizeof(float));
    p.positions = calloc((size_t)s->n_keys, sizeof(int32_t));
    p.q_index = calloc((size_t)s->rows, sizeof(int32_t));
    assert_non_null(p.lse);
    assert_non_null(p.positions);
    assert_non_null(p.q_index);
    for (int j = 0; j < s->n_keys; j++) {
        p.positions[j] = position;
        position += 1 + (j % 7 == 3 ? 5 : 0); /* dropped tokens leave gaps */
    }
    for (int r = 0; r < s->rows; r++) {
        p.q_index[r] = s->first_row + r * s->step;
    }
    p.args = (struct attention){
        .out = p.out.act,
        .q = p.q.act,
        .k = p.k.act,
        .v = p.v.act,
        .kv_stride = stride,
        .q_index = s->step ? p.q_index : NULL,
        .positions = p.positions,
        .lse = p.lse,
        .first_row = s->first_row,
        .rows = s->rows,
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
    act_free(&p->v);
    act_free(&p->out);
    free(p->lse);
    free(p->positions);
    free(p->q_index);
}

static void check_problem(struct device *dev, const struct shape *s, uint64_t seed)
{
    enum dtype dtype = device_dtype(dev);
    struct problem p = problem_make(dtype, s, seed);
    struct attention defined = p.args;
    size_t n_lse = (size_t)s->q_heads * (size_t)s->rows;
    double *out = calloc(p.out.n, sizeof(double)), *lse = calloc(n_lse, sizeof(double));

    assert_non_null(out);
    assert_non_null(lse);
    defined.q = p.q.f32;
    defined.k = p.k.f32;
    defined.v = p.v.f32;
    define_attention(out, lse, &defined);
    CHECK_OK(op_attention(dev, &p.args));
    act_read(dtype, &p.out);
    double worst = act_worst(p.out.f32, out, p.out.n, 1.0);
    double worst_lse = act_worst(p.lse, lse, n_lse, 1.0);
    double limit = dtype == DTYPE_BF16 ? 0.01 : dtype == DTYPE_F16 ? 0.00125 : 3e-6;

    if (!(worst <= limit) || !(worst_lse <= 1e-5)) {
        fail_msg("%s: rows %d at %d, keys %d, heads %d/%d, dim %d, window %d: out %g lse %g",
                 device_description(dev), s->rows, s->first_row, s->n_keys, s->q_heads, s->kv_heads,
                 s->head_dim, s->sliding_window, worst, worst_lse);
    }
    free(out);
    free(lse);
    problem_free(&p);
}

static const struct shape shapes[] = {
    {0, 1, 1, 1, 1, 8, 0, 0},        {0, 64, 64, 2, 1, 16, 0, 0},
    {0, 65, 65, 4, 2, 32, 0, 0},     {100, 37, 137, 8, 2, 64, 0, 0},
    {0, 200, 200, 3, 3, 24, 0, 0},   {250, 70, 320, 6, 2, 128, 0, 0},
    {300, 9, 400, 7, 1, 80, 0, 0},   {63, 2, 129, 2, 2, 256, 0, 0},
    {0, 300, 300, 4, 2, 32, 100, 0}, {200, 100, 300, 4, 4, 40, 33, 0},
    {5, 40, 300, 4, 2, 64, 0, 7},    {3, 50, 260, 9, 3, 96, 150, 5},
    {0, 130, 130, 20, 1, 72, 1, 0},  {511, 1, 512, 8, 2, 64, 0, 0},
    {290, 40, 333, 8, 1, 128, 0, 0}, {150, 35, 300, 8, 2, 128, 100, 0},
    {7, 30, 400, 8, 1, 128, 170, 9}, {0, 129, 129, 4, 1, 64, 0, 0},
};

static void test_attention_matches_its_definition(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
            check_problem(dev, &shapes[s], s + 1);
        }
        device_close(dev);
    }
}

/* Ragged rows and keys, query groups of 3, with and without a sliding window. */
static void test_every_head_dim_matches(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        for (int d = 8; d <= OP_MAX_HEAD_DIM; d += 8) {
            struct shape s = {20, 7, 41, 3, 1, d, d % 16 ? 23 : 0, d % 24 ? 0 : 3};

            check_problem(dev, &s, (uint64_t)d);
        }
        device_close(dev);
    }
}

static void test_threads_do_not_change_a_bit(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct shape s = {20, 300, 400, 4, 2, 64, 0, 0};
        struct problem p = problem_make(variants[i].dtype, &s, 7);
        struct act first = act_zeros(variants[i].dtype, p.out.n);

        for (int threads = 1; threads <= 3; threads += 2) {
            struct device *dev = act_device(&variants[i], threads);

            p.args.out = threads == 1 ? first.act : p.out.act;
            CHECK_OK(op_attention(dev, &p.args));
            device_close(dev);
        }
        CHECK(memcmp(first.act, p.out.act, p.out.n * dtype_bytes(variants[i].dtype)) == 0);
        act_free(&first);
        problem_free(&p);
    }
}

/* Rows 150..199 alone, as a chunk of another length, and as chosen rows. */
static void test_a_row_does_not_depend_on_its_chunk(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * n_variants; i++) {
        const struct variant *variant = &variants[i / 2];
        struct device *dev = act_device(variant, 2);
        size_t bytes = dtype_bytes(variant->dtype);
        struct shape s = {0, 400, 400, 6, 2, i % 2 ? 64 : 40, i / 2 % 2 ? 190 : 0, 1};
        struct problem p = problem_make(variant->dtype, &s, 11);
        size_t row = 6 * (size_t)s.head_dim * bytes;
        struct act part = act_zeros(variant->dtype, p.out.n);

        p.args.lse = NULL;
        CHECK_OK(op_attention(dev, &p.args));
        p.args.out = part.act;
        p.args.q = (const char *)p.args.q + 150 * row;
        p.args.q_index = p.q_index + 150;
        p.args.rows = 50;
        CHECK_OK(op_attention(dev, &p.args));
        CHECK(memcmp(part.act, (char *)p.out.act + 150 * row, 50 * row) == 0);
        p.args.q_index = NULL;
        p.args.first_row = 150;
        p.args.n_keys = 200;
        CHECK_OK(op_attention(dev, &p.args));
        CHECK(memcmp(part.act, (char *)p.out.act + 150 * row, 50 * row) == 0);
        act_free(&part);
        problem_free(&p);
        device_close(dev);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_matches_its_definition),
        cmocka_unit_test(test_every_head_dim_matches),
        cmocka_unit_test(test_threads_do_not_change_a_bit),
        cmocka_unit_test(test_a_row_does_not_depend_on_its_chunk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
