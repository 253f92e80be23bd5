/* Memory that is missing when a plan is applied, at every allocation once, on either rank: the
 * request that needed it fails on all ranks alike, its neighbour's tokens are those of an
 * undisturbed run, nothing is left behind, and the group goes on.  And memory that is missing when
 * an engine is opened: it is refused, and not found missing by a plan. */
#include "common/log.h"
#include "common/slices.h"
#include "tests/check.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_group.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define GOLDENS WINNOW_SOURCE_DIR "/tests/goldens/data/"

/* ---- allocations, of which one fails ---- */

static _Thread_local int left = -1; /* before it; below 0: none fails */

static bool fails(void)
{
    return left >= 0 && left-- == 0;
}

/* NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier): the linker's names. */
void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
void *__real_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);

void *__wrap_malloc(size_t bytes)
{
    return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    return fails() ? NULL : __real_aligned_alloc(align, bytes);
}

void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    if (fails()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return __real_mmap(at, bytes, protection, flags, fd, offset);
}
/* NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier) */

/* ---- a request with a fork beside a neighbour ---- */

enum { RANKS = 2, N_PROMPT = 40, STEPS = 3, VOCAB = 512, CASES = 5, NEIGHBOUR = 2, SLOTS = 3 };

/* What a run of the three slots gave. */
struct view {
    struct outcome outcomes[SLOTS];
    bool failed[SLOTS]; /* reported by this rank */
};

struct lack_run {
    int n_failures[RANKS]; /* allocations that were made to fail */
    int n_requests;        /* that failed for it */
};

static void make_begin(struct plan_begin *begin, uint32_t *prompt, const struct model *model,
                       int which)
{
    static const enum method methods[CASES + 1] = {METHOD_FULL, METHOD_FASTKV,       METHOD_FASTGEN,
                                                   METHOD_H2O,  METHOD_STREAMINGLLM, METHOD_SNAPKV};
    static const uint32_t ids[4] = {3, 5, 7, 9};
    bool neighbour = which == CASES;

    *begin = (struct plan_begin){
        .slot = neighbour ? NEIGHBOUR : 0,
        .n_prompt = N_PROMPT,
        .prompt = prompt,
        .sampling = {.temperature = 1.0F,
                     .top_p = 0.9F,
                     .repetition_penalty = 1.2F,
                     .logprobs = 3,
                     .seed = 5},
        .trace =
            neighbour ? 0U : (uint32_t)(TRACE_PROMPT_LOGITS | TRACE_STEP_LOGITS | TRACE_SELECTED),
        .max_rows = neighbour ? 60 : STEPS,
        .first_row = neighbour ? 0 : 64,
    };
    method_defaults(&begin->params, methods[which], &model->config);
    begin->params.retain_rate = 0.5;
    begin->params.tsp_rate = 0.5;
    begin->params.h2o_dynamic = true;
    begin->params.rolling = true;
    begin->params.pos_mode = POSITION_CACHE;
    if (methods[which] == METHOD_FASTGEN) {
        begin->params.fg_special_ids = ids;
        begin->params.n_fg_special_ids = 2;
        begin->params.fg_punct_ids = ids + 2;
        begin->params.n_fg_punct_ids = 2;
    }
    for (uint32_t t = 0; t < N_PROMPT; t++) {
        prompt[t] = (t * 17 + t * t % 13 + (uint32_t)which) % VOCAB;
    }
}

static status step(struct bench *bench, struct plan *plan, struct view *view)
{
    struct step_result result;

    plan->number = bench->number++;
    status st = engine_step(bench->engine, plan, &result);
    if (st) {
        return st;
    }
    int armed = left;
    left = -1; /* what the test keeps of it is not the engine's */
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        outcome_take(&view->outcomes[slot], &result, slot);
    }
    for (uint32_t i = 0; i < result.n_failed; i++) {
        view->failed[result.failed[i]] = true;
    }
    left = armed;
    return STATUS_OK;
}

/* The request begins, is read two slices a plan, forks where its prompt ends and decodes; the
 * neighbour decodes in every plan. */
