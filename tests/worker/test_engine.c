/* Plans, slots and company: what the golden cases, one sequence each, cannot show. */
#include "common/slices.h"
#include "tests/check.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_group.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GOLDENS WINNOW_SOURCE_DIR "/tests/goldens/data/"

enum { COMPANY = OP_MAX_DECODE_ROWS, STEPS = 6, MAX_PROMPT = 90, VOCAB = 512 };

/* Sequence `i` of a company: its own length, method and sampling. */
static void make_begin(struct plan_begin *begin, uint32_t *prompt, const struct model *model, int i)
{
    static const enum method methods[] = {METHOD_FASTKV, METHOD_FULL,      METHOD_SNAPKV,
                                          METHOD_ADAKV,  METHOD_PYRAMIDKV, METHOD_STREAMINGLLM,
                                          METHOD_H2O,    METHOD_FASTGEN,   METHOD_GEMFILTER};

    *begin = (struct plan_begin){
        .slot = (uint32_t)(i * 7 % COMPANY),
        .n_prompt = 1 + (uint32_t)(i * 13 + 60) % MAX_PROMPT,
        .prompt = prompt,
        .sampling = {.temperature = i % 3 == 2 ? 0.8F : 0.0F,
                     .top_p = 0.9F,
                     .top_k = i % 2 ? 20 : 0,
                     .min_p = i % 7 == 4 ? 0.05F : 0.0F,
                     .repetition_penalty = i % 5 == 3 ? 1.3F : 1.0F,
                     .frequency_penalty = i % 4 == 1 ? 0.3F : 0.0F,
                     .presence_penalty = i % 10 == 6 ? -0.4F : 0.0F,
                     .logprobs = i % 6 == 2 ? (uint32_t)i % 22 : 0,
                     .seed = (uint64_t)i},
        .trace = TRACE_PROMPT_LOGITS | TRACE_STEP_LOGITS | TRACE_SELECTED,
        .max_rows = STEPS,
    };
    method_defaults(&begin->params, methods[i % 9], &model->config);
    begin->params.granularity = i % 4 == 2 ? GRANULARITY_Q : GRANULARITY_KV;
    begin->params.retain_rate = 0.3;
    begin->params.tsp_rate = 0.5;
    begin->params.h2o_dynamic = i % 2 == 0;
    begin->params.rolling = i % 2 == 0;
    begin->params.pos_mode = i % 4 == 0 ? POSITION_CACHE : POSITION_ORIGINAL;
    for (uint32_t t = 0; t < MAX_PROMPT; t++) {
        prompt[t] = (uint32_t)(i * 31 + (int)t * 17 + (int)(t * t) % 13) % VOCAB;
    }
}

/* Every batch size from 1 to COMPANY once, the rows taken in turn: so many each. */
enum { TURNS = (COMPANY + 2) / 2 };

struct company_run {
    struct bench_config config;
    struct outcome alone[COMPANY];
    struct outcome together[COMPANY];
};

static void make_member_of_company(struct plan_begin *begin, uint32_t *prompt,
                                   const struct model *model, int i)
{
    make_begin(begin, prompt, model, i);
    begin->max_rows = TURNS;
}

static status generate_alone(struct company_run *run, struct bench *bench, int i)
{
    struct plan_begin begin;
    uint32_t prompt[MAX_PROMPT];
    uint64_t used = 0;

    make_member_of_company(&begin, prompt, bench->model, i);
    status st = bench_generate(bench, &begin, &run->alone[i]);
    if (!st) {
        st = bench_release(bench, begin.slot, &used);
    }
    return !st && used ? status_fail(STATUS_INTERNAL, "%d bytes are left", (int)used) : st;
}

/* All prompts, then all decode together; another batch at every step. */
static status generate_together(struct company_run *run, struct bench *bench)
{
    struct plan_begin begin[COMPANY];
    uint32_t prompts[COMPANY][MAX_PROMPT];
    uint32_t slots[COMPANY];
    struct step_result result;
    status st = STATUS_OK;

    for (int i = 0; !st && i < COMPANY; i++) {
        make_member_of_company(&begin[i], prompts[i], bench->model, i);
        st = bench_prompt(bench, &begin[i], &run->together[i]);
    }
    for (int size = 1, next = 0; !st && size <= COMPANY; size++) {
        for (int i = 0; i < size; i++) {
            slots[i] = begin[next++ % COMPANY].slot;
        }
        st = bench_decode(bench, slots, (uint32_t)size, &result);
        for (int i = 0; !st && i < COMPANY; i++) {
            outcome_take(&run->together[i], &result, begin[i].slot);
        }
    }
    return st;
}

