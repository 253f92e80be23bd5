/* test_calls.c - what a decode step and a slice of a prompt ask of the CUDA runtime: a step does
 * not allocate, and waits once, for its tokens. */
#include "common/slices.h"
#include "kernels/op.h"
#include "tests/check.h"
#include "tests/cuda_host/cuda_host.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_gpus.h"
#include "tests/worker/helpers_group.h"
#include "worker/step_graphs.h"

#include <stdlib.h>
#include <string.h>

#define MODEL "tests/models/stories260k"
#define TWO_KV_HEADS "tests/models/needle-tiny" /* and four query heads */

enum { PROMPT = 93, SHORT_PROMPT = 48, STEPS = 5, SAMPLES = 3 };

struct run {
    enum method method;
    const char *model; /* NULL: MODEL */
    int slots;         /* sequences that decode together */
    bool no_graphs;
    bool refused; /* graphs, of the last rank */
    bool evicts;
    bool logits;                     /* every step's are asked for */
    bool by_query;                   /* caches */
    bool both_kinds;                 /* those of all but the first sequence are not */
    bool beside_full;                /* all but the first sequence keep everything */
    bool rolls;                      /* rows leave, and positions are those of the cache */
    struct sampling sampling;        /* all zero: greedy */
    uint32_t tokens[STEPS][SAMPLES]; /* of rank 0 */
    uint32_t live[SAMPLES];          /* a hash of the rows that are left there */
    /* Slices of whole layers that choose, and the kernels that they took; of rank 0. */
    unsigned long choices, kernels;
};

static struct cuda_host_calls since(const struct cuda_host_calls *before)
{
    struct cuda_host_calls now = cuda_host_calls();

    return (struct cuda_host_calls){
        .waits = now.waits - before->waits,
        .allocations = now.allocations - before->allocations,
        .uploads = now.uploads - before->uploads,
        .downloads = now.downloads - before->downloads,
        .graphs = now.graphs - before->graphs,
    };
}

static status check_most(const char *what, const struct cuda_host_calls *got,
                         const struct cuda_host_calls *most)
{
    bool fine = got->graphs == most->graphs && got->waits <= most->waits &&
                got->allocations <= most->allocations && got->uploads <= most->uploads &&
                got->downloads <= most->downloads;

    return fine
               ? STATUS_OK
               : status_fail(
                     STATUS_INTERNAL,
                     "%s: %lu waits, %lu allocations, %lu uploads, %lu downloads, %lu graphs", what,
                     got->waits, got->allocations, got->uploads, got->downloads, got->graphs);
}

/* Slice by slice. */
static status read_prompt(struct bench *bench, const struct plan_begin *begin, struct run *counts)
{
    unsigned long logprobs = begin->sampling.logprobs > 0;
    const struct plan_advance advance = {.slot = begin->slot, .slices = 1};
    static const struct cuda_host_calls any = {.waits = 100, .uploads = 100, .downloads = 100};
    static const struct cuda_host_calls opened = {.waits = 3, .uploads = 1, .downloads = 1};
    const struct cuda_host_calls whole = {.waits = 1, .uploads = 0};
    /* per cache head a table, and where rows may leave notes; the window's rows, and the row or the
     * rows that go on */
    unsigned long lists = method_caches_by_query(&begin->params) ? 28 : 16;
    const struct cuda_host_calls choice = {.waits = 2, .uploads = lists, .downloads = lists};
    /* and the first token, with what it is drawn with, and what its log-probabilities are of */
    const struct cuda_host_calls last = {
        .waits = 3, .uploads = lists + 1 + logprobs, .downloads = lists + 1 + 2 * logprobs};
    struct plan plan = {.number = bench->number++, .n_begin = 1, .begin = begin};
    struct step_result result;
    struct slices walk;
    struct slice slice;
    struct cuda_host_calls before = cuda_host_calls();
    status st = engine_step(bench->engine, &plan, &result);
    struct cuda_host_calls calls = since(&before);

    if (!st) {
        st = check_most("a begin", &calls, &opened);
    }
    plan = (struct plan){.n_advance = 1, .advance = &advance};
    slices_begin(&walk, &begin->params, &bench->model->config, (int)begin->n_prompt);
    while (!st && slices_next(&walk, &slice)) {
        bool chooses = slice.chooses, ends = walk.next.end == 0;
        const struct cuda_host_calls *most = ends ? &last : chooses ? &choice : &whole;
        unsigned long launches = cuda_host_launches();
        before = cuda_host_calls();
        plan.number = bench->number++;
        st = engine_step(bench->engine, &plan, &result);
        calls = since(&before);
        if (counts && chooses && slice.kind == SLICE_WHOLE) {
            counts->choices++;
            counts->kernels += cuda_host_launches() - launches;
        }
        if (begin->params.method == METHOD_FASTGEN) { /* its scores decide on the host */
            most = &any;
        }
        if (!st) {
            st = check_most("a slice", &calls, most);
        }
    }
    return st;
}

