/* Samples that share their prompt: the tokens of sequences with a prompt of their own, and pages
 * that are copied only where samples part. */
#include "common/slices.h"
#include "tests/check.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_group.h"

#include <stdlib.h>
#include <string.h>

#define GOLDENS WINNOW_SOURCE_DIR "/tests/goldens/data/"

enum { SAMPLES = 4, N_PROMPT = 75, STEPS = 40, VOCAB = 512, CASES = 16 };

struct fork_run {
    const char *model;
    int number; /* of the case */
    struct outcome alone[SAMPLES];
    struct outcome forked[SAMPLES];
    uint64_t used_alone;  /* bytes at the end of the prompt */
    uint64_t used_forked; /* likewise, with all forks */
    uint64_t used_first;  /* after the first decode step */
    uint64_t used_parted; /* after the sample that was read has gone */
    uint64_t page_bytes;
    int tables;         /* of a sample */
    bool evicts, noted; /* rows leave; by attention, which is noted of each */
};

/* Methods that evict in all of their ways, then the others. */
static void choose_method(struct method_params *params, const struct model_config *config, int i)
{
    static const enum method methods[CASES] = {
        METHOD_STREAMINGLLM, METHOD_STREAMINGLLM, METHOD_H2O,          METHOD_H2O,
        METHOD_FASTGEN,      METHOD_FASTGEN,      METHOD_FULL,         METHOD_FASTKV,
        METHOD_GEMFILTER,    METHOD_SNAPKV,       METHOD_ADAKV,        METHOD_HEADKV,
        METHOD_PYRAMIDKV,    METHOD_PYRAMIDINFER, METHOD_STREAMINGLLM, METHOD_H2O};
    static const float head_scores[MODEL_MAX_LAYERS * 64] = {3, 1, 2, 5, 1, 1, 4};

    method_defaults(params, methods[i], config);
    params->retain_rate = 0.5;
    params->tsp_rate = 0.6;
    params->window = 4;
    params->rolling = i < 2;
    params->h2o_dynamic = i < 4;
    params->pos_mode = i % 2 ? POSITION_ORIGINAL : POSITION_CACHE;
    params->granularity = i % 3 == 1 ? GRANULARITY_Q : GRANULARITY_KV;
    params->fg_threshold = i == 4 ? 0.5 : 0.9;
    params->head_scores = methods[i] == METHOD_HEADKV ? head_scores : NULL;
    params->n_head_scores = methods[i] == METHOD_HEADKV ? config->layers * config->query_heads : 0;
}

static void make_begin(struct plan_begin *begin, uint32_t *prompt, const struct model *model, int i)
{
    *begin = (struct plan_begin){
        .n_prompt = N_PROMPT,
        .prompt = prompt,
        .sampling = {.temperature = 1.0F,
                     .top_p = 0.95F,
                     .repetition_penalty = i % 2 ? 1.2F : 1.0F,
                     .frequency_penalty = i % 4 == 2 ? 0.2F : 0.0F,
                     .seed = (uint64_t)i},
        .trace = TRACE_PROMPT_LOGITS | TRACE_STEP_LOGITS | TRACE_SELECTED,
        .max_rows = STEPS,
    };
    choose_method(&begin->params, &model->config, i);
    for (uint32_t t = 0; t < N_PROMPT; t++) {
        prompt[t] = (uint32_t)(i * 31 + (int)t * 17 + (int)(t * t) % 13) % VOCAB;
    }
}

static status generate_alone(struct fork_run *run, struct bench *bench)
{
    uint32_t prompt[N_PROMPT];
    struct plan_begin begin;
    uint64_t left = 0;
    status st = STATUS_OK;

    make_begin(&begin, prompt, bench->model, run->number);
    run->evicts = method_evicts(&begin.params);
    run->noted = run->evicts && begin.params.method != METHOD_STREAMINGLLM;
    for (uint32_t i = 0; !st && i < SAMPLES; i++) {
        begin.slot = i;
        begin.sampling.sample = i;
        st = bench_generate(bench, &begin, &run->alone[i]);
        if (!st) {
            st = bench_release(bench, i, &left);
        }
    }
    run->used_alone = run->alone[0].pages_bytes;
    return !st && left ? status_fail(STATUS_INTERNAL, "%d bytes are left", (int)left) : st;
}