static status run_company(struct comm *comm, void *context)
{
    struct company_run *run = context;
    struct bench bench;
    status st = bench_open(&bench, comm, &run->config);

    for (int i = 0; !st && i < COMPANY; i++) {
        st = generate_alone(run, &bench, i);
    }
    if (!st) {
        st = generate_together(run, &bench);
    }
    bench_close(&bench);
    return st;
}

static void check_company(const char *model, enum dtype dtype)
{
    static struct company_run run;

    run = (struct company_run){
        .config = {.model = model, .dtype = dtype, .max_context = 128, .kv_bytes = 32 << 20}};
    group_run(1, run_company, &run);
    for (int i = 0; i < COMPANY; i++) {
        struct outcome *alone = &run.alone[i];
        struct outcome *together = &run.together[i];
        size_t n = (size_t)together->n_tokens;

        CHECK(n >= TURNS && alone->n_tokens == TURNS + 1 && (size_t)together->n_logits == n);
        assert_memory_equal(alone->tokens, together->tokens, n * sizeof(*alone->tokens));
        assert_memory_equal(alone->logits, together->logits, n * VOCAB * sizeof(*alone->logits));
        CHECK(alone->n_logprobs >= together->n_logprobs);
        CHECK((i % 6 == 2 && i % 22 > 0) == (together->n_logprobs > 0));
        if (together->n_logprobs > 0) {
            assert_memory_equal(alone->logprobs, together->logprobs,
                                (size_t)together->n_logprobs * sizeof(float));
        }
        outcome_free(alone);
        outcome_free(together);
    }
}

static void test_float32_bits_do_not_depend_on_company(void **state)
{
    (void)state;
    check_company(GOLDENS "llama-gqa/model", DTYPE_F32);
    check_company(GOLDENS "mistral-sw/model", DTYPE_F32);
}

static void test_bf16_bits_do_not_depend_on_company(void **state)
{
    (void)state;
    check_company(GOLDENS "llama-gqa-bf16/model", DTYPE_BF16);
    check_company(GOLDENS "mistral-hd/model", DTYPE_BF16);
}

/* A decode step of more rows than a batch has, against steps of a third of them. */
enum { MANY = 2 * OP_MAX_DECODE_ROWS + 22, THIRD = MANY / 3 };

struct many_run {
    int rows; /* of a plan */
    struct outcome outcomes[MANY];
};

static status decode_many(struct many_run *run, struct bench *bench)
{
    uint32_t slots[MANY];
    struct step_result result;
    status st = STATUS_OK;

    for (uint32_t i = 0; i < MANY; i++) {
        slots[i] = MANY - 1 - i;
    }
    for (int at = 0; !st && at < STEPS * MANY; at += run->rows) {
        st = bench_decode(bench, slots + at % MANY, (uint32_t)run->rows, &result);
        for (uint32_t i = 0; !st && i < MANY; i++) {
            outcome_take(&run->outcomes[i], &result, i);
        }
    }
    return st;
}

static status run_many(struct comm *comm, void *context)
{
    const struct bench_config config = {.model = GOLDENS "llama-gqa/model",
                                        .dtype = DTYPE_F32,
                                        .max_context = 128,
                                        .kv_bytes = 128 << 20};
    struct many_run *run = context;
    struct plan_begin begin;
    uint32_t prompt[MAX_PROMPT];
    struct bench bench;
    status st = bench_open(&bench, comm, &config);

    for (int i = 0; !st && i < MANY; i++) {
        make_begin(&begin, prompt, bench.model, i);
        begin.slot = (uint32_t)i;
        begin.n_prompt = 1 + begin.n_prompt / 3;
        st = bench_prompt(&bench, &begin, &run->outcomes[i]);
    }
    if (!st) {
        st = decode_many(run, &bench);
    }
    bench_close(&bench);
    return st;
}