/* What the first rank says of its sequences. */
static void note(struct run *run, const struct step_result *result, int step)
{
    for (uint32_t i = 0; i < result->n_tokens; i++) {
        run->tokens[step][result->tokens[i].slot] = result->tokens[i].id;
    }
    for (uint32_t i = 0; i < result->n_prompts; i++) {
        uint32_t *live = &run->live[result->prompts[i].slot];
        for (uint32_t h = 0; h < result->prompts[i].n_heads; h++) {
            const struct result_head *head = &result->prompts[i].heads[h];
            for (uint32_t k = 0; k < head->n_kept; k++) {
                *live = *live * 31 + head->kept[k];
            }
        }
    }
}

static status decode(struct bench *bench, struct run *run, bool first_rank)
{
    uint32_t n = (uint32_t)run->slots;
    unsigned long logprobs = run->sampling.logprobs > 0;
    unsigned long evicts = run->evicts, logits = run->logits ? n : 0;
    bool graphs = !run->no_graphs && !run->refused;
    /* what changes from step to step; pages that the tables got, where a page was full; what tokens
     * are drawn with; likewise log-probabilities; rules of what leaves the cache, and rows that
     * move to its places; logits */
    const struct cuda_host_calls most = {.waits = 1,
                                         .uploads = 3 + logprobs + 2 * evicts,
                                         .downloads = 1 + 2 * logprobs + evicts + logits,
                                         .graphs = graphs};
    uint32_t slots[SAMPLES];
    struct step_result result;
    status st = STATUS_OK;

    for (uint32_t i = 0; i < n; i++) {
        slots[i] = i;
    }
    for (int step = 0; !st && step < STEPS; step++) {
        struct cuda_host_calls before = cuda_host_calls();
        st = bench_decode(bench, slots, n, &result);
        struct cuda_host_calls calls = since(&before);
        if (!st && first_rank) {
            note(run, &result, step);
        }
        if (!st && result.n_logits != logits) {
            st = status_fail(STATUS_INTERNAL, "%u rows of logits", result.n_logits);
        }
        if (!st && step > 1) { /* the first one runs as it is, the second one is recorded */
            st = check_most("a decode step", &calls, &most);
        }
    }
    return st;
}

/* Of sequence i. */
static void choose(struct method_params *params, const struct run *run, int i,
                   const struct model_config *model)
{
    bool by_query = run->by_query != (run->both_kinds && i > 0);

    method_defaults(params, run->beside_full && i > 0 ? METHOD_FULL : run->method, model);
    params->h2o_dynamic = run->evicts;
    params->rolling = run->rolls;
    params->pos_mode = run->rolls ? POSITION_CACHE : POSITION_ORIGINAL;
    params->retain_rate = run->evicts || run->rolls ? 0.3 : params->retain_rate;
    params->granularity = by_query ? GRANULARITY_Q : GRANULARITY_KV;
}

