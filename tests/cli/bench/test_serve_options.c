#include "cli/bench/serve_options.h"
#include "tests/check.h"

#include <math.h>

enum { MAX_WORDS = 64 };

static status parse(struct serve_options *out, const char *const *words)
{
    char *argv[MAX_WORDS] = {"serve"};
    enum options_outcome outcome;
    int n = 1;

    for (; words[n - 1]; n++) {
        argv[n] = (char *)words[n - 1];
    }
    return serve_options_parse(out, n, argv, &outcome);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void test_the_defaults_are_vllms(void **state)
{
    struct serve_options o;

    (void)state;
    CHECK_OK(parse(&o, WORDS("--quiet")));
    CHECK(o.dataset.kind == DATASET_RANDOM && o.dataset.n == 1000 && o.dataset.input_len == 1024);
    CHECK(o.dataset.output_len == 128 && !o.dataset.fixed_output && o.dataset.range_ratio == 0);
    CHECK(isinf(o.arrival.rate) && o.arrival.burstiness == 1 && !o.open_loop);
    CHECK(o.max_concurrency == 0 && o.n_warmups == 0 && !o.ignore_eos && isnan(o.temperature));
    CHECK(o.metrics.wanted[METRIC_TTFT] && o.metrics.wanted[METRIC_E2EL] && !o.metrics.goodput);
    CHECK(!o.result.save && !o.result.detailed);
}

static void test_every_option_arrives(void **state)
{
    struct serve_options o;

    (void)state;
    CHECK_OK(
        parse(&o, WORDS("--server", "h:1", "--num-prompts", "5", "--random-input-len", "10",
                        "--random-output-len", "20", "--random-range-ratio", "0.5", "--seed", "3",
                        "--request-rate", "2.5", "--burstiness", "0.5", "--max-concurrency", "4",
                        "--num-warmups", "2", "--connections", "3", "--deadline", "9",
                        "--ignore-eos", "--temperature", "0", "--percentile-metrics", "ttft",
                        "--metric-percentiles", "25,75", "--result-dir", "d", "--save-result",
                        "--label", "x", "--method", "SNAPKV", "--capacity", "64")));
    CHECK(strcmp(o.access.server, "h:1") == 0 && o.dataset.n == 5 && o.dataset.input_len == 10);
    CHECK(o.dataset.output_len == 20 && o.dataset.range_ratio == 0.5 && o.dataset.seed == 3);
    CHECK(o.arrival.rate == 2.5 && o.arrival.burstiness == 0.5 && o.arrival.seed == 3);
    CHECK(o.open_loop && o.max_concurrency == 4 && o.n_warmups == 2 && o.n_connections == 3);
    CHECK(o.deadline_s == 9 && o.ignore_eos && o.temperature == 0);
    CHECK(o.metrics.wanted[METRIC_TTFT] && !o.metrics.wanted[METRIC_TPOT]);
    CHECK(o.metrics.n_percentiles == 2 && o.metrics.percentiles[1] == 75);
    CHECK(o.result.save && strcmp(o.result.dir, "d") == 0 && strcmp(o.result.label, "x") == 0);
    CHECK(strcmp(o.compression.method, "SNAPKV") == 0 && o.compression.capacity == 64);
}

static void test_the_general_lengths_go_first(void **state)
{
    struct serve_options o;

    (void)state;
    CHECK_OK(
        parse(&o, WORDS("--random-input-len", "10", "--input-len", "30", "--output-len", "7")));
    CHECK(o.dataset.input_len == 30 && o.dataset.output_len == 7 && o.dataset.fixed_output);
}

static void test_pairs_may_follow_one_another(void **state)
{
    struct serve_options o;

    (void)state;
    CHECK_OK(parse(
        &o, WORDS("--goodput", "ttft:200", "tpot:50", "e2el:1000", "--metadata", "a=b", "c=d=e")));
    CHECK(o.metrics.goodput && o.metrics.limit_ms[METRIC_TTFT] == 200);
    CHECK(o.metrics.limit_ms[METRIC_TPOT] == 50 && o.metrics.limit_ms[METRIC_E2EL] == 1000);
    CHECK(o.result.n_metadata == 2 && strcmp(o.result.metadata[1], "c=d=e") == 0);
    CHECK_OK(parse(&o, WORDS("--goodput", "ttft:200,tpot:50")));
    CHECK(o.metrics.limit_ms[METRIC_TPOT] == 50);
}

static void test_a_file_name_means_that_a_file_is_written(void **state)
{
    struct serve_options o;

    (void)state;
    CHECK_OK(parse(&o, WORDS("--result-filename", "x.json")));
    CHECK(o.result.save && !o.result.detailed);
    CHECK_OK(parse(&o, WORDS("--save-detailed")));
    CHECK(o.result.save && o.result.detailed);
}

static void test_a_ramp_is_an_open_loop(void **state)
{
    struct serve_options o;

    (void)state;
    CHECK_OK(parse(&o, WORDS("--ramp-up-strategy", "exponential", "--ramp-up-start-rps", "1",
                             "--ramp-up-end-rps", "8")));
    CHECK(o.open_loop && o.arrival.ramp == ARRIVAL_EXPONENTIAL);
    CHECK(o.arrival.start_rate == 1 && o.arrival.end_rate == 8);
    CHECK_OK(parse(&o, WORDS("--dataset-name", "trace", "--dataset-path", "t.jsonl")));
    CHECK(o.open_loop && o.dataset.n == 0 && o.dataset.kind == DATASET_TRACE);
}

static void test_what_does_not_go_together_is_refused(void **state)
{
    static const struct {
        const char *words[6];
        const char *says;
    } wrong[] = {
        {{"--dataset-name", "sharegpt"}, "random, file or trace"},
        {{"--dataset-name", "file"}, "needs --dataset-path"},
        {{"--dataset-path", "x"}, "goes with file and trace"},
        {{"--prompt", "x"}, "goes with --dataset-name file"},
        {{"--request-rate", "0"}, "--request-rate: 0 is not within"},
        {{"--request-rate", "fast"}, "\"fast\" is not a number"},
        {{"--ramp-up-strategy", "steep", "--ramp-up-start-rps", "1"}, "linear or exponential"},
        {{"--ramp-up-strategy", "linear"}, "a ramp is"},
        {{"--ramp-up-start-rps", "1"}, "a ramp is"},
        {{"--dataset-name", "trace", "--dataset-path", "x", "--request-rate=1"}, "a trace says"},
        {{"--metadata", "x"}, "is not KEY=VALUE"},
        {{"--metadata", "=x"}, "is not KEY=VALUE"},
        {{"stray"}, "unexpected argument \"stray\""},
        {{"--goodput", "ttft"}, "metric:milliseconds"},
        {{"--method", "BEST"}, "there is no method \"BEST\""},
        {{"--percentile-metrics", "x"}, "is none of"},
        {{"--num-prompts", "0"}, "--num-prompts: 0 is not within"},
        {{"--no-such"}, "unknown option"},
    };
    struct serve_options o;

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        CHECK_FAILS(parse(&o, wrong[i].words), STATUS_INVALID, wrong[i].says);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_defaults_are_vllms),
        cmocka_unit_test(test_every_option_arrives),
        cmocka_unit_test(test_the_general_lengths_go_first),
        cmocka_unit_test(test_pairs_may_follow_one_another),
        cmocka_unit_test(test_a_file_name_means_that_a_file_is_written),
        cmocka_unit_test(test_a_ramp_is_an_open_loop),
        cmocka_unit_test(test_what_does_not_go_together_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