static void test_a_step_of_several_batches_gives_the_same_bits(void **state)
{
    static struct many_run whole = {.rows = MANY};
    static struct many_run parts = {.rows = THIRD};

    (void)state;
    group_run(1, run_many, &whole);
    group_run(1, run_many, &parts);
    for (int i = 0; i < MANY; i++) {
        struct outcome *a = &whole.outcomes[i], *b = &parts.outcomes[i];
        CHECK(a->n_tokens == STEPS + 1 && b->n_tokens == STEPS + 1);
        assert_memory_equal(a->tokens, b->tokens, (STEPS + 1) * sizeof(*a->tokens));
        assert_memory_equal(a->logits, b->logits, (STEPS + 1) * VOCAB * sizeof(*a->logits));
        outcome_free(a);
        outcome_free(b);
    }
}

/* One plan with a release, a begin, slices of a prompt and decode rows: nobody is disturbed. */
struct interleaved_run {
    struct outcome plain[2];
    struct outcome mixed[2];
};

static const struct bench_config small = {.model = GOLDENS "llama-gqa/model",
                                          .dtype = DTYPE_F32,
                                          .max_context = 128,
                                          .kv_bytes = 16 << 20};

static status decode_while_prompting(struct bench *bench, const struct plan_begin *begin,
                                     struct outcome *out)
{
    const struct plan_advance advance = {.slot = begin[1].slot, .slices = 1};
    struct step_result result;
    status st = bench_prompt(bench, &begin[0], &out[0]);

    for (int step = 0; !st && !out[1].prompt_done; step++) {
        const struct plan plan = {
            .n_begin = step == 0,
            .begin = &begin[1],
            .n_advance = 1,
            .advance = &advance,
            .n_decode = step < STEPS,
            .decode = &begin[0].slot,
        };
        st = engine_step(bench->engine, &plan, &result);
        for (int i = 0; !st && i < 2; i++) {
            outcome_take(&out[i], &result, begin[i].slot);
        }
    }
    return st;
}

static status run_interleaved(struct comm *comm, void *context)
{
    struct interleaved_run *run = context;
    struct plan_begin begin[2];
    uint32_t prompts[2][MAX_PROMPT];
    struct bench bench;
    status st = bench_open(&bench, comm, &small);

    for (int i = 0; !st && i < 2; i++) {
        make_begin(&begin[i], prompts[i], bench.model, i + 2);
        st = bench_generate(&bench, &begin[i], &run->plain[i]);
    }
    bench_close(&bench);
    if (!st) {
        st = bench_open(&bench, comm, &small);
        if (!st) {
            st = decode_while_prompting(&bench, begin, run->mixed);
        }
        bench_close(&bench);
    }
    return st;
}

static void test_prompts_and_decode_interleave(void **state)
{
    static struct interleaved_run run;

    (void)state;
    group_run(1, run_interleaved, &run);
    CHECK(run.mixed[0].n_tokens >= 5 && run.mixed[1].n_tokens == 1);
    for (int i = 0; i < 2; i++) {
        assert_memory_equal(run.mixed[i].tokens, run.plain[i].tokens,
                            (size_t)run.mixed[i].n_tokens * sizeof(uint32_t));
        assert_memory_equal(run.mixed[i].logits, run.plain[i].logits,
                            (size_t)run.mixed[i].n_logits * VOCAB * sizeof(float));
        outcome_free(&run.mixed[i]);
        outcome_free(&run.plain[i]);
    }
}

/* Prompts of all methods in their prompt phase at the same time, four by four. */
enum { PROMPTS = 12 };

struct prompts_run {
    int first; /* of four */
    struct outcome alone[PLAN_MAX_PROMPTS];
    struct outcome together[PLAN_MAX_PROMPTS];
};

static void make_prompt(struct plan_begin *begin, uint32_t *prompt, const struct model *model,
                        int i)
{
    static const enum method methods[PROMPTS] = {
        METHOD_FULL,    METHOD_FASTKV, METHOD_GEMFILTER,    METHOD_SNAPKV,
        METHOD_ADAKV,   METHOD_HEADKV, METHOD_STREAMINGLLM, METHOD_H2O,
        METHOD_FASTGEN, METHOD_FASTKV, METHOD_PYRAMIDINFER, METHOD_PYRAMIDKV};
    static const float head_scores[MODEL_MAX_LAYERS * 64] = {3, 1, 2, 5, 1, 1, 4};

    make_begin(begin, prompt, model, i);
    begin->n_prompt = 24 + (uint32_t)i % 9;
    begin->slot = (uint32_t)i;
    begin->first_row = (uint32_t)(i % PLAN_MAX_PROMPTS) * PLAN_ROW_STEP;
    method_defaults(&begin->params, methods[i], &model->config);
    begin->params.retain_rate = 0.4;
    begin->params.tsp_rate = 0.5;
    begin->params.window = 4;
    begin->params.pos_mode = i % 2 ? POSITION_ORIGINAL : POSITION_CACHE;
    begin->params.head_scores = methods[i] == METHOD_HEADKV ? head_scores : NULL;
    begin->params.n_head_scores =
        methods[i] == METHOD_HEADKV ? model->config.layers * model->config.query_heads : 0;
}

