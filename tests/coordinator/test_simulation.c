/* The scheduler with everything at once: simulated workers and clients, a virtual clock. */
#include "tests/check.h"
#include "tests/coordinator/helpers_simulation.h"

#include <stdlib.h>
#include <time.h>

static uint64_t first_seed(void)
{
    const char *text = getenv("WINNOW_TEST_SEED");

    return text ? strtoull(text, NULL, 10) : 1;
}

static struct simulation_outcome run(const struct simulation_config *config)
{
    struct simulation_outcome outcome;

    print_message("seed %llu (WINNOW_TEST_SEED): ", (unsigned long long)config->seed);
    outcome = simulate(config);
    print_message("%u completed, %u cancelled, %u late, %u lost (%u waiting, %u ran too often), %u "
                  "refused, %u run again; %llu plans\n",
                  outcome.completed, outcome.cancelled, outcome.late, outcome.lost,
                  outcome.lost_waiting, outcome.lost_often, outcome.refused, outcome.reruns,
                  (unsigned long long)outcome.plans);
    return outcome;
}

static void test_every_request_ends_exactly_once_under_deaths_and_cancels(void **state)
{
    uint32_t reruns = 0;
    uint32_t lost_waiting = 0;
    uint32_t lost_often = 0;

    (void)state;
    for (uint64_t seed = first_seed(); seed < first_seed() + 12; seed++) {
        struct simulation_config config = {
            .seed = seed,
            .groups = 1 + (uint32_t)(seed % 5),
            .requests = 1500,
            .pages = 900 + 400 * (uint32_t)(seed % 4),
            .max_sequences = seed % 3 ? 0 : 8,
            .look_ahead = 1 + (uint32_t)(seed % 3),
            .kind = {.max_prompt = 3000, .deadline_share = 0.2},
            .arrivals_per_ms = 0.02 * (double)(1 + seed % 5),
            .deaths_per_s = (double[]){0, 0.5, 0, 4}[seed % 4],
            .reform_ms = 600,
            .cancel_share = 0.2,
            .queue_requests = 200,
        };
        struct simulation_outcome outcome = run(&config);
        CHECK(outcome.completed > 100 && outcome.cancelled > 10 && outcome.late > 10);
        reruns += outcome.reruns;
        lost_waiting += outcome.lost_waiting;
        lost_often += outcome.lost_often;
        CHECK(outcome.refused + outcome.completed + outcome.cancelled + outcome.late +
                  outcome.lost ==
              config.requests);
    }
    CHECK(reruns > 0 && lost_waiting > 0 && lost_often > 0);
}

static void test_a_simulation_replays_from_its_seed(void **state)
{
    struct simulation_config config = {
        .seed = 99,
        .groups = 3,
        .requests = 500,
        .pages = 1000,
        .kind = {.max_prompt = 2000, .deadline_share = 0.1},
        .arrivals_per_ms = 0.1,
        .deaths_per_s = 0.2,
        .cancel_share = 0.1,
    };
    uint64_t history = run(&config).history;

    (void)state;
    CHECK(run(&config).history == history);
    config.seed++;
    CHECK(run(&config).history != history);
}

/* 100,000 requests with WINNOW_TEST_LONG, a tenth otherwise. */
static void test_a_thousand_groups_serve_real_lengths_in_seconds(void **state)
{
    struct simulation_config config = {
        .seed = first_seed(),
        .groups = 1000,
        .requests = getenv("WINNOW_TEST_LONG") ? 100000 : 10000,
        .pages = 60000,
        .max_sequences = 64,
        .kind = {.real = true, .max_context = 131072, .deadline_share = 0.05},
        .work_per_ms = 1e9,
        .arrivals_per_ms = 50,
        .deaths_per_s = 0.3,
        .cancel_share = 0.05,
        .queue_requests = 2000,
    };
    clock_t begin = clock();
    struct simulation_outcome outcome = run(&config);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;

    (void)state;
    print_message("%.2f s of CPU, %.2f us an event; at the head of the queue for %.0f ms at most; "
                  "%u passed\n",
                  seconds, 1e6 * seconds / (double)outcome.events, outcome.head_ms, outcome.passed);
    CHECK(outcome.completed > config.requests / 2 && outcome.lost > 0 && outcome.cancelled > 0);
}

/* Few groups for many requests: long prompts wait for memory, short ones pass them, all in turn. */
static void test_nobody_starves_where_requests_exceed_the_groups(void **state)
{
    uint32_t passed = 0;

    (void)state;
    for (uint64_t seed = first_seed(); seed < first_seed() + 4; seed++) {
        struct simulation_config config = {
            .seed = seed,
            .groups = 1 + (uint32_t)(seed % 3),
            .requests = 1500,
            .pages = 15000 + 45000 * (uint32_t)(seed % 2),
            .max_sequences = 64,
            .kind = {.real = true, .max_context = 32768, .deadline_share = 0.05},
            .work_per_ms = 1e9,
            .arrivals_per_ms = 0.3,
            .deaths_per_s = seed % 2 ? 0.02 : 0,
            .cancel_share = 0.05,
            .queue_requests = 500,
        };
        struct simulation_outcome outcome = run(&config);
        CHECK(outcome.completed > 100);
        passed += outcome.passed;
        print_message("at the head of the queue for %.0f ms at most; %u passed\n", outcome.head_ms,
                      outcome.passed);
    }
    CHECK(passed > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_request_ends_exactly_once_under_deaths_and_cancels),
        cmocka_unit_test(test_a_simulation_replays_from_its_seed),
        cmocka_unit_test(test_a_thousand_groups_serve_real_lengths_in_seconds),
        cmocka_unit_test(test_nobody_starves_where_requests_exceed_the_groups),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