static status run_request(struct bench *bench, const struct plan_begin *begin, struct view *view)
{
    static const uint32_t neighbour = NEIGHBOUR, slots[SLOTS] = {0, 1, NEIGHBOUR};
    const struct plan_begin fork = {
        .slot = 1, .sampling.sample = 1, .forks = true, .source = begin->slot};
    struct slices walk;
    struct slice slice;
    status st = STATUS_OK;

    slices_begin(&walk, &begin->params, &bench->model->config, (int)begin->n_prompt);
    for (bool first = true; !st && walk.next.end != 0; first = false) {
        struct plan_advance advance = {.slot = begin->slot};
        while (advance.slices < 2 && slices_next(&walk, &slice)) {
            advance.slices++;
        }
        struct plan_begin begins[2] = {*begin, fork};
        bool last = walk.next.end == 0;
        struct plan plan = {.n_begin = (first ? 1U : 0U) + (last ? 1U : 0U),
                            .begin = first ? begins : begins + 1,
                            .n_advance = 1,
                            .advance = &advance,
                            .n_decode = 1,
                            .decode = &neighbour};
        st = step(bench, &plan, view);
    }
    for (int i = 0; !st && i < STEPS; i++) {
        struct plan plan = {.n_decode = SLOTS, .decode = slots};
        st = step(bench, &plan, view);
    }
    return st;
}

/* Once through, with the allocation `failing` of it failing on this rank; *used = bytes of pages
 * that are left. */
static status run_once(struct bench *bench, int which, int failing, struct view *view,
                       uint64_t *used)
{
    static const uint32_t slots[SLOTS] = {0, 1, NEIGHBOUR};
    uint32_t prompts[2][N_PROMPT];
    struct plan_begin neighbour, begin;
    struct step_result result;

    make_begin(&neighbour, prompts[0], bench->model, CASES);
    make_begin(&begin, prompts[1], bench->model, which);
    status st = bench_prompt(bench, &neighbour, &view->outcomes[NEIGHBOUR]);
    left = failing;
    st = st ? st : run_request(bench, &begin, view);
    struct plan plan = {.number = bench->number++, .n_release = SLOTS, .release = slots};
    st = st ? st : engine_step(bench->engine, &plan, &result);
    *used = st ? 0 : result.kv_bytes_used;
    return st;
}

static bool same_tokens(const struct outcome *a, const struct outcome *b)
{
    return a->n_tokens == b->n_tokens &&
           (a->n_tokens == 0 ||
            memcmp(a->tokens, b->tokens, (size_t)a->n_tokens * sizeof(*a->tokens)) == 0);
}

/* Who was not given up has its tokens; `lost` (slots): given up on any rank.  A fork is lost with
 * its source, and is not named then. */
static status check_view(const struct view *view, const struct view *plain, const float *lost)
{
    for (int slot = 0; slot < SLOTS; slot++) {
        bool whole = same_tokens(&view->outcomes[slot], &plain->outcomes[slot]);
        bool given_up = lost[slot] > 0 || (slot == 1 && lost[0] > 0);
        if (given_up ? slot == NEIGHBOUR : !whole) {
            return status_fail(STATUS_INTERNAL, "slot %d has %d tokens of %d", slot,
                               view->outcomes[slot].n_tokens, plain->outcomes[slot].n_tokens);
        }
    }
    return STATUS_OK;
}

static void view_free(struct view *view)
{
    for (int slot = 0; slot < SLOTS; slot++) {
        outcome_free(&view->outcomes[slot]);
    }
}

/* Every allocation at first, then some of those that are alike: a trace's lists, rows of logits. */
static int next_to_fail(int nth)
{
    return nth < 12 ? nth + 1 : nth + 7;
}