/* One slice of each in turn, until all are done; then they decode. */
static status prompts_together(struct bench *bench, const struct plan_begin *begin,
                               struct outcome *out)
{
    struct step_result result;
    status st = STATUS_OK;

    for (int step = 0, left = PLAN_MAX_PROMPTS; !st && left > 0; step++) {
        int i = step % PLAN_MAX_PROMPTS;
        const struct plan_advance advance = {.slot = begin[i].slot, .slices = 1};
        const struct plan plan = {.n_begin = step < PLAN_MAX_PROMPTS,
                                  .begin = &begin[i],
                                  .n_advance = 1,
                                  .advance = &advance};
        if (out[i].prompt_done) {
            continue;
        }
        st = engine_step(bench->engine, &plan, &result);
        if (!st) {
            outcome_take(&out[i], &result, begin[i].slot);
        }
        left -= !st && out[i].prompt_done;
    }
    for (int step = 0; !st && step < STEPS; step++) {
        uint32_t slots[PLAN_MAX_PROMPTS];
        for (int i = 0; i < PLAN_MAX_PROMPTS; i++) {
            slots[i] = begin[i].slot;
        }
        st = bench_decode(bench, slots, PLAN_MAX_PROMPTS, &result);
        for (int i = 0; !st && i < PLAN_MAX_PROMPTS; i++) {
            outcome_take(&out[i], &result, begin[i].slot);
        }
    }
    return st;
}

static status run_prompts(struct comm *comm, void *context)
{
    struct prompts_run *run = context;
    struct plan_begin begin[PLAN_MAX_PROMPTS];
    uint32_t prompts[PLAN_MAX_PROMPTS][MAX_PROMPT];
    struct bench bench;
    uint64_t used;
    status st = bench_open(&bench, comm, &small);

    for (int i = 0; !st && i < PLAN_MAX_PROMPTS; i++) {
        make_prompt(&begin[i], prompts[i], bench.model, run->first + i);
        st = bench_generate(&bench, &begin[i], &run->alone[i]);
        if (!st) {
            st = bench_release(&bench, begin[i].slot, &used);
        }
    }
    if (!st) {
        st = prompts_together(&bench, begin, run->together);
    }
    bench_close(&bench);
    return st;
}

static void check_same_outcome(const struct outcome *a, const struct outcome *b)
{
    CHECK(a->n_tokens == STEPS + 1 && b->n_tokens == STEPS + 1);
    assert_memory_equal(a->tokens, b->tokens, (STEPS + 1) * sizeof(*a->tokens));
    CHECK(a->n_logits == b->n_logits && a->n_heads == b->n_heads && a->n_heads > 0);
    assert_memory_equal(a->logits, b->logits, (size_t)a->n_logits * VOCAB * sizeof(*a->logits));
    for (int i = 0; i < a->n_heads; i++) {
        CHECK(a->heads[i].n == b->heads[i].n && a->heads[i].policy == b->heads[i].policy);
        assert_memory_equal(a->heads[i].kept, b->heads[i].kept,
                            a->heads[i].n * sizeof(*a->heads[i].kept));
    }
}

static void test_prompts_of_all_methods_are_read_side_by_side(void **state)
{
    (void)state;
    for (int first = 0; first < PROMPTS; first += PLAN_MAX_PROMPTS) {
        struct prompts_run run = {.first = first};
        group_run(1, run_prompts, &run);
        for (int i = 0; i < PLAN_MAX_PROMPTS; i++) {
            check_same_outcome(&run.alone[i], &run.together[i]);
            outcome_free(&run.alone[i]);
            outcome_free(&run.together[i]);
        }
    }
}

/* Prompts whose scores have slices of their own: one by one, a slice a plan, and side by side with
 * up to seven slices a plan. */