static status run_rank(struct comm *comm, void *context)
{
    struct run *run = context;
    const struct bench_config config = {.model = run->model ? run->model : MODEL,
                                        .dtype = DTYPE_F32,
                                        .max_context = PROMPT + STEPS + 1,
                                        .kv_bytes = 16 << 20,
                                        .unchecked = true,
                                        .no_graphs = run->no_graphs};
    struct bench bench;
    uint32_t prompt[PROMPT];
    struct plan_begin begin = {
        .n_prompt = PROMPT,
        .prompt = prompt,
        .sampling = run->sampling,
        .max_rows = STEPS,
        .trace = run->logits                 ? TRACE_STEP_LOGITS
                 : run->evicts || run->rolls ? TRACE_SELECTED
                                             : 0,
    };
    status st = bench_open(&bench, comm, &config);

    for (uint32_t i = 0; i < PROMPT; i++) {
        prompt[i] = 3 + i * 7 % 400;
    }
    if (run->refused && comm_rank(comm) == comm_size(comm) - 1) {
        cuda_host_refuse_graphs();
    }
    begin.sampling.repetition_penalty = 1;
    if (run->sampling.temperature == 0) {
        begin.sampling.top_p = 1;
    }
    for (int i = 0; !st && i < run->slots; i++) {
        choose(&begin.params, run, i, &bench.model->config);
        begin.slot = (uint32_t)i;
        /* pages are full at different times */
        begin.n_prompt = (run->evicts || run->rolls || run->both_kinds ? SHORT_PROMPT : PROMPT) -
                         (uint32_t)i * 5;
        st = read_prompt(&bench, &begin, comm_rank(comm) == 0 ? run : NULL);
    }
    if (!st) {
        st = decode(&bench, run, comm_rank(comm) == 0);
    }
    bench_close(&bench);
    return st;
}

static void run_ranks(int ranks, struct run *run)
{
    gpus_open(ranks, DTYPE_F32);
    group_run(ranks, run_rank, run);
    gpus_close();
}

static void test_a_step_waits_once_and_does_not_allocate(void **state)
{
    struct run runs[] = {{.method = METHOD_FASTKV, .slots = 1},
                         {.method = METHOD_FULL, .slots = SAMPLES},
                         {.method = METHOD_STREAMINGLLM, .slots = SAMPLES, .rolls = true},
                         {.method = METHOD_SNAPKV, .slots = 1}};
    struct run together = {.method = METHOD_FASTKV, .slots = SAMPLES};

    (void)state;
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
        run_ranks(1, &runs[i]);
    }
    run_ranks(2, &together);
}

/* Filters are searched for on the device, and so are log-probabilities. */
static void test_a_step_with_filters_waits_once(void **state)
{
    struct run runs[] = {
        {.slots = SAMPLES, .sampling = {.temperature = 0.9F, .top_k = 30, .top_p = 1}},
        {.slots = SAMPLES, .sampling = {.temperature = 0.9F, .top_p = 0.8F, .min_p = 0.01F}},
        {.slots = 1, .sampling = {.top_p = 1, .logprobs = 6}},
    };
    struct run together = {.slots = SAMPLES,
                           .sampling = {.temperature = 1.5F,
                                        .top_k = 50,
                                        .top_p = 0.9F,
                                        .min_p = 0.01F,
                                        .seed = 7,
                                        .logprobs = 1}};

    (void)state;
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
        runs[i].method = METHOD_FASTKV;
        run_ranks(1, &runs[i]);
    }
    together.method = METHOD_FASTKV;
    run_ranks(2, &together);
}

static void test_a_step_that_reports_logits_waits_once(void **state)
{
    struct run alone = {.method = METHOD_FASTKV, .slots = SAMPLES, .logits = true};
    struct run together = {.method = METHOD_FULL,
                           .slots = SAMPLES,
                           .logits = true,
                           .sampling = {.top_p = 1, .logprobs = 3}};

    (void)state;
    run_ranks(1, &alone);
    run_ranks(2, &together);
}

