/* Prompts of several chunks on ranks that compute while their sums are on the way: the results of
 * one rank, and the bits of a prompt that is alone. */
#include "tests/check.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_group.h"

#include <math.h>
#include <signal.h>
#include <string.h>

enum { PROMPTS = 3, STEPS = 4, VOCAB_MOST = 4096 };

/* Of four chunks, of two, and of one. */
static const uint32_t lengths[PROMPTS] = {1900, 700, 90};
static uint32_t tokens[1900];

static const struct bench_config config = {.model = WINNOW_SOURCE_DIR "/tests/models/needle-tiny",
                                           .dtype = DTYPE_F32,
                                           .max_context = 3072,
                                           .kv_bytes = 64 << 20};

struct flight_run {
    enum method method;
    struct outcome alone[2][PROMPTS]; /* by rank */
    struct outcome together[2][PROMPTS];
};

static void make_begin(struct plan_begin *begin, const struct model *model, enum method method,
                       int i)
{
    *begin = (struct plan_begin){
        .slot = (uint32_t)i,
        .n_prompt = lengths[i],
        .prompt = tokens,
        .sampling = {.top_p = 1.0F, .repetition_penalty = 1.0F},
        .trace = TRACE_PROMPT_LOGITS | TRACE_STEP_LOGITS,
        .max_rows = STEPS,
    };
    for (int before = 0; before < i; before++) {
        begin->first_row += (lengths[before] + PLAN_ROW_STEP - 1) / PLAN_ROW_STEP * PLAN_ROW_STEP;
    }
    method_defaults(&begin->params, method, &model->config);
    begin->params.h2o_causal = false; /* as published: the scores have slices of their own */
}

/* A prompt is released while its sums are on the way, and comes again later. */
static status leave_early(struct bench *bench, const struct plan_begin *begin)
{
    const struct plan_advance advance = {.slot = begin->slot, .slices = 3};
    const struct plan plan = {.n_begin = 1, .begin = begin, .n_advance = 1, .advance = &advance};
    struct step_result result;
    uint64_t used;
    status st = engine_step(bench->engine, &plan, &result);

    return st ? st : bench_release(bench, begin->slot, &used);
}

/* Three slices of each in turn, while the last one decodes. */
static status in_turn(struct bench *bench, const struct plan_begin *begin, struct outcome *out)
{
    const uint32_t decodes = begin[PROMPTS - 1].slot;
    struct step_result result;
    status st = bench_prompt(bench, &begin[PROMPTS - 1], &out[PROMPTS - 1]);

    for (int step = 0; !st && !(out[0].prompt_done && out[1].prompt_done); step++) {
        int i = out[0].prompt_done || (!out[1].prompt_done && step / 3 % 2) ? 1 : 0;
        const struct plan_advance advance = {.slot = begin[i].slot, .slices = 1};
        const struct plan plan = {.n_begin = step == 0 || step == 3,
                                  .begin = &begin[i],
                                  .n_advance = 1,
                                  .advance = &advance,
                                  .n_decode = step % 3 == 2 && step / 3 < STEPS,
                                  .decode = &decodes};
        st = engine_step(bench->engine, &plan, &result);
        for (int j = 0; !st && j < PROMPTS; j++) {
            outcome_take(&out[j], &result, begin[j].slot);
        }
    }
    return st;
}

static status run_prompts(struct comm *comm, void *context)
{
    struct flight_run *run = context;
    int rank = comm_rank(comm);
    struct plan_begin begin[PROMPTS];
    struct bench bench;
    uint64_t used;
    status st = bench_open(&bench, comm, &config);

    for (int i = 0; !st && i < PROMPTS; i++) {
        make_begin(&begin[i], bench.model, run->method, i);
        st = bench_generate(&bench, &begin[i], &run->alone[rank][i]);
        st = st ? st : bench_release(&bench, begin[i].slot, &used);
    }
    if (!st) {
        st = leave_early(&bench, &begin[0]);
    }
    if (!st) {
        st = in_turn(&bench, begin, run->together[rank]);
    }
    bench_close(&bench);
    return st;
}

static void check_same_bits(const struct outcome *got, const struct outcome *expected)
{
    size_t row = (size_t)expected->vocab_rows * sizeof(float);

    CHECK(got->n_tokens > 0 && got->n_tokens <= expected->n_tokens);
    CHECK(got->n_logits > 0 && got->n_logits <= expected->n_logits);
    assert_memory_equal(got->tokens, expected->tokens, (size_t)got->n_tokens * sizeof(uint32_t));
    assert_memory_equal(got->logits, expected->logits, (size_t)got->n_logits * row);
}

static void check_near(const struct outcome *got, const struct outcome *expected)
{
    for (int i = 0; i < got->n_logits; i++) {
        for (int v = 0; v < got->vocab_rows; v++) {
            double a = got->logits[i * got->vocab_rows + v];
            double b = expected->logits[i * expected->vocab_rows + got->vocab_first + v];
            CHECK(fabs(a - b) < 2e-3);
        }
    }
}

static void free_run(struct flight_run *run)
{
    for (int r = 0; r < 2; r++) {
        for (int i = 0; i < PROMPTS; i++) {
            outcome_free(&run->alone[r][i]);
            outcome_free(&run->together[r][i]);
        }
    }
}

static void check_method(enum method method)
{
    static struct flight_run one, shm, tcp;

    one = shm = tcp = (struct flight_run){.method = method};
    group_run(1, run_prompts, &one);
    group_tcp_ranks = 0;
    group_run(2, run_prompts, &shm);
    group_tcp_ranks = ~0U;
    group_run(2, run_prompts, &tcp);
    for (int i = 0; i < PROMPTS; i++) {
        check_same_bits(&one.together[0][i], &one.alone[0][i]);
        check_same_bits(&shm.together[0][i], &shm.alone[0][i]);
        check_same_bits(&tcp.together[0][i], &tcp.alone[0][i]);
        check_same_bits(&tcp.alone[0][i], &shm.alone[0][i]);
        check_near(&tcp.alone[0][i], &one.alone[0][i]);
        check_near(&tcp.alone[1][i], &one.alone[0][i]);
        assert_memory_equal(tcp.alone[0][i].tokens, one.alone[0][i].tokens,
                            (size_t)one.alone[0][i].n_tokens * sizeof(uint32_t));
    }
    free_run(&one);
    free_run(&shm);
    free_run(&tcp);
}

static void test_full(void **state)
{
    (void)state;
    check_method(METHOD_FULL);
}

static void test_a_method_that_drops_rows(void **state)
{
    (void)state;
    check_method(METHOD_FASTKV);
}

static void test_a_method_of_two_passes(void **state)
{
    (void)state;
    check_method(METHOD_GEMFILTER);
}

static void test_a_method_with_collectives_at_each_layer(void **state)
{
    (void)state;
    check_method(METHOD_ADAKV);
}

static void test_a_method_with_slices_for_its_scores(void **state)
{
    (void)state;
    check_method(METHOD_H2O);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_a_method_that_drops_rows),
        cmocka_unit_test(test_a_method_of_two_passes),
        cmocka_unit_test(test_a_method_with_collectives_at_each_layer),
        cmocka_unit_test(test_a_method_with_slices_for_its_scores),
    };

    for (uint32_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
        tokens[i] = (i * 7919 + i / 13) % 500 + 3;
    }
    signal(SIGPIPE, SIG_IGN); /* gloo writes to peers that may be gone */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
