/* The engine with int8 weights and int8 keys and values against the golden cases. */
#include "tests/check.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_golden.h"
#include "tests/worker/helpers_group.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { KV_BYTES = 64 << 20 };

/* A weight is off by up to half a step of its row, a 254th of the largest: for normal weights 0.7 %
 * of their size in the mean square, six times what bf16 rounds away, but seven matrices a layer and
 * nothing else: sqrt(7 * 8 layers) of them make 5 %.  The softmax of these random models multiplies
 * that as it does in bf16 (test_engine_goldens.c).  Measured are
 * 2.1 % to 7.6 %; twice the largest leaves room for other models. */
#define INT8_TOLERANCE 0.15

/* A key or value is off by up to half a step of its row, 0.5 % of its size in the mean square, and
 * the softmax makes more of it.  Measured are 0.6 % to 1.8 % in float32 and, with what bf16 rounds
 * away, 1.2 % to 4.2 %: twice the largest, which is bf16's own tolerance. */
#define INT8_KV_TOLERANCE 0.08

struct run {
    const struct golden *golden;
    enum dtype dtype;
    bool weights, kv;
    struct outcome outcome;
};

static status run_rank(struct comm *comm, void *context)
{
    struct run *run = context;
    const struct golden *golden = run->golden;
    const struct bench_config config = {
        .model = golden->model,
        .dtype = run->dtype,
        .max_context = golden->n_prompt + golden->n_generated + 1,
        .kv_bytes = KV_BYTES,
        .int8_weights = run->weights,
        .int8_kv = run->kv,
    };
    const struct plan_begin begin = {
        .n_prompt = (uint32_t)golden->n_prompt,
        .prompt = golden->prompt,
        .params = golden->params,
        .sampling = {.top_p = 1.0F, .repetition_penalty = 1.0F},
        .trace = TRACE_SELECTED | TRACE_PROMPT_LOGITS | TRACE_STEP_LOGITS,
        .max_rows = (uint32_t)golden->n_generated,
    };
    struct bench bench;
    status st = bench_open(&bench, comm, &config);

    if (!st) {
        st = bench_generate(&bench, &begin, &run->outcome);
    }
    bench_close(&bench);
    return st;
}

/* How many tokens from the first are the golden's. */
static int tokens_alike(const struct run *run)
{
    int n = 0;

    while (n < run->golden->n_generated && run->outcome.tokens[n] == run->golden->generated[n]) {
        n++;
    }
    return n;
}

/* The error of the logits for as long as the tokens are the golden's, relative to their size. */
static double relative_error(const struct run *run, int n_alike)
{
    size_t n = (size_t)(n_alike + 1) * (size_t)run->golden->vocab;
    double square = 0, off = 0;

    for (size_t i = 0; i < n; i++) {
        double expected = run->golden->logits[i];
        double difference = (double)run->outcome.logits[i] - expected;

        square += expected * expected;
        off += difference * difference;
    }
    return sqrt(off / square);
}

static void check_logits(const struct run *run, double tolerance)
{
    int alike = tokens_alike(run);
    double error = relative_error(run, alike);

    print_message("  %s %s%s%s: logits differ by %.2f%%, %d of %d tokens are the same\n",
                  run->golden->name, dtype_name(run->dtype), run->weights ? " weights" : "",
                  run->kv ? " kv" : "", 100 * error, alike, run->golden->n_generated);
    if (!(error < tolerance)) {
        fail_msg("%s: logits differ by %.2f%%", run->golden->name, 100 * error);
    }
}

/* In both dtypes. */
static void check_case(const struct golden *golden, bool weights, bool kv, double tolerance)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};

    for (int i = 0; i < 2; i++) {
        struct run run = {.golden = golden, .dtype = dtypes[i], .weights = weights, .kv = kv};

        group_run(1, run_rank, &run);
        check_logits(&run, tolerance);
        outcome_free(&run.outcome);
    }
}

static void with_weights(const struct golden *golden)
{
    check_case(golden, true, false, INT8_TOLERANCE);
}

static void with_kv(const struct golden *golden)
{
    check_case(golden, false, true, INT8_KV_TOLERANCE);
}

static void with_both(const struct golden *golden)
{
    check_case(golden, true, true, INT8_TOLERANCE);
}

static void test_logits_with_int8_weights_are_near_the_goldens(void **state)
{
    (void)state;
    golden_each("full_", with_weights);
}

static void test_logits_with_int8_keys_and_values_are_near_the_goldens(void **state)
{
    (void)state;
    golden_each("full_", with_kv);
}

static void test_logits_with_both_are_near_the_goldens(void **state)
{
    (void)state;
    golden_each("full_", with_both);
}

/* Rows are chosen and the prompt's last row computed before anything is rounded; what is kept takes
 * a byte a number, and a float32 for the keys and for the values of a row. */
static void check_choice(const struct golden *golden)
{
    const cJSON *layers = cJSON_GetObjectItemCaseSensitive(golden->json, "layers");
    struct run run = {.golden = golden, .dtype = DTYPE_F32, .kv = true};
    const struct outcome *outcome = &run.outcome;

    if (method_check_supported(&golden->params)) {
        return;
    }
    group_run(1, run_rank, &run);
    for (int i = 0; i < outcome->n_heads; i++) {
        const struct outcome_head *head = &outcome->heads[i];
        const cJSON *kept =
            cJSON_GetObjectItemCaseSensitive(cJSON_GetArrayItem(layers, (int)head->layer), "kept");
        int n;
        uint32_t *list = golden_list(cJSON_GetArrayItem(kept, (int)head->head), &n);

        assert_int_equal(head->n, n);
        CHECK(memcmp(head->kept, list, (size_t)n * sizeof(*list)) == 0);
        free(list);
    }
    CHECK(outcome->n_heads > 0 && outcome->tokens[0] == golden->generated[0]);
    assert_int_equal(outcome->kv_bytes,
                     outcome->kv_rows * (2 * (uint64_t)golden->config.head_dim + 8));
    outcome_free(&run.outcome);
}

static void test_int8_keys_and_values_change_no_choice(void **state)
{
    static const char *const methods[] = {"fastkv_", "snapkv_",    "adakv_",
                                          "h2o_",    "gemfilter_", "streamingllm_"};

    (void)state;
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        golden_each(methods[i], check_choice);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_with_int8_weights_are_near_the_goldens),
        cmocka_unit_test(test_logits_with_int8_keys_and_values_are_near_the_goldens),
        cmocka_unit_test(test_logits_with_both_are_near_the_goldens),
        cmocka_unit_test(test_int8_keys_and_values_change_no_choice),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