/* However large the vocabulary is: pinned memory is there for all rows of a step. */
static void test_one_wait_brings_the_logits_of_a_whole_step(void **state)
{
    enum { ROWS = OP_MAX_DECODE_ROWS, VOCAB = 50000 };
    const struct op_limits limits = {.chunk_rows = 1,
                                     .keys = 1,
                                     .q_heads = 1,
                                     .kv_heads = 1,
                                     .group = 1,
                                     .head_dim = 8,
                                     .vocab_rows = VOCAB};
    float *here = calloc((size_t)ROWS * VOCAB, sizeof(*here)), *there = NULL;
    const size_t row = VOCAB * sizeof(*here);
    struct device *dev;
    void *memory;

    (void)state;
    assert_non_null(here);
    CHECK_OK(device_open(&dev, "cuda", &(struct device_config){.dtype = DTYPE_F32, .threads = 1}));
    CHECK_OK(op_reserve(dev, &limits));
    CHECK_OK(device_alloc(dev, &memory, ROWS * row, "logits"));
    there = memory;
    for (int r = 0; r < ROWS; r++) {
        here[0] = (float)(r + 1);
        CHECK_OK(device_upload(dev, there + (size_t)r * VOCAB, here, row));
    }
    struct cuda_host_calls before = cuda_host_calls();
    for (size_t r = 0; r < ROWS; r++) {
        CHECK_OK(device_fetch(dev, here + r * VOCAB, there + r * VOCAB, row));
    }
    CHECK_OK(device_sync(dev));
    struct cuda_host_calls calls = since(&before);
    CHECK(calls.waits == 1 && calls.downloads == ROWS);
    for (size_t r = 0; r < ROWS; r++) {
        CHECK(here[r * VOCAB] == (float)(r + 1));
    }
    device_free(dev, memory);
    device_close(dev);
    free(here);
}

/* What leaves the cache is chosen on the device, in the same graph; also where the two KV heads lie
 * on three ranks, whose sums over query groups need each other's queries. */
static void test_a_step_that_evicts_waits_once(void **state)
{
    struct run runs[] = {{.method = METHOD_H2O, .slots = SAMPLES, .evicts = true},
                         {.method = METHOD_H2O, .slots = 1, .evicts = true, .by_query = true},
                         {.method = METHOD_FASTGEN, .slots = 1, .evicts = true}};
    struct run together = {.method = METHOD_H2O, .slots = 1, .evicts = true};
    struct run shared = {
        .method = METHOD_H2O, .model = TWO_KV_HEADS, .slots = SAMPLES, .evicts = true};
    struct run alone = shared;

    (void)state;
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
        run_ranks(1, &runs[i]);
    }
    run_ranks(2, &together);
    run_ranks(3, &shared);
    run_ranks(1, &alone);
    CHECK(memcmp(shared.tokens, alone.tokens, sizeof(alone.tokens)) == 0);
}

/* Column sums (H2O) take what attention left of its rows; a window's scores too, and are pooled: if
 * they found it again, that would be kernels more. */
static void test_scores_behind_attention_find_no_normalisers(void **state)
{
    struct run sums = {.method = METHOD_H2O, .slots = 1};
    struct run window = {.method = METHOD_SNAPKV, .slots = 1};

    (void)state;
    run_ranks(1, &sums);
    run_ranks(1, &window);
    CHECK(window.choices > 0 && window.choices == sums.choices);
    assert_int_equal(window.kernels, sums.kernels + window.choices);
}

/* Whether a step is a graph or not, and whether its other sequences evict or keep everything: the
 * first one has the same tokens, and the same rows in the end. */
static void check_leaving(struct run plain)
{
    struct run runs[] = {plain, plain, plain};
    int n = plain.by_query ? 2 : 3; /* FULL's caches are by KV head */

    for (int i = 0; i < n; i++) {
        runs[i].slots = SAMPLES;
        runs[i].no_graphs = i == 0;
        runs[i].beside_full = i == 2;
    }
    run_ranks(1, &plain);
    CHECK(plain.live[0] != 0);
    for (int i = 0; i < n; i++) {
        run_ranks(1, &runs[i]);
        CHECK(runs[i].live[0] == plain.live[0]);
        for (int step = 0; step < STEPS; step++) {
            CHECK(runs[i].tokens[step][0] == plain.tokens[step][0]);
        }
    }
    CHECK(memcmp(runs[0].tokens, runs[1].tokens, sizeof(runs[0].tokens)) == 0);
    CHECK(memcmp(runs[0].live, runs[1].live, sizeof(runs[0].live)) == 0);
}

static void test_what_leaves_does_not_depend_on_graphs_or_company(void **state)
{
    (void)state;
    check_leaving((struct run){.method = METHOD_H2O, .slots = 1, .evicts = true});
    check_leaving((struct run){.method = METHOD_H2O, .slots = 1, .evicts = true, .by_query = true});
    check_leaving((struct run){.method = METHOD_FASTGEN, .slots = 1, .evicts = true});
    check_leaving((struct run){.method = METHOD_STREAMINGLLM, .slots = 1, .rolls = true});
}

