#include "cli/bench/sweep.h"
#include "tests/check.h"

#include <stdlib.h>

enum { MAX_WORDS = 64 };

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static status parse(struct sweep_options *out, enum sweep_kind kind, const char *const *words)
{
    char *argv[MAX_WORDS] = {"sweep"};
    enum options_outcome outcome;
    int n = 1;

    for (; words[n - 1]; n++) {
        argv[n] = (char *)words[n - 1];
    }
    *out = (struct sweep_options){.kind = kind};
    return sweep_options_parse(out, n, argv, &outcome);
}

static void test_the_defaults_are_the_published_protocols(void **state)
{
    struct sweep_options o;

    (void)state;
    CHECK_OK(parse(&o, SWEEP_PREFILL, WORDS("--quiet")));
    CHECK(o.n_methods == 2 && o.methods[0] == METHOD_FULL && o.methods[1] == METHOD_FASTKV);
    CHECK(o.n_lengths == 3 && o.lengths[0] == 8192 && o.lengths[2] == 131072);
    CHECK(o.n_warmups == 1 && o.n_runs == 5 && !o.drop_extremes && o.output_len == 1);
    CHECK(o.token_id == 1 && !o.result.save);
    CHECK_OK(parse(&o, SWEEP_E2E, WORDS("--quiet")));
    CHECK(o.output_len == 256 && o.n_warmups == 1 && o.n_runs == 5 && !o.drop_extremes);
    CHECK_OK(parse(&o, SWEEP_THROUGHPUT, WORDS("--quiet")));
    CHECK(o.output_len == 128 && o.n_warmups == 2 && o.n_runs == 10 && o.drop_extremes);
}

static void test_methods_and_lengths_are_lists(void **state)
{
    struct sweep_options o;

    (void)state;
    CHECK_OK(parse(&o, SWEEP_E2E,
                   WORDS("--methods", "full, SnapKV,H2O", "--lengths", "100 8k,1K", "--num-runs",
                         "7", "--drop-extremes=false", "--metadata", "a=b", "--capacity", "64")));
    CHECK(o.n_methods == 3 && o.methods[1] == METHOD_SNAPKV && o.methods[2] == METHOD_H2O);
    CHECK(o.n_lengths == 3 && o.lengths[0] == 100 && o.lengths[1] == 8192 && o.lengths[2] == 1024);
    CHECK(o.n_runs == 7 && o.result.n_metadata == 1 && o.compression.capacity == 64);
}

static void test_wrong_usage_is_refused(void **state)
{
    static const struct {
        const char *words[3];
        const char *says;
    } wrong[] = {
        {{"--methods", "FULL,BEST"}, "there is no method \"BEST\""},
        {{"--methods", ","}, "give methods and lengths"},
        {{"--methods", "FULL FULL FULL FULL FULL FULL FULL FULL FULL FULL FULL FULL FULL"},
         "more than there are"},
        {{"--lengths", "0"}, "--lengths: 0 is not within"},
        {{"--lengths", "99999k"}, "--lengths: 99999 is not within"},
        {{"--lengths", "k"}, "--lengths: \"k\" is not a number"},
        {{"--output-len", "1"}, "one token is no decoding"},
        {{"--method", "FULL"}, "unknown option --method"},
        {{"--metadata", "a"}, "is not KEY=VALUE"},
        {{"stray"}, "unexpected argument"},
    };
    struct sweep_options o;

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        CHECK_FAILS(parse(&o, SWEEP_E2E, wrong[i].words), STATUS_INVALID, wrong[i].says);
    }
}

static cJSON *only_case(const struct sweep_case *one, const struct sweep_options *options)
{
    cJSON *list = cJSON_CreateArray();

    CHECK(sweep_case_add_json(list, one, options));
    cJSON *item = cJSON_DetachItemFromArray(list, 0);
    cJSON_Delete(list);
    return item;
}

static double number(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);

    if (!cJSON_IsNumber(item)) {
        fail_msg("%s is missing", key);
    }
    return item->valuedouble;
}

static void test_a_case_has_mean_deviation_interval_and_runs(void **state)
{
    struct sweep_options options = {.kind = SWEEP_PREFILL, .output_len = 1};
    struct sweep_case one = {.method = METHOD_SNAPKV, .input_len = 100, .kept_ratio = 0.5};

    (void)state;
    for (int m = 0; m < SWEEP_MEASURES; m++) {
        for (int i = 1; i <= 3; i++) {
            CHECK_OK(series_add(&one.measures[m], i * 10));
        }
    }
    cJSON *o = only_case(&one, &options);
    CHECK(strcmp(cJSON_GetObjectItem(o, "method")->valuestring, "SNAPKV") == 0);
    CHECK(number(o, "num_runs") == 3 && number(o, "mean_ttft_ms") == 20);
    CHECK(number(o, "ci95_ttft_ms") > 24 && number(o, "ci95_ttft_ms") < 25);
    CHECK(cJSON_GetArraySize(cJSON_GetObjectItem(o, "ttft_ms")) == 3);
    CHECK(!cJSON_HasObjectItem(o, "mean_tokens_per_s") && number(o, "kept_ratio") == 0.5);
    cJSON_Delete(o);
    options.kind = SWEEP_THROUGHPUT;
    o = only_case(&one, &options);
    CHECK(number(o, "mean_tokens_per_s") == 20 && number(o, "mean_decode_ms") == 20);
    cJSON_Delete(o);
    for (int m = 0; m < SWEEP_MEASURES; m++) {
        series_free(&one.measures[m]);
    }
}

static void test_a_case_that_failed_says_why(void **state)
{
    struct sweep_options options = {.kind = SWEEP_E2E, .output_len = 2};
    struct sweep_case one = {.method = METHOD_FULL,
                             .input_len = 100,
                             .failure = {.code = STATUS_OUT_OF_RANGE, .text = "too long"}};

    (void)state;
    cJSON *o = only_case(&one, &options);
    CHECK(cJSON_HasObjectItem(o, "error") && !cJSON_HasObjectItem(o, "mean_e2el_ms"));
    CHECK(number(o, "num_runs") == 0);
    cJSON_Delete(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_defaults_are_the_published_protocols),
        cmocka_unit_test(test_methods_and_lengths_are_lists),
        cmocka_unit_test(test_wrong_usage_is_refused),
        cmocka_unit_test(test_a_case_has_mean_deviation_interval_and_runs),
        cmocka_unit_test(test_a_case_that_failed_says_why),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
