#include "cli/bench/metrics.h"
#include "tests/check.h"
#include "winnow/v1/inference.pb-c.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK_NEAR(a, b) CHECK(fabs((a) - (b)) < 1e-4)

static void send_tokens(struct record *record, size_t n, double now_ms)
{
    uint32_t ids[8] = {0};
    uint8_t data[256];
    Winnow__V1__GenerateResponse response;
    Winnow__V1__Tokens tokens;

    winnow__v1__generate_response__init(&response);
    winnow__v1__tokens__init(&tokens);
    response.event_case = WINNOW__V1__GENERATE_RESPONSE__EVENT_TOKENS;
    response.tokens = &tokens;
    tokens.n_ids = n;
    tokens.ids = ids;
    size_t bytes = winnow__v1__generate_response__pack(&response, data);
    CHECK_OK(record_message(record, data, bytes, now_ms));
}

static void send_done(struct record *record, double now_ms)
{
    uint8_t data[512];
    Winnow__V1__GenerateResponse response;
    Winnow__V1__Done done;
    Winnow__V1__Usage usage;
    Winnow__V1__Timing timing;

    winnow__v1__generate_response__init(&response);
    winnow__v1__done__init(&done);
    winnow__v1__usage__init(&usage);
    winnow__v1__timing__init(&timing);
    response.event_case = WINNOW__V1__GENERATE_RESPONSE__EVENT_DONE;
    response.done = &done;
    done.usage = &usage;
    done.timing = &timing;
    usage.prompt_tokens = 100;
    usage.propagated_tokens = 20;
    usage.kv_bytes = 10;
    usage.kv_bytes_full = 100;
    timing.queue_ms = 1;
    timing.prefill_ms = 2;
    timing.collective_ms = 3;
    size_t bytes = winnow__v1__generate_response__pack(&response, data);
    CHECK_OK(record_message(record, data, bytes, now_ms));
}

/* Sent at 10 ms, tokens at 30, 40 and 60, over at 61. */
static void play(struct record *record)
{
    const struct failure fine = {.code = STATUS_OK};

    record->sent = true;
    record->due_ms = 5;
    record->sent_ms = 10;
    send_tokens(record, 1, 30);
    send_tokens(record, 0, 35); /* text only */
    send_tokens(record, 1, 40);
    send_tokens(record, 1, 60);
    send_done(record, 60);
    record_end(record, &fine, 61);
}

static void test_a_record_holds_what_came_and_when(void **state)
{
    struct record r = {0};

    (void)state;
    play(&r);
    CHECK(record_ok(&r) && r.n_tokens == 3 && r.n_gaps == 2);
    CHECK(r.gaps[0] == 10 && r.gaps[1] == 20);
    CHECK(record_ttft_ms(&r) == 20 && record_e2el_ms(&r) == 51);
    CHECK(record_tpot_ms(&r) == 15.5); /* (61 - 30) / 2 */
    CHECK(r.prompt_tokens == 100 && r.collective_ms == 3);
    record_free(&r);
}

static void test_an_answer_without_its_end_is_no_success(void **state)
{
    const struct failure fine = {.code = STATUS_OK};
    const struct failure bad = {.code = STATUS_UNAVAILABLE, .text = "gone"};
    struct record r = {0};

    (void)state;
    send_tokens(&r, 1, 1);
    record_end(&r, &fine, 2);
    CHECK(!record_ok(&r) && r.code == STATUS_INTERNAL && strstr(r.error, "whole answer"));
    record_free(&r);
    record_end(&r, &bad, 2);
    CHECK(!record_ok(&r) && r.code == STATUS_UNAVAILABLE && strcmp(r.error, "gone") == 0);
    record_free(&r);
    send_tokens(&r, 1, 1); /* our own failure goes before the cancellation that follows it */
    r.code = STATUS_EXHAUSTED;
    record_end(&r, &bad, 2);
    CHECK(r.code == STATUS_EXHAUSTED);
    record_free(&r);
    CHECK_FAILS(record_message(&r, (const uint8_t *)"\xff", 1, 0), STATUS_INTERNAL, "no response");
}

