/* test_elementwise.c - norm, activation and copies against their definitions. */
#include "tests/check.h"
#include "tests/definitions/basic.h"
#include "tests/kernels/helpers_act.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double tolerance(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? 0x1p-8 : dtype == DTYPE_F16 ? 0x1p-10 : 1e-6;
}

static void check_close(const struct variant *variant, const char *what, struct act *got,
                        const double *expected, double floor)
{
    act_read(variant->dtype, got);
    if (variant->dtype == DTYPE_F16 && floor < 0x1p-14) {
        floor = 0x1p-14; /* below, float16 has fewer bits */
    }
    double worst = act_worst(got->f32, expected, got->n, floor);

    if (!(worst <= tolerance(variant->dtype))) {
        fail_msg("%s %s, %s: error %g", what, variant->isa ? variant->isa : "best",
                 dtype_name(variant->dtype), worst);
    }
}

static void check_rmsnorm(const struct variant *variant, int rows, int cols, float scale)
{
    uint64_t seed = 11;
    struct device *dev = act_device(variant, 2);
    size_t n = (size_t)rows * (size_t)cols;
    struct act x = act_random(DTYPE_F32, n, scale, &seed);
    struct act weight = act_random(DTYPE_F32, (size_t)cols, 1.0f, &seed);
    struct act out = act_zeros(variant->dtype, n);
    double *expected = calloc(n, sizeof(*expected));

    CHECK(expected);
    define_rmsnorm(expected, x.f32, weight.f32, rows, cols, 1e-5f);
    CHECK_OK(op_rmsnorm(dev, out.act, x.act, weight.act, rows, cols, 1e-5f));
    check_close(variant, "rmsnorm", &out, expected, 1e-30);
    free(expected);
    act_free(&out);
    act_free(&weight);
    act_free(&x);
    device_close(dev);
}

static void test_rmsnorm_divides_by_the_root_mean_square(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_rmsnorm(&variants[v], 3, 1, 1.0f);
        check_rmsnorm(&variants[v], 5, 83, 1.0f);
        check_rmsnorm(&variants[v], 33, 1030, 100.0f);
        check_rmsnorm(&variants[v], 2, 64, 1e-4f); /* epsilon counts */
    }
}

static void check_add_rmsnorm(const struct variant *variant, int rows, int cols)
{
    uint64_t seed = 12;
    struct device *dev = act_device(variant, 2);
    size_t n = (size_t)rows * (size_t)cols;
    struct act x = act_random(DTYPE_F32, n, 1.0f, &seed);
    struct act y = act_random(DTYPE_F32, n, 2.0f, &seed);
    struct act weight = act_random(DTYPE_F32, (size_t)cols, 1.0f, &seed);
    struct act out = act_zeros(variant->dtype, n);
    double *expected = calloc(n, sizeof(*expected));

    CHECK(expected);
    CHECK_OK(op_add_rmsnorm(dev, out.act, x.act, y.act, weight.act, rows, cols, 1e-5f));
    for (size_t i = 0; i < n; i++) {
        x.f32[i] += y.f32[i];
    }
    CHECK(memcmp(x.f32, x.act, n * sizeof(float)) == 0);
    define_rmsnorm(expected, x.f32, weight.f32, rows, cols, 1e-5f);
    check_close(variant, "add_rmsnorm", &out, expected, 1e-30);
    free(expected);
    act_free(&out);
    act_free(&weight);
    act_free(&y);
    act_free(&x);
    device_close(dev);
}

static void test_add_rmsnorm_leaves_the_sum_and_its_norm(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_add_rmsnorm(&variants[v], 1, 1);
        check_add_rmsnorm(&variants[v], 5, 83);
        check_add_rmsnorm(&variants[v], 33, 1032);
        check_add_rmsnorm(&variants[v], 2, 4096);
    }
}

static void check_silu_mul(const struct variant *variant, size_t n, float scale)
{
    uint64_t seed = n;
    struct device *dev = act_device(variant, 2);
    struct act gate = act_random(variant->dtype, n, scale, &seed);
    struct act up = act_random(variant->dtype, n, 1.0f, &seed);
    double *expected = calloc(n, sizeof(*expected));

    CHECK(expected);
    define_silu_mul(expected, gate.f32, up.f32, n);
    CHECK_OK(op_silu_mul(dev, gate.act, gate.act, up.act, n)); /* aliased */
    check_close(variant, "silu_mul", &gate, expected, 1e-30);
    free(expected);
    act_free(&up);
    act_free(&gate);
    device_close(dev);
}

static void test_silu_mul_gates_to_relative_accuracy(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_silu_mul(&variants[v], 1, 1.0f);
        check_silu_mul(&variants[v], 1003, 1.0f);
        check_silu_mul(&variants[v], 70001, 15.0f); /* more than one piece; far tails */
    }
}

static void check_extreme_gates(const struct variant *variant)
{
    float gate[] = {-3e38f, -200.0f, 0.0f, 200.0f, 3e38f}, up[] = {1, 1, 1, 1, 1};
    struct device *dev = act_device(variant, 1);

    CHECK_OK(op_silu_mul(dev, gate, gate, up, 5));
    CHECK(gate[0] == 0.0f && gate[1] == 0.0f && gate[2] == 0.0f);
    CHECK(gate[3] == 200.0f && gate[4] == 3e38f);
    device_close(dev);
}

