/* What the coordinator tells of itself, in numbers. */
#include "coordinator/meters.h"
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>

enum { RANKS = 2 };

static struct meters *meters;

static int open_one(void **state)
{
    const struct meters_config config = {
        .model_name = "m", .ranks = RANKS, .dtype = DTYPE_BF16, .max_context = 1000};

    (void)state;
    CHECK_OK(meters_open(&meters, &config));
    return 0;
}

static int close_one(void **state)
{
    (void)state;
    meters_close(meters);
    return 0;
}

/* The value of a series, "name{labels}" as written; NULL: it is not there. */
static const char *find(const char *series)
{
    static char value[64];
    char *text = NULL;
    size_t bytes = 0;
    size_t n = strlen(series);
    const char *found = NULL;

    CHECK_OK(metrics_write(meters_metrics(meters), &text, &bytes));
    for (const char *at = text; at && *at; at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL) {
        if (strncmp(at, series, n) == 0 && at[n] == ' ') {
            size_t length = strcspn(at + n + 1, "\n");
            memcpy(value, at + n + 1, length);
            value[length] = '\0';
            found = value;
        }
    }
    free(text);
    return found;
}

static void check_is(const char *series, double wanted)
{
    const char *value = find(series);

    if (!value || strtod(value, NULL) - wanted > 1e-9 || wanted - strtod(value, NULL) > 1e-9) {
        fail_msg("%s is %s, not %g", series, value ? value : "missing", wanted);
    }
}

#define PLAIN "{model_name=\"m\"}"
#define RANK(r) "{model_name=\"m\",group=\"3\",rank=\"" r "\"}"

static void test_a_step_tells_collectives_scores_and_who_was_slow(void **state)
{
    const struct step_result ranks[RANKS] = {
        {.compute_ms = 100, .collective_ms = 20, .scoring_ms = 10, .n_tokens = 3},
        {.compute_ms = 100, .collective_ms = 50, .scoring_ms = 5},
    };

    (void)state;
    meters_step(meters, 3, ranks);
    meters_step(meters, 3, ranks);
    check_is("winnow:rank_step_seconds_total" RANK("0"), 0.2);
    check_is("winnow:rank_collective_seconds_total" RANK("1"), 0.1);
    check_is("winnow:rank_scoring_seconds_total" RANK("0"), 0.02);
    check_is("winnow:collective_time_share" RANK("0"), 0.2);
    check_is("winnow:collective_time_share" RANK("1"), 0.5);
    check_is("winnow:scoring_time_share" RANK("0"), 0.1);
    check_is("winnow:rank_step_skew_seconds" RANK("0"), 0.03);
    check_is("winnow:rank_step_skew_seconds" RANK("1"), 0);
    check_is("winnow:step_skew_seconds_sum" PLAIN, 0.06);
    check_is("winnow:iteration_tokens_total_sum" PLAIN, 6);
    check_is("winnow:iteration_tokens_total_count" PLAIN, 2);
}

static void test_shares_follow_the_last_steps(void **state)
{
    struct step_result ranks[RANKS] = {{.compute_ms = 10, .collective_ms = 10}, {.compute_ms = 10}};

    (void)state;
    for (int i = 0; i < 1000; i++) {
        meters_step(meters, 3, ranks);
    }
    ranks[0].collective_ms = 0;
    for (int i = 0; i < 1000; i++) {
        meters_step(meters, 3, ranks);
    }
    check_is("winnow:rank_collective_seconds_total" RANK("0"), 10);
    CHECK(strtod(find("winnow:collective_time_share" RANK("0")), NULL) < 0.001);
}

static void test_a_sample_tells_times_lengths_and_what_was_kept(void **state)
{
    const struct request request = {
        .params.method = METHOD_FASTKV, .sampling.max_tokens = 9, .n_samples = 2};
    const struct request_done done = {
        .reason = FINISH_LENGTH,
        .usage = {.prompt_tokens = 1000,
                  .completion_tokens = 9,
                  .propagated_tokens = 200,
                  .kv_bytes = 10,
                  .kv_bytes_full = 100},
        .timing = {.queue_ms = 1000, .prefill_ms = 2000, .decode_ms = 3000, .total_ms = 6500},
    };

    (void)state;
    meters_sample(meters, &request, &done);
    check_is("winnow:request_success_total{model_name=\"m\",finished_reason=\"length\"}", 1);
    check_is("winnow:request_success_total{model_name=\"m\",finished_reason=\"stop\"}", 0);
    check_is("winnow:request_queue_time_seconds_sum" PLAIN, 1);
    check_is("winnow:request_prefill_time_seconds_sum" PLAIN, 2);
    check_is("winnow:request_decode_time_seconds_sum" PLAIN, 3);
    check_is("winnow:request_inference_time_seconds_sum" PLAIN, 5);
    check_is("winnow:e2e_request_latency_seconds_sum" PLAIN, 6.5);
    check_is("winnow:request_prompt_tokens_sum" PLAIN, 1000);
    check_is("winnow:request_generation_tokens_sum" PLAIN, 9);
    check_is("winnow:request_params_max_tokens_sum" PLAIN, 9);
    check_is("winnow:request_params_n_sum" PLAIN, 2);
    check_is("winnow:propagated_token_ratio_sum{model_name=\"m\",method=\"FASTKV\"}", 0.2);
    check_is("winnow:kept_kv_ratio_sum{model_name=\"m\",method=\"FASTKV\"}", 0.1);
    check_is("winnow:kept_kv_ratio_count{model_name=\"m\",method=\"FULL\"}", 0);
}