static struct metrics_options all(void)
{
    struct metrics_options options = {0};

    CHECK_OK(metrics_parse_names(&options, "ttft,tpot,itl,e2el"));
    CHECK_OK(metrics_parse_percentiles(&options, "50,99.9"));
    return options;
}

/* As a reader of the file sees it.  Consumes. */
static cJSON *reread(cJSON *object)
{
    char *text = cJSON_Print(object);
    cJSON *again = cJSON_Parse(text);

    free(text);
    cJSON_Delete(object);
    CHECK(again != NULL);
    return again;
}

static double number(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);

    if (!cJSON_IsNumber(item)) {
        fail_msg("%s is missing", key);
    }
    return item->valuedouble;
}

static void test_the_figures_are_under_the_usual_names(void **state)
{
    struct record records[3] = {0};
    struct load_outcome outcome = {.records = records, .n = 3, .duration_s = 2, .cpu_s = 0.5};
    struct metrics_options options = all();
    const struct failure bad = {.code = STATUS_EXHAUSTED, .text = "full"};
    struct metrics m;

    (void)state;
    play(&records[0]);
    play(&records[1]);
    records[2].sent = true;
    record_end(&records[2], &bad, 5);
    CHECK_OK(metrics_parse_goodput(&options, "ttft:20,e2el:51"));
    CHECK_OK(metrics_compute(&m, &outcome, &options));
    cJSON *o = cJSON_CreateObject();
    CHECK(metrics_add_json(o, &m, &options) && metrics_add_details(o, &outcome));
    o = reread(o);
    CHECK(number(o, "completed") == 2 && number(o, "failed") == 1);
    CHECK(number(o, "duration") == 2 && number(o, "request_throughput") == 1);
    CHECK(number(o, "total_input_tokens") == 200 && number(o, "total_output_tokens") == 6);
    CHECK(number(o, "output_throughput") == 3 && number(o, "total_token_throughput") == 103);
    CHECK(number(o, "request_goodput") == 1);
    CHECK(number(o, "max_output_tokens_per_s") == 6);
    CHECK_NEAR(number(o, "mean_ttft_ms"), 20);
    CHECK_NEAR(number(o, "median_tpot_ms"), 15.5);
    CHECK_NEAR(number(o, "mean_itl_ms"), 15);
    CHECK_NEAR(number(o, "p50_itl_ms"), 15);
    CHECK_NEAR(number(o, "p99.9_e2el_ms"), 51);
    CHECK_NEAR(number(o, "std_itl_ms"), 5);
    CHECK_NEAR(number(o, "mean_queue_ms"), 1);
    CHECK_NEAR(number(o, "mean_collective_ms"), 3);
    CHECK_NEAR(number(o, "mean_client_queue_ms"), 5);
    CHECK_NEAR(number(o, "propagated_ratio"), 0.2);
    CHECK_NEAR(number(o, "kept_ratio"), 0.1);
    CHECK_NEAR(number(o, "client_cpu_us_per_request"), 250000);
    CHECK(cJSON_GetArraySize(cJSON_GetObjectItem(o, "ttfts")) == 3);
    const cJSON *errors = cJSON_GetObjectItem(o, "errors");
    CHECK(strcmp(cJSON_GetArrayItem(errors, 2)->valuestring, "full") == 0);
    cJSON_Delete(o);
    metrics_free(&m);
    for (int i = 0; i < 3; i++) {
        record_free(&records[i]);
    }
}

static void test_limits_that_are_not_kept_make_no_good_request(void **state)
{
    struct record record = {0};
    struct load_outcome outcome = {.records = &record, .n = 1, .duration_s = 1};
    static const char *const tight[] = {"ttft:19", "tpot:15", "e2el:50", "ttft:20 tpot:16 e2el:50"};

    (void)state;
    play(&record);
    for (size_t i = 0; i < sizeof(tight) / sizeof(tight[0]); i++) {
        struct metrics_options options = all();
        struct metrics m;
        CHECK_OK(metrics_parse_goodput(&options, tight[i]));
        CHECK_OK(metrics_compute(&m, &outcome, &options));
        CHECK(m.completed == 1 && m.good == 0);
        metrics_free(&m);
    }
    record_free(&record);
}