static uint32_t count_slices(const struct plan_begin *begin, const struct model *model)
{
    struct slices walk;
    struct slice slice;
    uint32_t n = 0;

    slices_begin(&walk, &begin->params, &model->config, (int)begin->n_prompt);
    while (slices_next(&walk, &slice)) {
        n++;
    }
    return n;
}

static void take(struct fork_run *run, const struct step_result *result)
{
    for (uint32_t i = 0; i < SAMPLES; i++) {
        outcome_take(&run->forked[i], result, i);
    }
}

/* The whole prompt in one plan, in which the forks begin too. */
static status begin_forks(struct fork_run *run, struct bench *bench)
{
    uint32_t prompt[N_PROMPT];
    struct plan_begin begin[SAMPLES];
    struct step_result result;

    make_begin(&begin[0], prompt, bench->model, run->number);
    for (uint32_t i = 1; i < SAMPLES; i++) {
        begin[i] = (struct plan_begin){.slot = i, .sampling.sample = i, .forks = true, .source = 0};
    }
    const struct plan_advance advance = {.slot = 0,
                                         .slices = count_slices(&begin[0], bench->model)};
    const struct plan plan = {.number = bench->number++,
                              .n_begin = SAMPLES,
                              .begin = begin,
                              .n_advance = 1,
                              .advance = &advance};
    status st = engine_step(bench->engine, &plan, &result);
    if (!st) {
        take(run, &result);
        run->used_forked = result.kv_bytes_used;
    }
    return st;
}

/* Slot 0 leaves at half the way. */
static uint32_t list_live(uint32_t *slots, uint32_t step)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < SAMPLES; i++) {
        uint32_t slot = (i + step) % SAMPLES;
        if (slot != 0 || step < STEPS / 2) {
            slots[n++] = slot;
        }
    }
    return n;
}

/* All decode, in another order at each step; the one that was read ends before the others. */
static status decode_forks(struct fork_run *run, struct bench *bench)
{
    uint32_t slots[SAMPLES];
    struct step_result result;
    uint64_t left = 0;
    status st = STATUS_OK;

    for (uint32_t step = 0; !st && step < STEPS; step++) {
        uint32_t n = list_live(slots, step);
        if (step == STEPS / 2) {
            st = bench_release(bench, 0, &run->used_parted);
        }
        if (!st) {
            st = bench_decode(bench, slots, n, &result);
        }
        if (!st) {
            take(run, &result);
            run->used_first = step == 0 ? result.kv_bytes_used : run->used_first;
        }
    }
    for (uint32_t i = 1; !st && i < SAMPLES; i++) {
        st = bench_release(bench, i, &left);
    }
    return !st && left ? status_fail(STATUS_INTERNAL, "%d bytes are left", (int)left) : st;
}

static status run_forks(struct comm *comm, void *context)
{
    struct fork_run all = *(struct fork_run *)context;
    struct fork_run *run = comm_rank(comm) == 0 ? context : &all;
    const struct bench_config config = {
        .model = run->model, .dtype = DTYPE_F32, .max_context = 128, .kv_bytes = 8 << 20};
    struct bench bench;
    status st = bench_open(&bench, comm, &config);

    if (!st) {
        st = generate_alone(run, &bench);
    }
    if (!st) {
        st = begin_forks(run, &bench);
    }
    if (!st) {
        st = decode_forks(run, &bench);
    }
    if (!st) {
        run->page_bytes =
            engine_kv_bytes_total(bench.engine) / (uint64_t)engine_pages_total(bench.engine);
        run->tables = run->forked[0].n_heads;
    }
    for (int i = 0; run == &all && i < SAMPLES; i++) {
        outcome_free(&all.alone[i]);
        outcome_free(&all.forked[i]);
    }
    bench_close(&bench);
    return st;
}

static void check_heads(const struct outcome_head *a, const struct outcome_head *b, int n)
{
    for (int i = 0; i < n; i++) {
        CHECK(a[i].n == b[i].n && a[i].layer == b[i].layer && a[i].head == b[i].head);
        assert_memory_equal(a[i].kept, b[i].kept, a[i].n * sizeof(*a[i].kept));
    }
}

