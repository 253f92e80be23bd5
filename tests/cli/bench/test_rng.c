#include "cli/bench/rng.h"
#include "tests/check.h"

#include <math.h>
#include <stdlib.h>

/* Reference values: the published splitmix64 and xoshiro256** in another language. */
static void test_the_numbers_are_the_same_on_every_machine(void **state)
{
    static const uint64_t expected[] = {0x4150452ab869a892u, 0x63980fc0383ce41bu,
                                        0x6276ee9c4552e56du, 0x96a8154c710ce93cu};
    struct rng rng;

    (void)state;
    rng_init(&rng, 42, 7);
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        CHECK(rng_next(&rng) == expected[i]);
    }
}

static void test_each_value_below_a_bound_is_alike(void **state)
{
    int counts[7] = {0};
    struct rng rng;

    (void)state;
    rng_init(&rng, 1, 0);
    for (int i = 0; i < 70000; i++) {
        uint32_t x = rng_below(&rng, 7);
        CHECK(x < 7);
        counts[x]++;
    }
    for (int i = 0; i < 7; i++) {
        CHECK(abs(counts[i] - 10000) < 500); /* more than 5 standard deviations */
    }
    CHECK(rng_below(&rng, 1) == 0);
}

static void check_gamma(double shape)
{
    enum { N = 100000 };
    double sum = 0;
    double squares = 0;
    struct rng rng;

    rng_init(&rng, 3, 0);
    for (int i = 0; i < N; i++) {
        double x = rng_gamma(&rng, shape);
        CHECK(x >= 0);
        sum += x;
        squares += x * x;
    }
    double mean = sum / N;
    double variance = squares / N - mean * mean;
    CHECK(fabs(mean - shape) < 6 * sqrt(shape / N));
    CHECK(fabs(variance - shape) < 0.08 * shape); /* a gamma's variance is its mean at scale 1 */
}

static void test_gamma_has_its_mean_and_variance(void **state)
{
    (void)state;
    check_gamma(0.25);
    check_gamma(1);
    check_gamma(4);
    check_gamma(100);
}

static void test_other_keys_and_seeds_give_other_streams(void **state)
{
    struct rng a;
    struct rng b;
    struct rng c;

    (void)state;
    rng_init(&a, 1, 0);
    rng_init(&b, 1, 1);
    rng_init(&c, 2, 0);
    uint64_t x = rng_next(&a);
    CHECK(x != rng_next(&b) && x != rng_next(&c));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_numbers_are_the_same_on_every_machine),
        cmocka_unit_test(test_each_value_below_a_bound_is_alike),
        cmocka_unit_test(test_gamma_has_its_mean_and_variance),
        cmocka_unit_test(test_other_keys_and_seeds_give_other_streams),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