enum { LONG = 700, LONG_ROWS = 704 };

static const struct bench_config roomy = {.model = GOLDENS "llama-gqa/model",
                                          .dtype = DTYPE_F32,
                                          .max_context = PLAN_MAX_PROMPTS * LONG_ROWS,
                                          .kv_bytes = 64 << 20};

static void make_scored_prompt(struct plan_begin *begin, uint32_t *prompt,
                               const struct model *model, int i)
{
    static const enum method methods[] = {METHOD_H2O, METHOD_SNAPKV, METHOD_FASTKV, METHOD_H2O};

    make_begin(begin, prompt, model, i);
    for (uint32_t t = MAX_PROMPT; t < LONG; t++) {
        prompt[t] = (t * t * 7 + t % 29 * (uint32_t)(i + 3)) % VOCAB;
    }
    begin->n_prompt = LONG - (uint32_t)i;
    begin->slot = (uint32_t)i;
    begin->first_row = (uint32_t)i * LONG_ROWS;
    method_defaults(&begin->params, methods[i], &model->config);
    begin->params.retain_rate = 0.5;
    begin->params.tsp_rate = 0.6;
    begin->params.h2o_causal = false;
    begin->params.h2o_dynamic = i == 3;
    begin->params.window = methods[i] == METHOD_H2O ? 8 : SLICE_WINDOW_ROWS + 13;
}

static status read_side_by_side(struct bench *bench, const struct plan_begin *begin,
                                struct outcome *out)
{
    struct slices walk[PLAN_MAX_PROMPTS];
    struct step_result result;
    struct slice slice;
    status st = STATUS_OK;

    for (int i = 0; i < PLAN_MAX_PROMPTS; i++) {
        slices_begin(&walk[i], &begin[i].params, &bench->model->config, (int)begin[i].n_prompt);
    }
    for (int step = 0, left = PLAN_MAX_PROMPTS; !st && left > 0; step++) {
        int i = step % PLAN_MAX_PROMPTS;
        struct plan_advance advance = {.slot = begin[i].slot};
        const struct plan plan = {.n_begin = step < PLAN_MAX_PROMPTS,
                                  .begin = &begin[i],
                                  .n_advance = 1,
                                  .advance = &advance};
        while (advance.slices < 1 + (uint32_t)step % 7 && slices_next(&walk[i], &slice)) {
            advance.slices++;
        }
        if (advance.slices == 0) {
            continue;
        }
        st = engine_step(bench->engine, &plan, &result);
        if (!st) {
            outcome_take(&out[i], &result, begin[i].slot);
        }
        left -= !st && out[i].prompt_done;
    }
    return st;
}

static status run_scored(struct comm *comm, void *context)
{
    struct prompts_run *run = context;
    struct plan_begin begin[PLAN_MAX_PROMPTS];
    uint32_t prompts[PLAN_MAX_PROMPTS][LONG];
    struct bench bench;
    uint64_t used;
    status st = bench_open(&bench, comm, &roomy);

    for (int i = 0; !st && i < PLAN_MAX_PROMPTS; i++) {
        make_scored_prompt(&begin[i], prompts[i], bench.model, i);
        st = bench_prompt(&bench, &begin[i], &run->alone[i]);
        if (!st) {
            st = bench_release(&bench, begin[i].slot, &used);
        }
    }
    if (!st) {
        st = read_side_by_side(&bench, begin, run->together);
    }
    bench_close(&bench);
    return st;
}

static void test_scores_in_slices_of_their_own_are_the_same_whatever_a_plan_holds(void **state)
{
    struct prompts_run run = {0};

    (void)state;
    group_run(1, run_scored, &run);
    for (int i = 0; i < PLAN_MAX_PROMPTS; i++) {
        const struct outcome *a = &run.alone[i];
        const struct outcome *b = &run.together[i];
        CHECK(a->n_tokens == 1 && b->n_tokens == 1 && a->tokens[0] == b->tokens[0]);
        assert_memory_equal(a->logits, b->logits, VOCAB * sizeof(*a->logits));
        CHECK(a->n_heads == b->n_heads && a->n_heads > 0);
        for (int h = 0; h < a->n_heads; h++) {
            CHECK(a->heads[h].n == b->heads[h].n && a->heads[h].n < LONG / 2 + 1);
            assert_memory_equal(a->heads[h].kept, b->heads[h].kept,
                                a->heads[h].n * sizeof(*a->heads[h].kept));
        }
        outcome_free(&run.alone[i]);
        outcome_free(&run.together[i]);
    }
}