static void check_sample(const struct outcome *alone, const struct outcome *forked, int sample)
{
    int n = sample == 0 ? STEPS / 2 + 1 : STEPS + 1;
    int rows = alone->vocab_rows;

    CHECK(alone->n_tokens == STEPS + 1 && forked->n_tokens == n);
    assert_memory_equal(alone->tokens, forked->tokens, (size_t)n * sizeof(*alone->tokens));
    /* The prompt's row of logits, which comes with the first sample alone, and those of steps. */
    CHECK(forked->n_logits == n - (sample > 0));
    assert_memory_equal(alone->logits + (sample > 0 ? rows : 0), forked->logits,
                        (size_t)(forked->n_logits * rows) * sizeof(float));
    CHECK(forked->prompt_done == (sample == 0));
    if (sample > 0) {
        CHECK(alone->n_live == forked->n_live);
        check_heads(alone->live, forked->live, alone->n_live);
    }
}

static void check_pages(const struct fork_run *run)
{
    uint64_t page = run->page_bytes;

    if (run->noted) {
        CHECK(run->used_forked == SAMPLES * run->used_alone);
    } else {
        CHECK(run->used_forked == run->used_alone); /* forking takes nothing */
        CHECK(run->used_first > run->used_forked);
    }
    if (!run->evicts) {
        /* Each table has a last page that is not full, of which all samples but one take a copy;
         * or it is full, and each sample begins one. */
        CHECK(run->used_first >= run->used_forked + (SAMPLES - 1) * (uint64_t)run->tables * page);
        CHECK(run->used_first <= run->used_forked + SAMPLES * (uint64_t)run->tables * page);
    }
    CHECK(run->used_parted > 0 && run->used_parted < SAMPLES * run->used_alone * 2);
}

/* Every `by`th case. */
static void check_forks(const char *model, int ranks, int by)
{
    for (int number = 0; number < CASES; number += by) {
        struct fork_run run = {.model = model, .number = number};

        group_run(ranks, run_forks, &run);
        for (int i = 0; i < SAMPLES; i++) {
            check_sample(&run.alone[i], &run.forked[i], i);
        }
        if (ranks == 1) {
            check_pages(&run);
        }
        for (int i = 0; i < SAMPLES; i++) {
            outcome_free(&run.alone[i]);
            outcome_free(&run.forked[i]);
        }
    }
}

static void test_forks_of_every_method_are_as_sequences_of_their_own(void **state)
{
    (void)state;
    check_forks(GOLDENS "llama-gqa/model", 1, 1);
    check_forks(GOLDENS "mistral-sw/model", 1, 3);
}

static void test_forks_at_two_ranks(void **state)
{
    (void)state;
    check_forks(GOLDENS "llama-gqa/model", 2, 3);
}

static status expect(struct bench *bench, const struct plan *plan, const char *words)
{
    struct step_result result;
    status st = engine_step(bench->engine, plan, &result);

    if (!st || !strstr(status_text(), words)) {
        return status_fail(STATUS_INTERNAL, "expected \"%s\", got status %d \"%s\"", words, (int)st,
                           st ? status_text() : "");
    }
    return STATUS_OK;
}

static status run_bad_forks(struct comm *comm, void *context)
{
    const struct bench_config config = {.model = GOLDENS "llama-gqa/model",
                                        .dtype = DTYPE_F32,
                                        .max_context = 128,
                                        .kv_bytes = 8 << 20};
    const struct plan_begin early = {.slot = 3, .forks = true, .source = 0};
    struct plan_begin begin[3];
    uint32_t prompt[N_PROMPT];
    struct bench bench;
    status st = bench_open(&bench, comm, &config);

    (void)context;
    if (!st) {
        make_begin(&begin[0], prompt, bench.model, 6);
        begin[1] = begin[2] = (struct plan_begin){.slot = 3, .forks = true, .source = 0};
        st = expect(&bench, &(struct plan){.n_begin = 1, .begin = &early},
                    "1 of 1 forks are of prompts that do not end here");
    }
    if (!st) {
        const struct plan_advance advance = {.slot = 0,
                                             .slices = count_slices(&begin[0], bench.model)};
        st = expect(
            &bench,
            &(struct plan){.n_begin = 3, .begin = begin, .n_advance = 1, .advance = &advance},
            "slot 3 is live, not free");
    }
    bench_close(&bench);
    return st;
}

static void test_forks_that_contradict_the_slots_are_refused(void **state)
{
    (void)state;
    group_run(1, run_bad_forks, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forks_of_every_method_are_as_sequences_of_their_own),
        cmocka_unit_test(test_forks_at_two_ranks),
        cmocka_unit_test(test_forks_that_contradict_the_slots_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
