#include "cli/bench/stats.h"
#include "tests/check.h"

#include <math.h>
#include <stdlib.h>

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-9 * fmax(1, fabs(b));
}

static struct series series_of(const double *values, size_t n)
{
    struct series series = {0};

    for (size_t i = 0; i < n; i++) {
        CHECK_OK(series_add(&series, values[i]));
    }
    return series;
}

/* numpy.percentile([3, 1, 4, 1, 5, 9, 2, 6], q) with numpy 2.4. */
static void test_percentiles_are_numpys(void **state)
{
    static const double values[] = {3, 1, 4, 1, 5, 9, 2, 6};
    static const double expected[][2] = {{0, 1},     {10, 1},   {25, 1.75}, {50, 3.5},
                                         {75, 5.25}, {90, 6.9}, {99, 8.79}, {100, 9}};
    struct series s = series_of(values, 8);

    (void)state;
    series_sort(&s);
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        CHECK(near(series_percentile(&s, expected[i][0]), expected[i][1]));
    }
    CHECK(near(series_mean(&s), 3.875) && near(series_max(&s), 9));
    CHECK(near(series_std(&s), 2.5708704751503917)); /* numpy.std */
    series_free(&s);
}

static void test_nothing_and_one_value_have_figures_too(void **state)
{
    struct series s = {0};

    (void)state;
    CHECK(series_mean(&s) == 0 && series_std(&s) == 0 && series_percentile(&s, 50) == 0);
    CHECK(series_max(&s) == 0 && series_ci95(&s) == 0);
    CHECK_OK(series_add(&s, 7));
    CHECK(series_percentile(&s, 0) == 7 && series_percentile(&s, 99) == 7);
    CHECK(series_ci95(&s) == 0 && series_std(&s) == 0 && series_max(&s) == 7);
    series_free(&s);
}

/* Quantiles as in printed tables and scipy.stats.t.ppf(0.975, v). */
static void test_students_t(void **state)
{
    static const double expected[][2] = {{1, 12.706205}, {4, 2.776445},   {9, 2.262157},
                                         {20, 2.085963}, {21, 2.079614},  {30, 2.042272},
                                         {60, 2.000298}, {1000, 1.962339}};

    (void)state;
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        CHECK(fabs(stats_t975((size_t)expected[i][0]) - expected[i][1]) < 1e-4);
    }
}

static void test_the_interval_of_five_runs(void **state)
{
    static const double values[] = {10, 12, 11, 13, 14};
    struct series s = series_of(values, 5);

    (void)state;
    /* t(4) * s / sqrt(5), s = sqrt(2.5) */
    CHECK(fabs(series_ci95(&s) - 2.776445 * sqrt(2.5) / sqrt(5)) < 1e-6);
    series_free(&s);
}

static void test_extremes_can_be_dropped(void **state)
{
    static const double values[] = {5, 1, 9, 4};
    struct series s = series_of(values, 4);

    (void)state;
    series_drop_extremes(&s);
    CHECK(s.n == 2 && s.values[0] == 4 && s.values[1] == 5);
    series_drop_extremes(&s);
    CHECK(s.n == 2);
    series_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_percentiles_are_numpys),
        cmocka_unit_test(test_nothing_and_one_value_have_figures_too),
        cmocka_unit_test(test_students_t),
        cmocka_unit_test(test_the_interval_of_five_runs),
        cmocka_unit_test(test_extremes_can_be_dropped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