/* A slot is released in each state and used again; in the end no page is taken. */
static status run_releases(struct comm *comm, void *context)
{
    struct outcome outcome = {0};
    struct plan_begin begin;
    uint32_t prompt[MAX_PROMPT];
    struct step_result result;
    struct bench bench;
    uint64_t used = 1;
    status st = bench_open(&bench, comm, &small);

    (void)context;
    for (int round = 0; !st && round < 3; round++) {
        make_begin(&begin, prompt, bench.model, 4);
        const struct plan_advance advance = {.slot = begin.slot, .slices = (uint32_t)round * 4};
        const struct plan plan = {
            .n_begin = 1, .begin = &begin, .n_advance = round > 0, .advance = &advance};
        st = engine_step(bench.engine, &plan, &result);
        if (!st && round == 2 && result.kv_bytes_used == 0) {
            st = status_fail(STATUS_INTERNAL, "no page is used in the prompt phase");
        }
        if (!st) {
            st = bench_release(&bench, begin.slot, &used);
        }
        if (!st && used != 0) {
            st = status_fail(STATUS_INTERNAL, "round %d leaves %d bytes", round, (int)used);
        }
    }
    if (!st) {
        st = bench_generate(&bench, &begin, &outcome);
    }
    if (!st) {
        st = bench_release(&bench, begin.slot, &used);
    }
    outcome_free(&outcome);
    bench_close(&bench);
    return !st && used ? status_fail(STATUS_INTERNAL, "%d bytes are left", (int)used) : st;
}

static void test_released_slots_leave_no_pages(void **state)
{
    (void)state;
    group_run(1, run_releases, NULL);
    group_run(2, run_releases, NULL);
}

/* Plans that contradict the engine's state, each with the words of its error. */
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

static status run_bad_begins(struct bench *bench, const struct plan_begin *good)
{
    struct plan_begin bad = *good;
    const struct plan plan = {.number = 7, .n_begin = 1, .begin = &bad};
    const uint32_t beyond = VOCAB;
    status st;

    bad.slot = PLAN_MAX_SLOTS;
    st = expect(bench, &plan, "plan 7: slot 1024: the limit is 1024");
    bad = *good;
    bad.max_rows = 128 - good->n_prompt + 1;
    if (!st) {
        st = expect(bench, &plan, "the context is 1 to 128");
    }
    bad = *good;
    bad.n_prompt = 0;
    if (!st) {
        st = expect(bench, &plan, "the context is 1 to 128");
    }
    bad = *good;
    bad.prompt = &beyond;
    bad.n_prompt = 1;
    if (!st) {
        st = expect(bench, &plan, "token 0 is 512, the vocabulary has 512");
    }
    bad = *good;
    bad.params.method = METHOD_COUNT;
    if (!st) {
        st = expect(bench, &plan, "is not supported");
    }
    return st;
}

