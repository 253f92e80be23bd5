/* Counters, gauges and histograms, and the text that Prometheus reads. */
#include "common/metrics.h"
#include "tests/check.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static const double bounds[] = {0.1, 1, 10};
static const struct metric_family counter = {"a_total", "A.", METRIC_COUNTER, NULL, 0};
static const struct metric_family gauge = {"g", "G.", METRIC_GAUGE, NULL, 0};
static const struct metric_family histogram = {"h", "H.", METRIC_HISTOGRAM, bounds, 3};

static struct metrics *metrics;

static int open_one(void **state)
{
    (void)state;
    CHECK_OK(metrics_open(&metrics, "m"));
    return 0;
}

static int close_one(void **state)
{
    (void)state;
    metrics_close(metrics);
    return 0;
}

static void check_text(const char *wanted)
{
    char *text = NULL;
    size_t bytes = 0;

    CHECK_OK(metrics_write(metrics, &text, &bytes));
    assert_string_equal(text, wanted);
    CHECK(strlen(text) == bytes);
    free(text);
}

static void test_a_registry_without_series_writes_nothing(void **state)
{
    (void)state;
    check_text("");
}

static void test_series_of_a_family_stand_together_under_one_head(void **state)
{
    const struct metric_label first = {"rank", "0"};
    const struct metric_label second = {"rank", "1"};

    (void)state;
    struct metric *a0 = metrics_add(metrics, &counter, &first, 1);
    struct metric *g = metrics_add(metrics, &gauge, NULL, 0);
    struct metric *a1 = metrics_add(metrics, &counter, &second, 1);
    metric_add(a0, 2);
    metric_add(a0, 0.5);
    metric_add(a1, 9007199254740991.0);
    metric_set(g, -3);
    check_text("# HELP a_total A.\n# TYPE a_total counter\n"
               "a_total{model_name=\"m\",rank=\"0\"} 2.5\n"
               "a_total{model_name=\"m\",rank=\"1\"} 9007199254740991\n"
               "# HELP g G.\n# TYPE g gauge\n"
               "g{model_name=\"m\"} -3\n");
}

static void test_a_histogram_counts_each_value_in_all_buckets_above_it(void **state)
{
    (void)state;
    struct metric *h = metrics_add(metrics, &histogram, NULL, 0);
    const double values[] = {0.1, 0.5, 10, 11};
    for (size_t i = 0; i < 4; i++) {
        metric_observe(h, values[i]);
    }
    check_text("# HELP h H.\n# TYPE h histogram\n"
               "h_bucket{model_name=\"m\",le=\"0.1\"} 1\n"
               "h_bucket{model_name=\"m\",le=\"1\"} 2\n"
               "h_bucket{model_name=\"m\",le=\"10\"} 3\n"
               "h_bucket{model_name=\"m\",le=\"+Inf\"} 4\n"
               "h_count{model_name=\"m\"} 4\n"
               "h_sum{model_name=\"m\"} 21.600000000000001\n");
}

static void test_a_gauge_without_a_value_is_not_written(void **state)
{
    (void)state;
    struct metric *g = metrics_add(metrics, &gauge, NULL, 0);
    metric_set(g, NAN);
    check_text("# HELP g G.\n# TYPE g gauge\n");
    metric_set(g, INFINITY);
    check_text("# HELP g G.\n# TYPE g gauge\ng{model_name=\"m\"} +Inf\n");
}

static void test_label_values_cannot_break_out_of_their_quotes(void **state)
{
    const struct metric_label odd = {"x", "a\"b\\c\nd\xff"};

    (void)state;
    metric_set(metrics_add(metrics, &gauge, &odd, 1), 1);
    check_text("# HELP g G.\n# TYPE g gauge\n"
               "g{model_name=\"m\",x=\"a\\\"b\\\\c\\nd?\"} 1\n");
}

static void test_labels_that_change_replace_the_old_ones(void **state)
{
    const struct metric_label old = {"pages", "1"};
    const struct metric_label fresh = {"pages", "2"};

    (void)state;
    struct metric *g = metrics_add(metrics, &gauge, &old, 1);
    metric_set(g, 1);
    metrics_relabel(metrics, g, &fresh, 1);
    check_text("# HELP g G.\n# TYPE g gauge\ng{model_name=\"m\",pages=\"2\"} 1\n");
}

static void test_a_label_over_its_limit_makes_no_series(void **state)
{
    static char big[METRICS_MAX_LABELS + 1];
    const struct metric_label label = {"x", big};

    (void)state;
    memset(big, 'x', sizeof(big) - 1);
    CHECK(!metrics_add(metrics, &gauge, &label, 1));
    check_text("");
}

static void test_series_over_the_limit_are_left_out(void **state)
{
    char number[16];
    const struct metric_label label = {"x", number};

    (void)state;
    for (int i = 0; i < METRICS_MAX_SERIES; i++) {
        snprintf(number, sizeof(number), "%d", i);
        CHECK(metrics_add(metrics, &gauge, &label, 1));
    }
    CHECK(!metrics_add(metrics, &gauge, &label, 1));
}

static void test_families_over_the_limit_are_left_out(void **state)
{
    static struct metric_family many[METRICS_MAX_FAMILIES + 1];

    (void)state;
    for (int i = 0; i < METRICS_MAX_FAMILIES; i++) {
        many[i] = gauge;
        CHECK(metrics_add(metrics, &many[i], NULL, 0));
    }
    many[METRICS_MAX_FAMILIES] = gauge;
    CHECK(!metrics_add(metrics, &many[METRICS_MAX_FAMILIES], NULL, 0));
}

static void test_nobody_counts_into_nothing(void **state)
{
    (void)state;
    metric_add(NULL, 1);
    metric_set(NULL, 1);
    metric_observe(NULL, 1);
    metrics_relabel(metrics, NULL, NULL, 0);
    CHECK(metric_value(NULL) == 0);
    metrics_close(NULL);
}

enum { THREADS = 4, TIMES = 20000 };

static void *count(void *context)
{
    for (int i = 0; i < TIMES; i++) {
        metric_observe(context, 0.5);
    }
    return NULL;
}

static void test_no_count_of_several_threads_is_lost(void **state)
{
    pthread_t threads[THREADS];

    (void)state;
    struct metric *h = metrics_add(metrics, &histogram, NULL, 0);
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, count, h) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(metric_value(h) == THREADS * TIMES * 0.5);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_one, close_one)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_registry_without_series_writes_nothing),
        TEST(test_series_of_a_family_stand_together_under_one_head),
        TEST(test_a_histogram_counts_each_value_in_all_buckets_above_it),
        TEST(test_a_gauge_without_a_value_is_not_written),
        TEST(test_label_values_cannot_break_out_of_their_quotes),
        TEST(test_labels_that_change_replace_the_old_ones),
        TEST(test_a_label_over_its_limit_makes_no_series),
        TEST(test_series_over_the_limit_are_left_out),
        TEST(test_families_over_the_limit_are_left_out),
        TEST(test_nobody_counts_into_nothing),
        TEST(test_no_count_of_several_threads_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
