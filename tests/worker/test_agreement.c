/* The whole engine under random requests: every method with parameters from all of their ranges,
 * prompts from one token on, on several numbers of ranks.  The engines check every selection across
 * their ranks (check_selection), so a step where two ranks chose differently ends with an error;
 * what the ranks report is checked here to be one whole choice. */
#include "tests/check.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_group.h"

#include <stdlib.h>
#include <string.h>

#define GOLDENS WINNOW_SOURCE_DIR "/tests/goldens/data/"

enum { MAX_RANKS = 4, MAX_PROMPT = 70, NEW = 2, ROUNDS = 88, MAX_SCORES = 256, MAX_IDS = 8 };

static int below(uint64_t *seed, int n)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((*seed >> 33) % (uint64_t)n);
}

/* One random request, the same on every rank. */
struct trial {
    struct plan_begin begin;
    uint32_t prompt[MAX_PROMPT];
    float head_scores[MAX_SCORES];
    uint32_t ids[MAX_IDS];
};

static void choose_common(struct method_params *p, int n, uint64_t *seed)
{
    p->window = 1 + below(seed, 12);
    p->kernel = 1 + 2 * below(seed, 4);
    p->pooling = below(seed, 2) ? POOLING_MAX : POOLING_AVG;
    p->granularity = below(seed, 2) ? GRANULARITY_KV : GRANULARITY_Q;
    p->group_reduce = (enum group_reduce)(1 + below(seed, 3));
    p->reduce_stage = below(seed, 2) ? REDUCE_PRE : REDUCE_POST;
    p->absolute = below(seed, 2);
    p->capacity = 1 + below(seed, n + 4);
    p->retain_rate = 0.02 * (1 + below(seed, 50));
}

static void choose_own(struct method_params *p, const struct model_config *config, struct trial *t,
                       uint64_t *seed)
{
    p->tsp_layer = below(seed, config->layers);
    p->tsp_len = 1 + below(seed, MAX_PROMPT);
    p->tsp_rate = 0.05 * (1 + below(seed, 20));
    p->filter_layer = below(seed, config->layers);
    p->gem_kernel = 1 + 2 * below(seed, 4);
    p->gem_keep_last = below(seed, 2);
    p->floor_alpha = 0.1 * below(seed, 11);
    p->pyramid_beta = 1 + below(seed, 20);
    p->headkv_beta = 1.0 + 0.1 * below(seed, 30);
    p->headkv_temp = 0.5 + 0.5 * below(seed, 4);
    p->sinks = below(seed, 6);
    p->rolling = below(seed, 2);
    p->pos_mode = below(seed, 2) ? POSITION_ORIGINAL : POSITION_CACHE;
    p->h2o_causal = below(seed, 4) != 0;
    p->h2o_dynamic = below(seed, 2);
    p->pi_min_context = below(seed, 20);
    p->pi_sinks = below(seed, 6);
    p->pi_recent_ratio = 0.1 * below(seed, 6);
    p->pi_decay_ratio = 0.1 * below(seed, 10);
    p->fg_threshold = 0.1 * (1 + below(seed, 10));
    p->fg_global_tokens = below(seed, 5);
    p->n_head_scores = p->method == METHOD_HEADKV ? config->layers * config->query_heads : 0;
    p->head_scores = t->head_scores;
    for (int i = 0; i < p->n_head_scores; i++) {
        t->head_scores[i] = (float)(1 + below(seed, 9));
    }
    p->n_fg_special_ids = p->n_fg_punct_ids = p->method == METHOD_FASTGEN ? MAX_IDS / 2 : 0;
    p->fg_special_ids = t->ids;
    p->fg_punct_ids = t->ids + MAX_IDS / 2;
}

/* Few different tokens, so that scores tie. */
static void make_trial(struct trial *t, const struct model_config *config, int round)
{
    uint64_t seed = (uint64_t)round * 7919 + 3;
    int kinds = 1 + below(&seed, 30);
    int n = 1 + below(&seed, round % 3 ? MAX_PROMPT : 12);

    t->begin = (struct plan_begin){.n_prompt = (uint32_t)n,
                                   .prompt = t->prompt,
                                   .sampling = {.top_p = 1.0F},
                                   .trace = TRACE_SELECTED,
                                   .max_rows = NEW};
    for (int i = 0; i < MAX_PROMPT; i++) {
        t->prompt[i] = (uint32_t)below(&seed, kinds);
    }
    for (int i = 0; i < MAX_IDS; i++) {
        t->ids[i] = (uint32_t)below(&seed, 30);
    }
    method_defaults(&t->begin.params, (enum method)(1 + round % (METHOD_COUNT - 1)), config);
    choose_common(&t->begin.params, n, &seed);
    choose_own(&t->begin.params, config, t, &seed);
}