static status run_bad_plans(struct comm *comm, void *context)
{
    struct outcome outcome = {0};
    struct plan_begin begin;
    uint32_t prompt[MAX_PROMPT];
    struct bench bench;
    status st = bench_open(&bench, comm, &small);

    (void)context;
    if (!st) {
        make_begin(&begin, prompt, bench.model, 2);
        st = run_bad_begins(&bench, &begin);
    }
    const uint32_t other = 9;
    const uint32_t twice[2] = {begin.slot, begin.slot};
    const struct plan_advance advance = {.slot = other, .slices = 1};
    const struct plan_advance long_advance = {.slot = other, .slices = 10000};
    struct plan_begin second = begin;
    second.slot = other;
    const uint32_t more = 10;
    const struct plan_advance advance_more = {.slot = more, .slices = 1};
    struct plan_begin crossing = begin;
    crossing.slot = more;
    struct plan_begin outside = begin;
    outside.slot = more;
    outside.first_row = 160;
    const struct {
        struct plan plan;
        const char *words;
    } cases[] = {
        {{.n_release = 1, .release = &other}, "slot 9 is not in use"},
        {{.n_advance = 1, .advance = &advance}, "slot 9 is free, not in its prompt phase"},
        {{.n_decode = 1, .decode = &other}, "slot 9 is free, not live"},
        {{.n_decode = 2, .decode = twice}, "decoded twice, or past its 6 rows"},
        {{.n_begin = 1, .begin = &begin}, "is live, not free"},
        {{.n_begin = 1, .begin = &second, .n_decode = 1, .decode = &other},
         "slot 9 is in its prompt phase, not live"},
        {{.n_advance = 1, .advance = &advance, .n_decode = 1, .decode = &other},
         "slot 9 is in its prompt phase, not live"},
        {{.n_begin = 1, .begin = &crossing, .n_advance = 1, .advance = &advance_more},
         "slot 10: its rows are slot 9's"},
        {{.n_release = 1,
          .release = &more,
          .n_begin = 1,
          .begin = &outside,
          .n_advance = 1,
          .advance = &advance_more},
         "slot 10: rows 160 to"},
        {{.n_advance = 1, .advance = &long_advance}, "10000 slices are more than are left"},
    };
    if (!st) {
        st = bench_prompt(&bench, &begin, &outcome);
    }
    for (size_t i = 0; !st && i < sizeof(cases) / sizeof(cases[0]); i++) {
        st = expect(&bench, &cases[i].plan, cases[i].words);
    }
    outcome_free(&outcome);
    bench_close(&bench);
    return st;
}

static void test_contradicting_plans_are_refused(void **state)
{
    (void)state;
    group_run(1, run_bad_plans, NULL);
}

static status run_small_pool(struct comm *comm, void *context)
{
    struct bench_config config = small;
    struct outcome outcome = {0};
    struct plan_begin begin;
    uint32_t prompt[MAX_PROMPT];
    struct bench bench;

    (void)context;
    config.kv_bytes = 32 * 1024;
    status st = bench_open(&bench, comm, &config);
    if (!st) {
        make_begin(&begin, prompt, bench.model, 1);
        st = bench_prompt(&bench, &begin, &outcome);
        if (st != STATUS_EXHAUSTED || !strstr(status_text(), "pages are free")) {
            st = status_fail(STATUS_INTERNAL, "status %d %s", (int)st, status_text());
        } else {
            st = STATUS_OK;
        }
    }
    outcome_free(&outcome);
    bench_close(&bench);
    return st;
}

static void test_a_pool_too_small_is_an_error_not_a_crash(void **state)
{
    (void)state;
    group_run(1, run_small_pool, NULL);
}

static status run_memory(struct comm *comm, void *context)
{
    struct bench bench;
    const struct engine_config config = {.max_context = 128, .kv_bytes = 16 << 20};
    status st = bench_open(&bench, comm, &small);

    (void)context;
    if (!st) {
        /* llama-gqa: hidden 128, 4 KV heads of 16, float32; prompt memory of 128 + 32 rows. */
        struct engine_memory memory = engine_memory(bench.model, DTYPE_F32, &config);
        if (memory.hidden != 160 * 128 * 4 || memory.layer_kv != 2 * 160 * 4 * 16 * 4 ||
            memory.pool != engine_kv_bytes_total(bench.engine) || memory.pool > 16 << 20 ||
            memory.step == 0 ||
            (uint64_t)engine_pages_total(bench.engine) * ENGINE_PAGE_ROWS * (2 * 16 * 4 + 4) !=
                memory.pool) {
            st = status_fail(STATUS_INTERNAL, "the formula does not hold");
        }
    }
    bench_close(&bench);
    return st;
}

static void test_memory_is_as_the_formula_says(void **state)
{
    (void)state;
    group_run(1, run_memory, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float32_bits_do_not_depend_on_company),
        cmocka_unit_test(test_bf16_bits_do_not_depend_on_company),
        cmocka_unit_test(test_a_step_of_several_batches_gives_the_same_bits),
        cmocka_unit_test(test_prompts_and_decode_interleave),
        cmocka_unit_test(test_prompts_of_all_methods_are_read_side_by_side),
        cmocka_unit_test(test_scores_in_slices_of_their_own_are_the_same_whatever_a_plan_holds),
        cmocka_unit_test(test_released_slots_leave_no_pages),
        cmocka_unit_test(test_contradicting_plans_are_refused),
        cmocka_unit_test(test_a_pool_too_small_is_an_error_not_a_crash),
        cmocka_unit_test(test_memory_is_as_the_formula_says),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
