/* What the scheduler promises a request on each rank, against the pages that the engine then takes:
 * random methods, parameters, lengths and degrees. */
#include "common/slices.h"
#include "coordinator/scheduler.h"
#include "tests/check.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_group.h"
#include "worker/kvcache.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDENS WINNOW_SOURCE_DIR "/tests/goldens/data/"

enum {
    MAX_CONTEXT = 320,
    MAX_RANKS = 8,
    TRIALS = 44,        /* each method in turn */
    LONG_TRIALS = 1100, /* with WINNOW_TEST_LONG */
    PLENTY = 100000,    /* pages */
    MAX_SAMPLES = 5,
    LISTED = 5, /* token ids of FASTGEN's lists */
};

static const char *const models[] = {GOLDENS "llama-gqa/model", GOLDENS "mistral-hd/model",
                                     GOLDENS "mistral-sw/model"};

struct trial {
    uint64_t seed, random;
    const char *model;
    struct model_config config;
    int ranks;
    struct request request;
    uint32_t prompt[MAX_CONTEXT];
    float head_scores[MODEL_MAX_LAYERS * 64];
    uint32_t ids[LISTED];
    uint64_t page_bytes;
    uint64_t promise[MAX_RANKS]; /* pages; the engine's pool has no more */
    uint64_t peak[MAX_RANKS];    /* at the end of a step */
    uint64_t rest[MAX_RANKS];    /* what the worker says is the most after the choice */
    uint64_t peak_after[MAX_RANKS];
    struct failure failures[MAX_RANKS];
};

/* ---- chance ---- */

