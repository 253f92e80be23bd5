#include "cli/bench/arrival.h"
#include "tests/check.h"

#include <math.h>

enum { N = 4000 };

static double due[N];

/* Coefficient of variation of the gaps from `from` to `to`. */
static double variation(int from, int to)
{
    double sum = 0;
    double squares = 0;

    for (int i = from; i < to; i++) {
        double gap = due[i] - (i ? due[i - 1] : 0);
        CHECK(gap >= 0);
        sum += gap;
        squares += gap * gap;
    }
    double n = to - from;
    double mean = sum / n;
    return sqrt(squares / n - mean * mean) / mean;
}

static void test_without_a_rate_all_are_due_at_once(void **state)
{
    struct arrival arrival = {.rate = (double)INFINITY, .burstiness = 1};

    (void)state;
    arrival_times(due, N, &arrival);
    CHECK(due[0] == 0 && due[N - 1] == 0);
}

static void test_a_poisson_process_keeps_its_rate(void **state)
{
    struct arrival arrival = {.rate = 20, .burstiness = 1, .seed = 5};

    (void)state;
    arrival_times(due, N, &arrival);
    CHECK(fabs(due[N - 1] - N / 20.0) < 1e-9); /* exactly, by stretching */
    CHECK(fabs(variation(0, N) - 1) < 0.08);   /* gaps of a Poisson process: 1 */
}

static void test_burstiness_is_the_shape_of_the_gaps(void **state)
{
    struct arrival arrival = {.rate = 20, .seed = 5};

    (void)state;
    arrival.burstiness = 0.25;
    arrival_times(due, N, &arrival);
    CHECK(fabs(variation(0, N) - 2) < 0.25); /* 1 / sqrt(shape) */
    arrival.burstiness = 100;
    arrival_times(due, N, &arrival);
    CHECK(fabs(variation(0, N) - 0.1) < 0.02);
}

static double rate_between(int from, int to)
{
    return (to - from) / (due[to] - due[from]);
}

static void test_a_ramp_goes_from_one_rate_to_the_other(void **state)
{
    struct arrival arrival = {.rate = (double)INFINITY,
                              .burstiness = 100,
                              .ramp = ARRIVAL_LINEAR,
                              .start_rate = 10,
                              .end_rate = 1000};

    (void)state;
    arrival_times(due, N, &arrival);
    CHECK(fabs(rate_between(0, 40) - 15) < 2);
    CHECK(fabs(rate_between(N / 2 - 100, N / 2 + 100) - 505) < 20);
    CHECK(fabs(rate_between(N - 40, N - 1) - 995) < 50);
    arrival.ramp = ARRIVAL_EXPONENTIAL;
    arrival_times(due, N, &arrival);
    CHECK(fabs(rate_between(N / 2 - 100, N / 2 + 100) - 100) < 5); /* the geometric mean */
    CHECK(fabs(rate_between(N - 40, N - 1) - 977) < 50);
}

static void test_a_seed_gives_the_same_times_again(void **state)
{
    struct arrival arrival = {.rate = 3, .burstiness = 1, .seed = 9};
    double first[2];

    (void)state;
    arrival_times(due, 2, &arrival);
    memcpy(first, due, sizeof(first));
    arrival_times(due, 2, &arrival);
    CHECK(memcmp(first, due, sizeof(first)) == 0);
    arrival.seed = 10;
    arrival_times(due, 2, &arrival);
    CHECK(memcmp(first, due, sizeof(first)) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_a_rate_all_are_due_at_once),
        cmocka_unit_test(test_a_poisson_process_keeps_its_rate),
        cmocka_unit_test(test_burstiness_is_the_shape_of_the_gaps),
        cmocka_unit_test(test_a_ramp_goes_from_one_rate_to_the_other),
        cmocka_unit_test(test_a_seed_gives_the_same_times_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