static void test_steps_are_filled_up_to_the_next_size(void **state)
{
    static const int cases[][2][STEP_KINDS] = {{{1, 0}, {1, 0}},   {{3, 0}, {4, 0}},
                                               {{0, 33}, {0, 48}}, {{64, 0}, {64, 0}},
                                               {{3, 5}, {4, 16}},  {{32, 32}, {32, 32}}};
    int rows[STEP_KINDS];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CHECK(step_graphs_fill(cases[i][0], rows));
        assert_memory_equal(rows, cases[i][1], sizeof(rows));
    }
    CHECK(!step_graphs_fill((const int[]){33, 1}, rows));
    CHECK(!step_graphs_fill((const int[]){1, 33}, rows));
}

/* One sequence by query head beside two by KV head, each kind filled up to four rows. */
static void test_caches_of_both_kinds_are_in_one_graph(void **state)
{
    const struct run keeps = {
        .method = METHOD_FASTKV, .slots = SAMPLES, .by_query = true, .both_kinds = true};
    struct run evicts = keeps;
    struct run alone = keeps;
    struct run graphs[] = {keeps, keeps}, plain[] = {keeps, keeps};

    (void)state;
    evicts.method = METHOD_H2O;
    evicts.evicts = true;
    graphs[1] = plain[1] = evicts;
    for (int i = 0; i < 2; i++) {
        plain[i].no_graphs = true;
        run_ranks(1, &graphs[i]);
        run_ranks(1, &plain[i]);
        CHECK(memcmp(graphs[i].tokens, plain[i].tokens, sizeof(plain[i].tokens)) == 0);
        CHECK(memcmp(graphs[i].live, plain[i].live, sizeof(plain[i].live)) == 0);
    }
    alone.slots = 1;
    run_ranks(1, &alone);
    for (int step = 0; step < STEPS; step++) {
        CHECK(graphs[0].tokens[step][0] == alone.tokens[step][0]);
    }
}

/* Three sequences fill a graph of four up; one has one of its own; without graphs there are none.
 */
static void test_tokens_are_the_same_from_graphs_and_in_any_company(void **state)
{
    struct run runs[] = {{.method = METHOD_FASTKV, .slots = SAMPLES},
                         {.method = METHOD_FASTKV, .slots = SAMPLES, .no_graphs = true},
                         {.method = METHOD_FASTKV, .slots = 1}};

    (void)state;
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
        run_ranks(1, &runs[i]);
        for (int step = 0; step < STEPS; step++) {
            CHECK(runs[i].tokens[step][0] == runs[0].tokens[step][0]);
            CHECK(i == 2 || runs[i].tokens[step][1] == runs[0].tokens[step][1]);
            CHECK(i == 2 || runs[i].tokens[step][2] == runs[0].tokens[step][2]);
        }
    }
}

/* Where one rank has no memory for a graph, all run their steps as they are. */
static void test_a_graph_without_memory_is_done_without(void **state)
{
    struct run whole = {.method = METHOD_FASTKV, .slots = 1};
    struct run refused = {.method = METHOD_FASTKV, .slots = 1, .refused = true};

    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++) {
        run_ranks(ranks, &whole);
        run_ranks(ranks, &refused);
        assert_memory_equal(whole.tokens, refused.tokens, sizeof(whole.tokens));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_step_waits_once_and_does_not_allocate),
        cmocka_unit_test(test_a_step_with_filters_waits_once),
        cmocka_unit_test(test_a_step_that_reports_logits_waits_once),
        cmocka_unit_test(test_one_wait_brings_the_logits_of_a_whole_step),
        cmocka_unit_test(test_a_step_that_evicts_waits_once),
        cmocka_unit_test(test_scores_behind_attention_find_no_normalisers),
        cmocka_unit_test(test_steps_are_filled_up_to_the_next_size),
        cmocka_unit_test(test_caches_of_both_kinds_are_in_one_graph),
        cmocka_unit_test(test_what_leaves_does_not_depend_on_graphs_or_company),
        cmocka_unit_test(test_a_graph_without_memory_is_done_without),
        cmocka_unit_test(test_tokens_are_the_same_from_graphs_and_in_any_company),
    };

    cmocka_set_test_filter(getenv("WINNOW_TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
