/* Top-k against a sort: random sizes, ties, special values, and the sizes of long prompts. */
#include "tests/check.h"
#include "tests/definitions/select.h"
#include "tests/kernels/helpers_act.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct device *dev;

static void check_top_k(const float *score, int n, int k)
{
    int32_t *got = calloc((size_t)k + 1, sizeof(*got));
    int32_t *expected = calloc((size_t)k + 1, sizeof(*expected));

    assert_non_null(got);
    assert_non_null(expected);
    got[k] = expected[k] = -7; /* not to be overwritten */
    define_top_k(expected, score, n, k);
    CHECK_OK(op_top_k(dev, got, score, n, k));
    if (memcmp(got, expected, ((size_t)k + 1) * sizeof(*got)) != 0) {
        fail_msg("top %d of %d differ", k, n);
    }
    free(got);
    free(expected);
}

static float any_float(uint64_t *seed, int kind)
{
    static const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-42f, -1e-42f, 1.0f};
    uint32_t bits = (uint32_t)test_random(seed);
    float x;

    switch (kind) {
    case 0:
        memcpy(&x, &bits, sizeof(x)); /* every pattern, NaN too */
        return x;
    case 1:
        return (float)(bits % 5); /* ties */
    case 2:
        return special[bits % 8];
    default:
        return (float)bits * 0x1p-32f; /* like probabilities */
    }
}

static void test_top_k_agrees_with_a_sort(void **state)
{
    uint64_t seed = 5;

    (void)state;
    for (int round = 0; round < 400; round++) {
        int n = 1 + test_below(&seed, round % 10 == 0 ? 5000 : 60);
        float *score = calloc((size_t)n, sizeof(*score));

        assert_non_null(score);
        for (int i = 0; i < n; i++) {
            score[i] = any_float(&seed, round % 4);
        }
        check_top_k(score, n, test_below(&seed, n + 1));
        check_top_k(score, n, n);
        check_top_k(score, n, 0);
        free(score);
    }
}

static void test_plateaus_of_long_prompts_keep_the_lower_positions(void **state)
{
    enum { N = 131072 };
    float *score = calloc(N, sizeof(*score));
    uint64_t seed = 6;

    (void)state;
    assert_non_null(score);
    for (int i = 0; i < N; i++) {
        score[i] = i % 7 && i ? score[i - 1] : any_float(&seed, 3);
    }
    check_top_k(score, N, N / 5);
    for (int i = 0; i < N; i++) {
        score[i] = 0.25f;
    }
    check_top_k(score, N, N / 10);
    free(score);
}

static void test_ragged_long_prompts_with_few_different_scores(void **state)
{
    enum { N = 131072 };
    float *score = calloc(N, sizeof(*score));
    uint64_t seed = 7;

    (void)state;
    assert_non_null(score);
    for (int round = 0; round < 8; round++) {
        int n = N - test_below(&seed, round < 2 ? 3 : 70000);
        for (int i = 0; i < n; i++) {
            score[i] = any_float(&seed, round % 4);
        }
        check_top_k(score, n, test_below(&seed, n + 1));
    }
    free(score);
}

static void test_nothing_of_nothing_is_nothing(void **state)
{
    (void)state;
    check_top_k((const float[]){0}, 0, 0);
}

static int open_device(void **state)
{
    (void)state;
    dev = act_device(&variants[0], 2);
    return 0;
}

static int close_device(void **state)
{
    (void)state;
    device_close(dev);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_top_k_agrees_with_a_sort),
        cmocka_unit_test(test_plateaus_of_long_prompts_keep_the_lower_positions),
        cmocka_unit_test(test_ragged_long_prompts_with_few_different_scores),
        cmocka_unit_test(test_nothing_of_nothing_is_nothing),
    };

    return cmocka_run_group_tests(tests, open_device, close_device);
}