static void test_silu_mul_of_extreme_gates_is_finite(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        if (variants[v].dtype == DTYPE_F32) {
            check_extreme_gates(&variants[v]);
        }
    }
}

static void check_add(const struct variant *variant)
{
    enum { N = 100003 };
    uint64_t seed = 1;
    struct device *dev = act_device(variant, 2);
    struct act x = act_random(DTYPE_F32, N, 1.0f, &seed);
    struct act y = act_random(DTYPE_F32, N, 1.0f, &seed);
    int wrong = 0;

    CHECK_OK(op_add(dev, x.act, y.act, N));
    for (int i = 0; i < N; i++) {
        wrong += ((float *)x.act)[i] != x.f32[i] + y.f32[i];
    }
    CHECK(wrong == 0);
    act_free(&y);
    act_free(&x);
    device_close(dev);
}

static void test_add_is_exact(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_add(&variants[v]);
    }
}

static void check_embed(const struct variant *variant)
{
    enum { ROWS = 40, COLS = 21, STRIDE = 24, FIRST = 100, N = 5, N_OUT = N * COLS };
    const int32_t ids[N] = {100, 99, 139, 140, 104};
    uint64_t seed = 1;
    struct device *dev = act_device(variant, 2);
    struct act table = act_random(variant->dtype, ROWS * (size_t)STRIDE, 1.0f, &seed);
    struct matrix matrix = {.data = table.act, .rows = ROWS, .cols = COLS, .stride = STRIDE};
    struct matrix packed = act_packed(dev, &matrix);
    double expected[N_OUT];
    float out[N_OUT];

    define_embed(expected, ids, N, table.f32, ROWS, COLS, STRIDE, FIRST);
    CHECK_OK(op_embed(dev, out, ids, N, &matrix, FIRST));
    CHECK(act_worst(out, expected, N_OUT, 1.0) == 0.0);
    CHECK_OK(op_embed(dev, out, ids, N, &packed, FIRST));
    CHECK(act_worst(out, expected, N_OUT, 1.0) == 0.0);
    act_packed_free(&packed);
    act_free(&table);
    device_close(dev);
}

static void test_embed_reads_own_rows_and_leaves_zeros_for_others(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_embed(&variants[v]);
    }
}

static void test_gather_rows_copies_by_index(void **state)
{
    const int32_t in[] = {10, 11, 20, 21, 30, 31, 40, 41}, index[] = {3, 0, 3};
    const int32_t expected[] = {40, 41, 10, 11, 40, 41};
    struct device *dev = act_device(&variants[0], 2);
    int32_t out[6];

    (void)state;
    CHECK_OK(op_gather_rows(dev, out, in, index, 3, 2 * sizeof(int32_t)));
    CHECK(memcmp(out, expected, sizeof(out)) == 0);
    CHECK_OK(op_gather_rows(dev, out, in, index, 0, 2 * sizeof(int32_t)));
    device_close(dev);
}

static void check_gather_rows(struct device *dev, int rows, int n, size_t words, uint64_t *seed)
{
    uint32_t *in = calloc((size_t)rows * words, sizeof(*in));
    uint32_t *out = calloc((size_t)n * words + 1, sizeof(*out));
    int32_t *index = calloc((size_t)n + 1, sizeof(*index));
    int wrong = 0;

    assert_non_null(in);
    assert_non_null(out);
    assert_non_null(index);
    for (size_t i = 0; i < (size_t)rows * words; i++) {
        in[i] = (uint32_t)test_random(seed);
    }
    for (int i = 0; i < n; i++) {
        index[i] = test_below(seed, rows);
    }
    CHECK_OK(op_gather_rows(dev, out, in, index, n, words * sizeof(*in)));
    for (int i = 0; i < n; i++) {
        wrong += memcmp(out + (size_t)i * words, in + (size_t)index[i] * words,
                        words * sizeof(*in)) != 0;
    }
    CHECK(wrong == 0 && out[(size_t)n * words] == 0);
    free(index);
    free(out);
    free(in);
}

static void test_gather_rows_of_any_shape_up_to_long_prompts(void **state)
{
    struct device *dev = act_device(&variants[0], 3);
    uint64_t seed = 3;

    (void)state;
    for (int round = 0; round < 100; round++) {
        check_gather_rows(dev, 1 + test_below(&seed, 900), test_below(&seed, 900),
                          1 + (size_t)test_below(&seed, 70), &seed);
    }
    check_gather_rows(dev, 131072, 131072, 1, &seed);
    check_gather_rows(dev, 131072, 26214, 32, &seed);
    device_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm_divides_by_the_root_mean_square),
        cmocka_unit_test(test_add_rmsnorm_leaves_the_sum_and_its_norm),
        cmocka_unit_test(test_silu_mul_gates_to_relative_accuracy),
        cmocka_unit_test(test_silu_mul_of_extreme_gates_is_finite),
        cmocka_unit_test(test_add_is_exact),
        cmocka_unit_test(test_embed_reads_own_rows_and_leaves_zeros_for_others),
        cmocka_unit_test(test_gather_rows_copies_by_index),
        cmocka_unit_test(test_gather_rows_of_any_shape_up_to_long_prompts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