/* *triggered: there was such an allocation on the victim. */
static status fail_one(struct comm *comm, struct bench *bench, int which, int victim, int nth,
                       const struct view *plain, struct lack_run *run, bool *triggered)
{
    struct view view = {0};
    float shared[SLOTS + 1] = {0};
    uint64_t used = 0;
    bool mine = comm_rank(comm) == victim;
    status st = run_once(bench, which, mine ? nth : -1, &view, &used);

    shared[SLOTS] = mine && left < 0 ? 1 : 0;
    left = -1;
    for (int slot = 0; slot < SLOTS; slot++) {
        shared[slot] = view.failed[slot] ? 1 : 0;
    }
    if (!st) {
        st = comm_all_reduce(comm, shared, SLOTS + 1);
    }
    *triggered = shared[SLOTS] > 0;
    if (!st) {
        st = used ? status_fail(STATUS_INTERNAL, "%d bytes are left", (int)used)
                  : check_view(&view, plain, shared);
    }
    if (!st && *triggered && mine) {
        run->n_failures[victim]++;
        run->n_requests += shared[0] > 0 || shared[1] > 0;
    }
    view_free(&view);
    return st ? status_note(st, "case %d, allocation %d of rank %d", which, nth, victim) : st;
}

static status run_lack(struct comm *comm, void *context)
{
    const struct bench_config config = {.model = GOLDENS "llama-gqa/model",
                                        .dtype = DTYPE_F32,
                                        .max_context = 128,
                                        .kv_bytes = 16 << 20};
    struct bench bench;
    status st = bench_open(&bench, comm, &config);

    for (int which = 0; !st && which < CASES; which++) {
        struct view plain = {0};
        uint64_t used;
        st = run_once(&bench, which, -1, &plain, &used);
        for (int victim = which % RANKS; victim < (which ? which % RANKS + 1 : RANKS); victim++) {
            bool triggered = true;
            for (int nth = 0; !st && triggered; nth = next_to_fail(nth)) {
                st = fail_one(comm, &bench, which, victim, nth, &plain, context, &triggered);
            }
        }
        view_free(&plain);
    }
    bench_close(&bench);
    return st;
}

static void test_missing_memory_fails_the_request_that_needs_it_and_no_other(void **state)
{
    struct lack_run run = {0};

    (void)state;
    log_init("test", LOG_ERROR, false);
    group_run(RANKS, run_lack, &run);
    /* A prompt, lists, page tables, a trace, logits: of each case some, on each rank. */
    CHECK(run.n_failures[0] > 45 && run.n_failures[1] > 45);
    assert_int_equal(run.n_requests, run.n_failures[0] + run.n_failures[1]);
}

/* ---- an engine that is opened ---- */

static status open_with_one_failing(struct comm *comm, void *context)
{
    const struct device_config device = {.dtype = DTYPE_F32, .threads = 1};
    const struct engine_config config = {.max_context = 128, .kv_bytes = 16 << 20};
    struct device *dev = NULL;
    struct model *model = NULL;
    struct engine *engine = NULL;
    int *n_failures = context;
    status st = device_open(&dev, "cpu", &device);

    if (!st) {
        st = model_open(&model, dev, GOLDENS "llama-gqa/model", 0, 1);
    }
    for (bool opened = false; !st && !opened;) {
        left = *n_failures;
        status lack = engine_open(&engine, dev, model, comm, &config);
        opened = left >= 0;
        left = -1;
        if (lack != (opened ? STATUS_OK : STATUS_EXHAUSTED)) {
            st = status_fail(STATUS_INTERNAL, "allocation %d missing: status %d", *n_failures,
                             (int)lack);
        }
        *n_failures += !opened;
    }
    engine_close(engine);
    model_close(model);
    device_close(dev);
    return st;
}

static void test_an_engine_without_memory_for_any_of_its_buffers_is_not_opened(void **state)
{
    int n_failures = 0;

    (void)state;
    log_init("test", LOG_ERROR, false);
    group_run(1, open_with_one_failing, &n_failures);
    CHECK(n_failures > 40); /* scratch alone has so many buffers */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_engine_without_memory_for_any_of_its_buffers_is_not_opened),
        cmocka_unit_test(test_missing_memory_fails_the_request_that_needs_it_and_no_other),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
