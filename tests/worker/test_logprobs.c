/* Log-probabilities over vocabulary shards against their definition. */
#include "tests/check.h"
#include "tests/worker/helpers_group.h"
#include "worker/logprobs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_VOCAB = 61, ROWS = 9, MAX_TOP = PLAN_MAX_LOGPROBS };

struct logprobs_run {
    int vocab;
    int batch;           /* rows of a call */
    const float *logits; /* (ROWS, vocab) */
    struct logprobs_row rows[ROWS];
    int32_t tokens[ROWS];               /* that were chosen */
    struct logprobs_found found[ROWS];  /* of rank 0 */
    struct logprobs_found others[ROWS]; /* of the last rank */
};

static status open_member(struct member *member, struct model *model, struct comm *comm, int vocab)
{
    const struct device_config device = {.dtype = DTYPE_F32, .threads = 1};

    *model = (struct model){.config = {.name = "test",
                                       .layers = 1,
                                       .hidden = 8,
                                       .intermediate = 8,
                                       .query_heads = 8,
                                       .kv_heads = 8,
                                       .head_dim = 8,
                                       .vocab = vocab}};
    *member = (struct member){.model = model, .comm = comm, .max_context = 1};
    status st = split_for_rank(&model->split, &model->config, comm_rank(comm), comm_size(comm));
    return st ? st : device_open(&member->dev, "cpu", &device);
}

static status find_in_batches(const struct logprobs_run *run, const struct member *member,
                              struct logprobs *logprobs, struct logprobs_found *found)
{
    const struct split *split = &member->model->split;
    struct drawn chosen[ROWS];
    float shard[ROWS * MAX_VOCAB];
    struct logprobs_found *list[ROWS];
    status st = STATUS_OK;

    for (int r = 0; r < ROWS; r++) {
        memcpy(shard + (size_t)r * (size_t)split->vocab_rows,
               run->logits + (size_t)r * (size_t)run->vocab + (size_t)split->vocab_first,
               (size_t)split->vocab_rows * sizeof(*shard));
        list[r] = &found[r];
        chosen[r] = (struct drawn){.id = run->tokens[r]};
    }
    for (int at = 0; !st && at < ROWS; at += run->batch) {
        int n = ROWS - at < run->batch ? ROWS - at : run->batch;
        const struct logprobs_step step = {
            .logits = shard, .chosen = chosen, .rows = ROWS, .wanted = run->rows + at, .n = n};
        st = logprobs_begin(logprobs, &step);
        if (!st) {
            st = device_sync(member->dev);
        }
        if (!st) {
            st = logprobs_end(logprobs, list + at, &step, run->tokens);
        }
    }
    return st;
}

static status find_on_rank(struct comm *comm, void *context)
{
    struct logprobs_run *run = context;
    struct logprobs_found found[ROWS] = {{0}};
    struct shards *shards = NULL;
    struct logprobs *logprobs = NULL;
    struct member member;
    struct model model;
    status st = open_member(&member, &model, comm, run->vocab);

    if (!st) {
        st = shards_create(&shards, &member);
    }
    if (!st) {
        st = logprobs_create(&logprobs, &member, shards);
    }
    if (!st) {
        st = find_in_batches(run, &member, logprobs, found);
    }
    if (comm_rank(comm) == 0) {
        memcpy(run->found, found, sizeof(found));
    }
    if (comm_rank(comm) == comm_size(comm) - 1) {
        memcpy(run->others, found, sizeof(found));
    }
    logprobs_destroy(logprobs);
    shards_destroy(shards);
    device_close(member.dev);
    return st;
}

static bool is_near(double a, double b)
{
    return fabs(a - b) <= 1e-5 * (1 + fabs(b));
}

static void check_row(const struct logprobs_run *run, int r)
{
    const float *row = run->logits + (size_t)r * (size_t)run->vocab;
    const struct logprobs_found *found = &run->found[r];
    bool taken[MAX_VOCAB] = {false};
    int n = run->rows[r].n_top < run->vocab ? run->rows[r].n_top : run->vocab;
    double sum = 0;

    for (int i = 0; i < run->vocab; i++) {
        sum += exp((double)row[i]);
    }
    CHECK(is_near(found->logprob, row[run->tokens[r]] - log(sum)));
    CHECK(found->n_top == (uint32_t)n);
    for (int k = 0; k < n; k++) {
        int best = -1;
        for (int i = 0; i < run->vocab; i++) {
            if (!taken[i] && (best < 0 || row[i] > row[best])) {
                best = i;
            }
        }
        taken[best] = true;
        CHECK(found->top_ids[k] == (uint32_t)best);
        CHECK(is_near(found->top_logprobs[k], row[best] - log(sum)));
    }
}

/* Logits on a grid of quarters, so that many are equal. */
static void make_run(struct logprobs_run *run, float *logits, int vocab)
{
    uint32_t seed = (uint32_t)vocab;

    *run = (struct logprobs_run){.vocab = vocab, .batch = ROWS, .logits = logits};
    for (int i = 0; i < ROWS * vocab; i++) {
        seed = seed * 1664525U + 1013904223U;
        logits[i] = (float)((seed >> 20) % 29) / 4.0F - 3.0F;
    }
    for (int r = 0; r < ROWS; r++) {
        run->rows[r] = (struct logprobs_row){r, r * MAX_TOP / (ROWS - 1)};
        run->tokens[r] = (r * 17 + 5) % vocab;
    }
}

static void test_logprobs_match_their_definition_at_any_rank_count(void **state)
{
    static const int vocabs[] = {MAX_VOCAB, 9};
    static struct logprobs_run run;
    float logits[ROWS * MAX_VOCAB];

    (void)state;
    for (int v = 0; v < 2; v++) {
        make_run(&run, logits, vocabs[v]);
        for (int ranks = 1; ranks <= 5; ranks += 2) {
            group_run(ranks, find_on_rank, &run);
            for (int r = 0; r < ROWS; r++) {
                check_row(&run, r);
            }
            assert_memory_equal(run.found, run.others, sizeof(run.found));
        }
    }
}

static void test_bits_do_not_depend_on_the_other_rows(void **state)
{
    static struct logprobs_run run;
    struct logprobs_found alone[ROWS];
    float logits[ROWS * MAX_VOCAB];

    (void)state;
    make_run(&run, logits, MAX_VOCAB);
    run.batch = 1;
    group_run(2, find_on_rank, &run);
    memcpy(alone, run.found, sizeof(alone));
    for (run.batch = 2; run.batch <= ROWS; run.batch++) {
        group_run(2, find_on_rank, &run);
        assert_memory_equal(alone, run.found, sizeof(alone));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logprobs_match_their_definition_at_any_rank_count),
        cmocka_unit_test(test_bits_do_not_depend_on_the_other_rows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