static uint64_t draw(struct trial *t)
{
    t->random += 0x9e3779b97f4a7c15ULL;
    uint64_t x = t->random;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

static int between(struct trial *t, int least, int most)
{
    return least + (int)(draw(t) % (uint64_t)(most - least + 1));
}

static double share(struct trial *t)
{
    return (double)(draw(t) % 1001) / 1000.0;
}

static bool flip(struct trial *t)
{
    return draw(t) & 1;
}

static void draw_own_params(struct trial *t, struct method_params *params)
{
    params->tsp_layer = between(t, 0, t->config.layers - 1);
    params->tsp_rate = 0.05 + 0.95 * share(t);
    params->tsp_len = between(t, 1, 200);
    params->filter_layer = between(t, 0, t->config.layers - 1);
    params->gem_keep_last = flip(t);
    params->floor_alpha = share(t);
    params->pyramid_beta = between(t, 1, 30);
    params->headkv_beta = 1.0 + 2 * share(t);
    params->headkv_temp = 0.1 + 2 * share(t);
    params->sinks = between(t, 0, 12);
    params->rolling = flip(t);
    params->pos_mode = flip(t) ? POSITION_ORIGINAL : POSITION_CACHE;
    params->h2o_causal = flip(t);
    params->h2o_dynamic = flip(t);
    params->pi_recent_ratio = share(t);
    params->pi_decay_ratio = share(t);
    params->pi_min_context = between(t, 0, 100);
    params->pi_sinks = between(t, 0, 8);
    params->fg_threshold = share(t);
    params->fg_local_ratio = share(t);
    params->fg_freq_ratio = share(t);
    params->fg_global_tokens = between(t, 0, 8);
    params->fg_special_ids = params->fg_punct_ids = t->ids;
    params->n_fg_special_ids = between(t, 0, LISTED);
    params->n_fg_punct_ids = between(t, 0, LISTED);
}

static void draw_params(struct trial *t, struct method_params *params)
{
    int method = METHOD_FULL + (int)(t->seed % (METHOD_COUNT - METHOD_FULL));

    method_defaults(params, (enum method)method, &t->config);
    params->absolute = flip(t);
    params->retain_rate = 0.02 + 0.98 * share(t) * share(t);
    params->capacity = between(t, 0, 20) ? between(t, 1, 250) : INT_MAX;
    params->window = between(t, 0, 3) ? between(t, 1, 20) : between(t, 1, 300);
    params->kernel = 1 + 2 * between(t, 0, 4);
    params->granularity = flip(t) ? GRANULARITY_KV : GRANULARITY_Q;
    params->group_reduce = (enum group_reduce)between(t, GROUP_SUM, GROUP_MAX);
    params->reduce_stage = (enum reduce_stage)between(t, REDUCE_PRE, REDUCE_POST);
    draw_own_params(t, params);
    if (params->method == METHOD_HEADKV) {
        params->n_head_scores = t->config.layers * t->config.query_heads;
        for (int i = 0; i < params->n_head_scores; i++) {
            t->head_scores[i] = (float)(share(t) * share(t) * share(t));
        }
        params->head_scores = t->head_scores;
    }
}

static void make_trial(struct trial *t, uint64_t seed)
{
    static const int degrees[] = {1, 1, 2, 3, 4, 8};
    struct request *request = &t->request;

    *t = (struct trial){.seed = seed, .random = seed};
    t->model = models[between(t, 0, 2)];
    CHECK_OK(model_config_load(&t->config, t->model));
    t->ranks = degrees[between(t, 0, 5)];
    t->ranks = t->ranks < t->config.query_heads ? t->ranks : t->config.query_heads;
    for (int i = 0; i < MAX_CONTEXT; i++) {
        t->prompt[i] = (uint32_t)between(t, 0, t->config.vocab - 1);
    }
    for (int i = 0; i < LISTED; i++) {
        t->ids[i] = (uint32_t)between(t, 0, t->config.vocab - 1);
    }
    *request = (struct request){
        .handle = 1,
        .prompt = t->prompt,
        .n_prompt = (uint32_t)(flip(t) ? between(t, 1, 60) : between(t, 1, 250)),
        .sampling = {.max_tokens = (uint32_t)between(t, 1, 70),
                     .temperature = 1,
                     .top_p = 1,
                     .repetition_penalty = 1},
        .n_samples = (uint32_t)(flip(t) ? 1 : between(t, 2, MAX_SAMPLES)),
        .deadline_ms = INT64_MAX,
    };
    draw_params(t, &request->params);
}

/* ---- the promise ---- */

static void no_progress(void *context, void *user, const struct request_progress *progress)
{
    (void)context;
    (void)user;
    (void)progress;
}

static bool no_token(void *context, void *user, uint32_t sample, const struct result_token *token,
                     bool stop)
{
    (void)context;
    (void)user;
    (void)sample;
    (void)token;
    return stop;
}

static void no_done(void *context, void *user, const struct request_done *done)
{
    (void)context;
    (void)user;
    (void)done;
}

static void no_end(void *context, void *user, const struct failure *failure)
{
    (void)context;
    (void)user;
    (void)failure;
}

static void describe(const struct trial *t)
{
    const struct method_params *params = &t->request.params;

    print_message("seed %llu (WINNOW_TEST_SEED): %s, %s, tp %d, %u + %u tokens, %u samples, "
                  "%s %g/%d, window %d, %s\n",
                  (unsigned long long)t->seed, t->model, method_name(params->method), t->ranks,
                  t->request.n_prompt, t->request.sampling.max_tokens, t->request.n_samples,
                  params->absolute ? "capacity" : "rate", params->retain_rate, params->capacity,
                  params->window, params->granularity == GRANULARITY_Q ? "by query head" : "");
}

static void ask_scheduler(struct trial *t)
{
    const struct scheduler_config config = {
        .model = &t->config,
        .ranks = t->ranks,
        .n_groups = 1,
        .max_context = MAX_CONTEXT,
        .sink = {no_progress, no_token, no_done, no_end, NULL, NULL},
    };
    const struct kvcache_config cache = {.head_dim = t->config.head_dim,
                                         .page_rows = ENGINE_PAGE_ROWS};
    uint32_t pages[MAX_RANKS];
    struct group_capacity capacity = {
        .epoch = 1, .page_rows = ENGINE_PAGE_ROWS, .pages = pages, .page_bytes = 1};
    struct scheduler *scheduler;
    bool retry;

    for (int rank = 0; rank < t->ranks; rank++) {
        pages[rank] = PLENTY;
    }
    t->page_bytes = kvcache_page_bytes(&cache, DTYPE_F32);
    CHECK_OK(scheduler_open(&scheduler, &config));
    CHECK_OK(scheduler_group_ready(scheduler, 0, &capacity, 0));
    status st = scheduler_submit(scheduler, &t->request, t, 0, &retry);
    if (st) {
        describe(t);
    }
    CHECK_OK(st);
    for (int rank = 0; rank < t->ranks; rank++) {
        t->promise[rank] = PLENTY - scheduler_pages_free(scheduler, 0, rank);
        CHECK(t->promise[rank] > 0);
    }
    scheduler_close(scheduler);
}

/* ---- what the engine takes ---- */

static void note(struct trial *t, int rank, const struct step_result *result)
{
    uint64_t used = result->kv_bytes_used / t->page_bytes;

    t->peak[rank] = used > t->peak[rank] ? used : t->peak[rank];
    if (result->n_prompts && !result->prompts[0].after_decode) {
        const struct result_prompt *prompt = &result->prompts[0];
        t->rest[rank] =
            prompt->shared_pages + t->request.n_samples * (prompt->pages - prompt->shared_pages);
    }
    if (t->rest[rank] && used > t->peak_after[rank]) {
        t->peak_after[rank] = used;
    }
}

static int count_slices(const struct trial *t)
{
    struct slices walk;
    struct slice slice;
    int n = 0;

    slices_begin(&walk, &t->request.params, &t->config, (int)t->request.n_prompt);
    while (slices_next(&walk, &slice)) {
        n++;
    }
    return n;
}

static status run_plans(struct trial *t, struct bench *bench, int rank)
{
    const struct request *request = &t->request;
    struct plan_begin begin[MAX_SAMPLES];
    uint32_t slots[MAX_SAMPLES] = {0};

    begin[0] = (struct plan_begin){
        .slot = 0,
        .n_prompt = request->n_prompt,
        .prompt = request->prompt,
        .params = request->params,
        .sampling = request->sampling,
        .max_rows = request->sampling.max_tokens - 1,
    };
    const struct plan_advance advance = {.slot = 0, .slices = 1};
    struct plan plan = {.n_begin = 1, .begin = begin};
    struct step_result result;
    status st;

    for (uint32_t i = 1; i < request->n_samples; i++) {
        slots[i] = i;
        begin[i] = (struct plan_begin){.slot = i, .sampling.sample = i, .forks = true, .source = 0};
    }
    int left = count_slices(t);
    do {
        plan.number = bench->number++;
        st = engine_step(bench->engine, &plan, &result);
        if (!st) {
            note(t, rank, &result);
        }
        left -= plan.n_advance > 0;
        plan = (struct plan){.n_advance = 1, .advance = &advance};
        if (left == 1) {
            plan.n_begin = request->n_samples - 1;
            plan.begin = begin + 1;
        }
    } while (!st && t->rest[rank] == 0);
    for (uint32_t i = 0; !st && i < begin[0].max_rows; i++) {
        st = bench_decode(bench, slots, request->n_samples, &result);
        if (!st) {
            note(t, rank, &result);
        }
    }
    return st;
}

static status run_rank(struct comm *comm, void *context)
{
    struct trial *t = context;
    int rank = comm_rank(comm);
    const struct bench_config config = {
        .model = t->model,
        .dtype = DTYPE_F32,
        .max_context = MAX_CONTEXT,
        .kv_bytes = t->promise[rank] * t->page_bytes,
    };
    struct bench bench;
    status st = bench_open(&bench, comm, &config);

    if (!st) {
        st = run_plans(t, &bench, rank);
    }
    bench_close(&bench);
    status_save(&t->failures[rank], st);
    return STATUS_OK;
}

/* Heads whose rows nobody knows before the scores are there; see method.h.  Of samples, also what
 * each changes of the others' where heads differ; and where rows leave, when they will. */
static bool is_bound(const struct request *request)
{
    const struct method_params *params = &request->params;

    return params->method == METHOD_ADAKV || params->method == METHOD_FASTGEN ||
           (request->n_samples > 1 && (method_heads_differ(params) || method_evicts(params)));
}

static bool holds(const struct trial *t)
{
    bool good = true;

    for (int rank = 0; rank < t->ranks; rank++) {
        good = good && !t->failures[rank].code;
        good = good && t->peak[rank] <= t->promise[rank] && t->rest[rank] <= t->promise[rank];
        good = good && t->peak_after[rank] <= t->rest[rank];
        if (!is_bound(&t->request)) {
            good = good && t->rest[rank] == t->promise[rank];
        }
    }
    return good;
}

static void check(const struct trial *t)
{
    if (holds(t)) {
        return;
    }
    describe(t);
    for (int rank = 0; rank < t->ranks; rank++) {
        print_message("rank %d: promised %llu pages, used %llu, said %llu, then used %llu; %s\n",
                      rank, (unsigned long long)t->promise[rank], (unsigned long long)t->peak[rank],
                      (unsigned long long)t->rest[rank], (unsigned long long)t->peak_after[rank],
                      t->failures[rank].text);
    }
    fail_msg("the promise does not hold");
}

/* One page less than the promise is too little, so the promise is exact. */
static void check_tight(struct trial *t)
{
    if (t->ranks > 1 || is_bound(&t->request) || t->promise[0] == 1) {
        return;
    }
    t->promise[0]--;
    t->rest[0] = 0;
    group_run(1, run_rank, t);
    if (t->failures[0].code != STATUS_EXHAUSTED) {
        describe(t);
        fail_msg("%llu pages suffice, one less than promised", (unsigned long long)t->promise[0]);
    }
}

static void test_the_promise_is_what_the_engine_needs(void **state)
{
    static struct trial trial;
    const char *seed_text = getenv("WINNOW_TEST_SEED");
    uint64_t first = seed_text ? strtoull(seed_text, NULL, 10) : 1;
    uint64_t trials = getenv("WINNOW_TEST_LONG") ? LONG_TRIALS : TRIALS;

    (void)state;
    for (uint64_t seed = first; seed < first + trials; seed++) {
        make_trial(&trial, seed);
        ask_scheduler(&trial);
        group_run(trial.ranks, run_rank, &trial);
        check(&trial);
        check_tight(&trial);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_promise_is_what_the_engine_needs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