static void test_both_kinds_of_stop_are_one_reason(void **state)
{
    const struct request request = {.params.method = METHOD_FULL, .n_samples = 1};
    struct request_done done = {.reason = FINISH_STOP_TOKEN, .usage.prompt_tokens = 1};

    (void)state;
    meters_sample(meters, &request, &done);
    done.reason = FINISH_STOP_STRING;
    meters_sample(meters, &request, &done);
    check_is("winnow:request_success_total{model_name=\"m\",finished_reason=\"stop\"}", 2);
}

static void test_an_abort_in_the_queue_has_no_times_of_phases(void **state)
{
    const struct request request = {.params.method = METHOD_FULL, .n_samples = 1};
    const struct request_done done = {.reason = FINISH_ABORTED, .usage.prompt_tokens = 7};

    (void)state;
    meters_sample(meters, &request, &done);
    check_is("winnow:request_success_total{model_name=\"m\",finished_reason=\"abort\"}", 1);
    check_is("winnow:e2e_request_latency_seconds_count" PLAIN, 1);
    check_is("winnow:request_prefill_time_seconds_count" PLAIN, 0);
    check_is("winnow:propagated_token_ratio_count{model_name=\"m\",method=\"FULL\"}", 0);
}

static void test_tokens_and_outcomes_are_counted(void **state)
{
    (void)state;
    meters_first_token(meters, 100, 500);
    meters_token(meters, -1);
    meters_token(meters, 20);
    meters_outcome(meters, STATUS_EXHAUSTED);
    meters_outcome(meters, (status)2); /* none that this server gives */
    check_is("winnow:prompt_tokens_total" PLAIN, 100);
    check_is("winnow:generation_tokens_total" PLAIN, 2);
    check_is("winnow:time_to_first_token_seconds_sum" PLAIN, 0.5);
    check_is("winnow:inter_token_latency_seconds_count" PLAIN, 1);
    check_is("winnow:inter_token_latency_seconds_sum" PLAIN, 0.02);
    check_is("winnow:request_outcomes_total{model_name=\"m\",code=\"RESOURCE_EXHAUSTED\"}", 1);
    CHECK(!find("winnow:request_outcomes_total{model_name=\"m\",code=\"UNKNOWN\"}"));
}

static void test_the_queue_and_the_ranks_are_told_as_they_are(void **state)
{
    const struct worker_status workers[RANKS] = {
        {.rank = 0,
         .state = WORKER_STATE_READY,
         .heartbeat_age_s = 0.25,
         .kv_bytes_used = 30,
         .kv_bytes_total = 100},
        {.rank = 1, .state = WORKER_STATE_LOST, .heartbeat_age_s = 0},
    };
    const struct group_status group = {.group = 3, .n_workers = RANKS, .workers = workers};
    const double promised = 0.75;

    (void)state;
    meters_queue(meters, &(struct meters_queue){4, 5, 1, 600, true});
    meters_rerun(meters);
    meters_groups(meters, &group, 1, &promised);
    check_is("winnow:num_requests_waiting" PLAIN, 4);
    check_is("winnow:num_requests_running" PLAIN, 5);
    check_is("winnow:num_prompt_tokens_waiting" PLAIN, 600);
    check_is("winnow:groups_ready" PLAIN, 1);
    check_is("winnow:draining" PLAIN, 1);
    check_is("winnow:request_reruns_total" PLAIN, 1);
    check_is("winnow:kv_cache_usage_perc" PLAIN, 0.3);
    check_is("winnow:kv_cache_promised_perc" PLAIN, 0.75);
    check_is("winnow:worker_heartbeat_age_seconds" RANK("0"), 0.25);
    CHECK(!find("winnow:worker_heartbeat_age_seconds" RANK("1")));
    check_is("winnow:worker_ready" RANK("0"), 1);
    check_is("winnow:worker_ready" RANK("1"), 0);
    check_is("winnow:worker_kv_total_bytes" RANK("0"), 100);
}

static void test_a_group_that_forms_again_says_its_new_capacity_only(void **state)
{
    const char series[] = "winnow:cache_config_info{model_name=\"m\",group=\"3\",block_size=\"32\","
                          "num_blocks=\"%s\",tensor_parallel_size=\"2\",max_model_len=\"1000\","
                          "cache_dtype=\"bfloat16\"}";
    char old[256];
    char fresh[256];

    (void)state;
    snprintf(old, sizeof(old), series, "10");
    snprintf(fresh, sizeof(fresh), series, "11");
    meters_capacity(meters, 3, 10, 32);
    check_is(old, 1);
    meters_capacity(meters, 3, 11, 32);
    check_is(fresh, 1);
    CHECK(!find(old));
}

static void test_without_meters_nothing_is_counted(void **state)
{
    const struct request request = {.params.method = METHOD_FULL};
    const struct request_done done = {.reason = FINISH_LENGTH};

    (void)state;
    meters_outcome(NULL, STATUS_OK);
    meters_first_token(NULL, 1, 1);
    meters_token(NULL, 1);
    meters_sample(NULL, &request, &done);
    meters_rerun(NULL);
    meters_queue(NULL, &(struct meters_queue){0});
    meters_step(NULL, 0, &(struct step_result){0});
    meters_capacity(NULL, 0, 1, 1);
    meters_groups(NULL, NULL, 1, NULL);
    meters_close(NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_one, close_one)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_step_tells_collectives_scores_and_who_was_slow),
        TEST(test_shares_follow_the_last_steps),
        TEST(test_a_sample_tells_times_lengths_and_what_was_kept),
        TEST(test_both_kinds_of_stop_are_one_reason),
        TEST(test_an_abort_in_the_queue_has_no_times_of_phases),
        TEST(test_tokens_and_outcomes_are_counted),
        TEST(test_the_queue_and_the_ranks_are_told_as_they_are),
        TEST(test_a_group_that_forms_again_says_its_new_capacity_only),
        TEST(test_without_meters_nothing_is_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