struct agreement_run {
    const char *model;
    struct model_config config;
    struct outcome (*outcomes)[MAX_RANKS]; /* (ROUNDS, ranks) */
};

static status run_rank(struct comm *comm, void *context)
{
    struct agreement_run *run = context;
    const struct bench_config config = {.model = run->model,
                                        .dtype = DTYPE_F32,
                                        .max_context = MAX_PROMPT + NEW + 1,
                                        .kv_bytes = 16 << 20};
    struct bench bench;
    uint64_t used = 0;
    status st = bench_open(&bench, comm, &config);

    if (!st && comm_rank(comm) == 0) {
        run->config = bench.model->config;
    }
    for (int round = 0; !st && round < ROUNDS; round++) {
        struct trial t;
        make_trial(&t, &bench.model->config, round);
        st = bench_generate(&bench, &t.begin, &run->outcomes[round][comm_rank(comm)]);
        if (!st) {
            st = bench_release(&bench, t.begin.slot, &used);
        }
        if (!st && used != 0) {
            st = status_fail(STATUS_INTERNAL, "pages are in use after the release");
        }
        if (st) {
            st = status_note(st, "round %d: %s of %u tokens", round,
                             method_name(t.begin.params.method), t.begin.n_prompt);
        }
    }
    bench_close(&bench);
    return st;
}

/* Ascending, of the prompt, and not more than admission counted. */
static void check_head(const struct outcome_head *head, const struct trial *t, int round, int most)
{
    for (uint32_t i = 0; i < head->n; i++) {
        if (head->kept[i] >= t->begin.n_prompt || (i > 0 && head->kept[i] <= head->kept[i - 1])) {
            fail_msg("round %d: kept row %u of layer %u, head %u", round, i, head->layer,
                     head->head);
        }
    }
    if ((int)head->n > most) {
        fail_msg("round %d: layer %u, head %u keeps %u rows, counted %d", round, head->layer,
                 head->head, head->n, most);
    }
}

/* The ranks together report every cache head of every layer once, and their bytes are its rows'. */
static void check_round(const struct agreement_run *run, int ranks, int round)
{
    static struct trial t;
    const struct outcome *outcomes = run->outcomes[round];
    int seen[MODEL_MAX_LAYERS][64] = {0};
    uint64_t rows = 0, counted = 0;

    make_trial(&t, &run->config, round);
    for (int r = 0; r < ranks; r++) {
        counted += outcomes[r].kv_rows;
        for (int i = 0; i < outcomes[r].n_heads; i++) {
            const struct outcome_head *head = &outcomes[r].heads[i];
            int in = (int)outcomes[0].tokens_in[head->layer];
            struct layer_rows layer = method_layer_rows(
                &t.begin.params, &run->config, (int)t.begin.n_prompt, (int)head->layer, in);
            check_head(head, &t, round, layer.kept);
            seen[head->layer][head->head]++;
            rows += head->n;
        }
    }
    for (int l = 0; l < run->config.layers; l++) {
        for (int h = 0; h < method_cache_heads(&t.begin.params, &run->config); h++) {
            CHECK(seen[l][h] == 1);
        }
    }
    CHECK(rows == counted);
    CHECK(outcomes[0].n_tokens == NEW + 1);
    for (int i = 1; i < outcomes[0].n_propagated; i++) {
        CHECK(outcomes[0].propagated[i] > outcomes[0].propagated[i - 1]);
    }
}

static void check_agreement(const char *model, int ranks)
{
    struct agreement_run run = {.model = model, .outcomes = calloc(ROUNDS, sizeof(*run.outcomes))};

    assert_non_null(run.outcomes);
    group_run(ranks, run_rank, &run);
    for (int round = 0; round < ROUNDS; round++) {
        check_round(&run, ranks, round);
        for (int r = 0; r < ranks; r++) {
            outcome_free(&run.outcomes[round][r]);
        }
    }
    free(run.outcomes);
}

static void test_two_ranks_agree(void **state)
{
    (void)state;
    check_agreement(GOLDENS "llama-gqa/model", 2);
    check_agreement(GOLDENS "mistral-hd/model", 2);
}

static void test_ranks_with_uneven_shares_agree(void **state)
{
    (void)state;
    check_agreement(GOLDENS "llama-gqa/model", 3);
}

/* Two KV heads on three and four ranks, under a sliding window. */
static void test_ranks_that_share_heads_agree(void **state)
{
    (void)state;
    check_agreement(GOLDENS "mistral-sw/model", 3);
    check_agreement(GOLDENS "mistral-sw/model", 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_ranks_agree),
        cmocka_unit_test(test_ranks_with_uneven_shares_agree),
        cmocka_unit_test(test_ranks_that_share_heads_agree),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