static void test_what_an_interrupt_cut_off_is_no_failure(void **state)
{
    struct record records[3] = {0};
    struct load_outcome outcome = {
        .records = records, .n = 3, .duration_s = 1, .interrupted = true};
    const struct failure cancelled = {.code = STATUS_CANCELLED, .text = "cancelled"};
    struct metrics_options options = all();
    struct metrics m;

    (void)state;
    play(&records[0]);
    records[1].sent = true;
    record_end(&records[1], &cancelled, 9);
    CHECK_OK(metrics_compute(&m, &outcome, &options));
    CHECK(m.completed == 1 && m.failed == 0 && m.interrupted == 1); /* the third was never sent */
    metrics_free(&m);
    record_free(&records[0]);
    record_free(&records[1]);
}

static void test_a_run_without_an_answer_has_figures_too(void **state)
{
    struct load_outcome outcome = {.duration_s = 0};
    struct metrics_options options = all();
    struct metrics m;

    (void)state;
    CHECK_OK(metrics_compute(&m, &outcome, &options));
    cJSON *o = cJSON_CreateObject();
    CHECK(metrics_add_json(o, &m, &options));
    CHECK(number(o, "request_throughput") == 0 && number(o, "mean_ttft_ms") == 0);
    CHECK(cJSON_IsNull(cJSON_GetObjectItem(o, "request_goodput")));
    cJSON_Delete(o);
    metrics_free(&m);
}

static void test_only_the_metrics_that_were_asked_for(void **state)
{
    struct load_outcome outcome = {.duration_s = 1};
    struct metrics_options options = {0};
    struct metrics m;

    (void)state;
    CHECK_OK(metrics_parse_names(&options, "tpot"));
    CHECK_OK(metrics_compute(&m, &outcome, &options));
    cJSON *o = cJSON_CreateObject();
    CHECK(metrics_add_json(o, &m, &options));
    CHECK(cJSON_HasObjectItem(o, "mean_tpot_ms") && !cJSON_HasObjectItem(o, "mean_ttft_ms"));
    CHECK(cJSON_HasObjectItem(o, "mean_prefill_ms"));
    cJSON_Delete(o);
    metrics_free(&m);
}

static void test_wrong_words_are_refused(void **state)
{
    struct metrics_options o = {0};

    (void)state;
    CHECK_FAILS(metrics_parse_names(&o, "ttft,latency"), STATUS_INVALID, "\"latency\" is none of");
    CHECK_FAILS(metrics_parse_percentiles(&o, "50,x"), STATUS_INVALID, "\"x\" is not a number");
    CHECK_FAILS(metrics_parse_percentiles(&o, "101"), STATUS_INVALID, "101 is not within 0..100");
    CHECK_FAILS(metrics_parse_percentiles(&o, "nan"), STATUS_INVALID, "not a number");
    CHECK_FAILS(metrics_parse_percentiles(&o, "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17"),
                STATUS_INVALID, "more than 16");
    CHECK_FAILS(metrics_parse_goodput(&o, "ttft"), STATUS_INVALID, "metric:milliseconds");
    CHECK_FAILS(metrics_parse_goodput(&o, "itl:5"), STATUS_INVALID, "ttft, tpot and e2el");
    CHECK_FAILS(metrics_parse_goodput(&o, "ttft:"), STATUS_INVALID, "not a number");
    CHECK_FAILS(metrics_parse_goodput(&o, "x:1"), STATUS_INVALID, "\"x\" is none of");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_record_holds_what_came_and_when),
        cmocka_unit_test(test_an_answer_without_its_end_is_no_success),
        cmocka_unit_test(test_the_figures_are_under_the_usual_names),
        cmocka_unit_test(test_limits_that_are_not_kept_make_no_good_request),
        cmocka_unit_test(test_what_an_interrupt_cut_off_is_no_failure),
        cmocka_unit_test(test_a_run_without_an_answer_has_figures_too),
        cmocka_unit_test(test_only_the_metrics_that_were_asked_for),
        cmocka_unit_test(test_wrong_words_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
