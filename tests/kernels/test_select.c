/* Pooling and group reduction against their definitions, aliased where that is allowed. */
#include "tests/check.h"
#include "tests/definitions/select.h"
#include "tests/kernels/helpers_act.h"

#include <stdlib.h>
#include <string.h>

static void check_pool(struct device *dev, int rows, int n, int kernel, enum pooling how)
{
    uint64_t seed = (uint64_t)n;
    size_t size = (size_t)rows * (size_t)n;
    struct act in = act_random(DTYPE_F32, size, 1.0f, &seed);
    float *out = calloc(size + 1, sizeof(float));
    double *expected = calloc(size + 1, sizeof(double));

    assert_non_null(out);
    assert_non_null(expected);
    define_pool(expected, in.f32, rows, n, kernel, how);
    CHECK_OK(op_pool(dev, out, in.f32, rows, n, kernel, how));
    double worst = act_worst(out, expected, size, 1.0);
    if (!(worst <= (how == POOLING_MAX ? 0.0 : 1e-6))) {
        fail_msg("pool %d of %d x %d: off by %g", kernel, rows, n, worst);
    }
    act_free(&in);
    free(out);
    free(expected);
}

static void test_pooling_matches_its_definition(void **state)
{
    static const int sizes[] = {1, 2, 3, 6, 7, 8, 63, 64, 1023, 1024, 1025, 3000};
    struct device *dev = act_device(&variants[0], 3);

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (int kernel = 1; kernel <= OP_MAX_POOL_KERNEL; kernel += kernel < 9 ? 2 : 18) {
            check_pool(dev, 3, sizes[i], kernel, POOLING_MAX);
            check_pool(dev, 3, sizes[i], kernel, POOLING_AVG);
        }
    }
    device_close(dev);
}

static void check_reduce(struct device *dev, int groups, int group, int n, enum group_reduce how)
{
    uint64_t seed = (uint64_t)n;
    size_t size = (size_t)groups * (size_t)n;
    struct act in = act_random(DTYPE_F32, size * (size_t)group, 1.0f, &seed);
    float *out = calloc(size + 1, sizeof(float));
    double *expected = calloc(size + 1, sizeof(double));

    assert_non_null(out);
    assert_non_null(expected);
    define_group_reduce(expected, in.f32, groups, group, n, how);
    CHECK_OK(op_group_reduce(dev, out, in.f32, groups, group, n, how));
    CHECK(act_worst(out, expected, size, 1.0) <= (how == GROUP_MAX ? 0.0 : 1e-6));
    CHECK_OK(op_group_reduce(dev, in.f32, in.f32, groups, group, n, how));
    CHECK(size == 0 || memcmp(in.f32, out, size * sizeof(float)) == 0);
    act_free(&in);
    free(out);
    free(expected);
}

static void test_group_reduction_matches_its_definition_in_place_too(void **state)
{
    static const enum group_reduce how[] = {GROUP_SUM, GROUP_MEAN, GROUP_MAX};
    struct device *dev = act_device(&variants[0], 3);

    (void)state;
    for (int i = 0; i < 3; i++) {
        check_reduce(dev, 1, 1, 1, how[i]);
        check_reduce(dev, 3, 1, 1500, how[i]);
        check_reduce(dev, 4, 3, 2500, how[i]);
        check_reduce(dev, 2, 8, 40000, how[i]);
        check_reduce(dev, 8, 4, 0, how[i]);
    }
    device_close(dev);
}

/* Random shapes, and the lengths of long prompts. */
static void test_any_shape_up_to_long_prompts_is_right(void **state)
{
    static const int lengths[] = {131072, 131071, 130001};
    struct device *dev = act_device(&variants[0], 3);
    uint64_t seed = 12;

    (void)state;
    for (int round = 0; round < 100; round++) {
        int n = 1 + test_below(&seed, 2500), kernel = 1 + 2 * test_below(&seed, 32);
        check_pool(dev, 1 + test_below(&seed, 4), n, kernel, round % 2 ? POOLING_MAX : POOLING_AVG);
        check_reduce(dev, 1 + test_below(&seed, 3), 1 + test_below(&seed, 8), n,
                     (enum group_reduce)(1 + round % 3));
    }
    for (int i = 0; i < 3; i++) {
        check_pool(dev, 2, lengths[i], 7, POOLING_MAX);
        check_pool(dev, 2, lengths[i], 7, POOLING_AVG);
        check_reduce(dev, 2, 3, lengths[i], (enum group_reduce)(1 + i));
    }
    device_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pooling_matches_its_definition),
        cmocka_unit_test(test_group_reduction_matches_its_definition_in_place_too),
        cmocka_unit_test(test_any_shape_up_to_long_prompts_is_right),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
