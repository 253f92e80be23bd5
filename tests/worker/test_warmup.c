/* The warm-up computes on every rank, and nothing of it is left. */
#include "tests/check.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_group.h"
#include "worker/warmup.h"

#include <stdlib.h>

#define GOLDENS WINNOW_SOURCE_DIR "/tests/goldens/data/"

enum { PROMPT = 40, STEPS = 4 };

struct run {
    struct bench_config config;
    bool warm;
    uint32_t tokens[STEPS + 1]; /* rank 0's */
};

static status generate(struct run *run, struct bench *bench, struct comm *comm)
{
    uint32_t prompt[PROMPT];
    struct outcome out = {0};
    uint64_t used = 0;
    struct plan_begin begin = {
        .n_prompt = PROMPT,
        .prompt = prompt,
        .sampling = {.top_p = 1, .repetition_penalty = 1},
        .max_rows = STEPS,
    };

    method_defaults(&begin.params, METHOD_FASTKV, &bench->model->config);
    for (uint32_t i = 0; i < PROMPT; i++) {
        prompt[i] = 3 + i * 7;
    }
    status st = bench_generate(bench, &begin, &out);
    if (!st) {
        st = bench_release(bench, 0, &used);
    }
    if (!st && used) {
        st = status_fail(STATUS_INTERNAL, "%llu bytes are left", (unsigned long long)used);
    }
    for (int i = 0; !st && comm_rank(comm) == 0 && i <= STEPS; i++) {
        run->tokens[i] = out.tokens[i];
    }
    outcome_free(&out);
    return st;
}

static status run_rank(struct comm *comm, void *context)
{
    struct run *run = context;
    struct bench bench;
    status st = bench_open(&bench, comm, &run->config);

    if (!st && run->warm) {
        st = warmup_run(bench.engine, bench.model, run->config.max_context, 1);
    }
    if (!st) {
        st = generate(run, &bench, comm);
    }
    bench_close(&bench);
    return st;
}

static void check_model(const char *model, enum dtype dtype, int ranks)
{
    struct run cold = {
        .config = {.model = model, .dtype = dtype, .max_context = 128, .kv_bytes = 16 << 20}};
    struct run warm = {
        .config = {.model = model, .dtype = dtype, .max_context = 128, .kv_bytes = 16 << 20},
        .warm = true};

    group_run(ranks, run_rank, &cold);
    group_run(ranks, run_rank, &warm);
    assert_memory_equal(cold.tokens, warm.tokens, sizeof(cold.tokens));
}

static void test_a_warm_engine_is_empty_and_answers_as_a_cold_one(void **state)
{
    (void)state;
    check_model(GOLDENS "llama-gqa/model", DTYPE_F32, 1);
    check_model(GOLDENS "llama-gqa/model", DTYPE_F32, 2);
    check_model(GOLDENS "llama-gqa-bf16/model", DTYPE_BF16, 2);
    check_model(GOLDENS "mistral-sw/model", DTYPE_F32, 1);
}

/* Where hardly anything fits, one token must do. */
static status warm_small(struct comm *comm, void *context)
{
    const struct bench_config *config = context;
    struct bench bench;
    status st = bench_open(&bench, comm, config);

    if (!st) {
        st = warmup_run(bench.engine, bench.model, config->max_context, 1);
    }
    bench_close(&bench);
    return st;
}

static void test_the_smallest_pool_and_context_are_warmed_up_too(void **state)
{
    const char *model = GOLDENS "llama-gqa/model";
    struct bench_config contexts[] = {
        {model, DTYPE_F32, 1, 16 << 20, false, false, false, false, 1},
        {model, DTYPE_F32, 2, 16 << 20, false, false, false, false, 1},
        {model, DTYPE_F32, 64, 16 << 20, false, false, false, false, 1},
        {model, DTYPE_F32, 65, 16 << 20, false, false, false, false, 1},
        {model, DTYPE_F32, 128, 1 << 18, false, false, false, false, 1},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(contexts) / sizeof(contexts[0]); i++) {
        group_run(1, warm_small, &contexts[i]);
    }
}

static status warm_without_room(struct comm *comm, void *context)
{
    struct bench bench;
    status st = bench_open(&bench, comm, context);

    if (!st) {
        st = warmup_run(bench.engine, bench.model, 128, 1);
        st = st == STATUS_OK ? status_fail(STATUS_INTERNAL, "it had room")
                             : STATUS_OK; /* the sentence is checked by the caller */
    }
    bench_close(&bench);
    return st;
}

static void test_a_pool_without_room_for_one_token_is_told(void **state)
{
    struct bench_config none = {
        GOLDENS "llama-gqa/model", DTYPE_F32, 128, 8 << 10, false, false, false, false, 1};

    (void)state;
    group_run(1, warm_without_room, &none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_warm_engine_is_empty_and_answers_as_a_cold_one),
        cmocka_unit_test(test_the_smallest_pool_and_context_are_warmed_up_too),
        cmocka_unit_test(test_a_pool_without_room_for_one_token_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
