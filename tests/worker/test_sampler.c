#include "tests/check.h"
#include "tests/worker/helpers_group.h"
#include "worker/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 61, MAX_RANKS = 5, MAX_STEPS = 20000 };

/* Every row has the same logits; row r of call c is step c * rows + r of its sequence. */
struct sampler_run {
    const float *logits; /* (VOCAB) */
    struct sampling sampling;
    int rows;
    int steps;
    int32_t *ids;    /* (steps), of rank 0 */
    int32_t *others; /* (steps), of the last rank */
};

static status open_member(struct member *member, struct model *model, struct comm *comm)
{
    const struct device_config device = {.dtype = DTYPE_F32, .threads = 1};
    status st;

    *model = (struct model){.config = {.name = "test",
                                       .layers = 1,
                                       .hidden = 8,
                                       .intermediate = 8,
                                       .query_heads = 8,
                                       .kv_heads = 8,
                                       .head_dim = 8,
                                       .vocab = VOCAB}};
    *member = (struct member){.model = model, .comm = comm, .max_context = 1};
    st = split_for_rank(&model->split, &model->config, comm_rank(comm), comm_size(comm));
    return st ? st : device_open(&member->dev, "cpu", &device);
}

static status sample_steps(const struct sampler_run *run, const struct member *member,
                           struct sampler *sampler, int32_t *ids)
{
    const struct split *split = &member->model->split;
    struct sampler_row rows[OP_MAX_DECODE_ROWS];
    float *logits = calloc((size_t)run->rows * (size_t)split->vocab_rows, sizeof(*logits));
    status st = STATUS_OK;

    for (int r = 0; r < run->rows; r++) {
        memcpy(logits + (size_t)r * (size_t)split->vocab_rows, run->logits + split->vocab_first,
               (size_t)split->vocab_rows * sizeof(*logits));
    }
    for (int at = 0; !st && at < run->steps; at += run->rows) {
        for (int r = 0; r < run->rows; r++) {
            rows[r] = (struct sampler_row){&run->sampling, (uint32_t)(at + r)};
        }
        st = sampler_begin(sampler, logits, rows, run->rows);
        if (!st) {
            st = device_sync(member->dev);
        }
        if (!st) {
            st = sampler_end(sampler, ids + at, run->rows);
        }
    }
    free(logits);
    return st;
}

static status sample_on_rank(struct comm *comm, void *context)
{
    struct sampler_run *run = context;
    struct shards *shards = NULL;
    struct sampler *sampler = NULL;
    struct member member;
    struct model model;
    int32_t *ids = calloc((size_t)run->steps, sizeof(*ids));
    status st = open_member(&member, &model, comm);

    if (!st) {
        st = shards_create(&shards, &member);
    }
    if (!st) {
        st = sampler_create(&sampler, &member, shards);
    }
    if (!st) {
        st = sample_steps(run, &member, sampler, ids);
    }
    if (!st && comm_rank(comm) == 0) {
        memcpy(run->ids, ids, (size_t)run->steps * sizeof(*ids));
    }
    if (!st && comm_rank(comm) == comm_size(comm) - 1) {
        memcpy(run->others, ids, (size_t)run->steps * sizeof(*ids));
    }
    sampler_destroy(sampler);
    shards_destroy(shards);
    device_close(member.dev);
    free(ids);
    return st;
}

static void sample(struct sampler_run *run, int ranks, int32_t *ids)
{
    static int32_t others[MAX_STEPS];

    run->ids = ids;
    run->others = others;
    group_run(ranks, sample_on_rank, run);
    assert_memory_equal(ids, others, (size_t)run->steps * sizeof(*ids));
}

/* Seeded logits on a grid of quarters, so that many are equal. */
static void make_logits(float *logits, uint32_t seed)
{
    for (int i = 0; i < VOCAB; i++) {
        seed = seed * 1664525U + 1013904223U;
        logits[i] = (float)((seed >> 20) % 29) / 4.0F - 3.0F;
    }
}

/* What a plain sort says: ids by logit, ties by the lower id. */
static const float *sorting;

static int best_first(const void *a, const void *b)
{
    int x = *(const int *)a;
    int y = *(const int *)b;

    if (sorting[x] != sorting[y]) {
        return sorting[x] > sorting[y] ? -1 : 1;
    }
    return x - y;
}

/* probability (VOCAB) after temperature, top_k, top_p, min_p; 0 for what is left out. */
static void expected_set(double *probability, const float *logits, const struct sampling *sampling)
{
    int order[VOCAB];
    double weight[VOCAB];
    double total = 0;
    double sum = 0;
    int n = sampling->top_k ? (int)sampling->top_k : VOCAB;

    for (int i = 0; i < VOCAB; i++) {
        order[i] = i;
    }
    sorting = logits;
    qsort(order, VOCAB, sizeof(*order), best_first);
    n = n < VOCAB ? n : VOCAB;
    for (int i = 0; i < n; i++) {
        weight[i] = exp(((double)logits[order[i]] - logits[order[0]]) / sampling->temperature);
        total += weight[i];
    }
    if (sampling->top_p < 1.0F) {
        double mass = 0;
        int kept = 0;
        while (kept < n && mass < (double)sampling->top_p * total) {
            mass += weight[kept++];
        }
        n = kept > 0 ? kept : 1;
    }
    while (n > 1 && weight[n - 1] < sampling->min_p) {
        n--;
    }
    memset(probability, 0, VOCAB * sizeof(*probability));
    for (int i = 0; i < n; i++) {
        sum += weight[i];
    }
    for (int i = 0; i < n; i++) {
        probability[order[i]] = weight[i] / sum;
    }
}

/* Each id of the set is drawn about as often as it should be, and no other id at all. */
static void check_distribution(const struct sampler_run *run, const char *what)
{
    double probability[VOCAB];
    int count[VOCAB] = {0};

    expected_set(probability, run->logits, &run->sampling);
    for (int i = 0; i < run->steps; i++) {
        CHECK(run->ids[i] >= 0 && run->ids[i] < VOCAB);
        count[run->ids[i]]++;
    }
    for (int id = 0; id < VOCAB; id++) {
        double mean = probability[id] * run->steps;
        double deviation = sqrt(mean * (1 - probability[id]));
        if (probability[id] == 0 && count[id] > 0) {
            fail_msg("%s: id %d is not in the set but was drawn %d times", what, id, count[id]);
        }
        if (fabs(count[id] - mean) > 5 * deviation + 1) {
            fail_msg("%s: id %d was drawn %d times, expected %.1f +- %.1f", what, id, count[id],
                     mean, deviation);
        }
        if (mean > 50 && count[id] == 0) {
            fail_msg("%s: id %d is in the set but was never drawn", what, id);
        }
    }
}

static const struct {
    const char *what;
    struct sampling sampling;
} filters[] = {
    {"temperature", {.temperature = 1.0F, .top_p = 1.0F}},
    {"low temperature", {.temperature = 0.5F, .top_p = 1.0F}},
    {"top_k 1", {.temperature = 2.0F, .top_p = 1.0F, .top_k = 1}},
    {"top_k 7", {.temperature = 4.0F, .top_p = 1.0F, .top_k = 7}},
    {"top_k 8", {.temperature = 4.0F, .top_p = 1.0F, .top_k = 8}},
    {"top_k all", {.temperature = 4.0F, .top_p = 1.0F, .top_k = VOCAB}},
    {"top_p 0.5", {.temperature = 3.0F, .top_p = 0.5F}},
    {"top_p 0.93", {.temperature = 3.0F, .top_p = 0.93F}},
    {"top_p 0.001", {.temperature = 3.0F, .top_p = 0.001F}},
    {"min_p 0.3", {.temperature = 3.0F, .top_p = 1.0F, .min_p = 0.3F}},
    {"min_p 1", {.temperature = 3.0F, .top_p = 1.0F, .min_p = 1.0F}},
    {"top_k and top_p", {.temperature = 4.0F, .top_p = 0.7F, .top_k = 13}},
    {"top_k and top_p near 1", {.temperature = 4.0F, .top_p = 0.9999999F, .top_k = 13}},
    {"all three", {.temperature = 4.0F, .top_p = 0.8F, .top_k = 30, .min_p = 0.4F}},
};
enum { N_FILTERS = sizeof(filters) / sizeof(filters[0]) };

static void test_draws_follow_the_exact_probabilities(void **state)
{
    static int32_t ids[MAX_STEPS];
    float logits[VOCAB];

    (void)state;
    for (int i = 0; i < N_FILTERS; i++) {
        make_logits(logits, 77 + (uint32_t)i);
        struct sampler_run run = {
            .logits = logits, .sampling = filters[i].sampling, .rows = 50, .steps = MAX_STEPS};
        run.sampling.seed = 1234 + (uint64_t)i;
        sample(&run, 1, ids);
        check_distribution(&run, filters[i].what);
    }
}

static void test_tokens_do_not_depend_on_ranks_or_batch(void **state)
{
    enum { STEPS = 120 };
    static const int rows[] = {1, 3, 8, 60};
    static const int ranks[] = {2, 3, 5};
    int32_t alone[STEPS];
    int32_t ids[STEPS];
    float logits[VOCAB];

    (void)state;
    for (int i = 0; i < N_FILTERS; i++) {
        make_logits(logits, 177 + (uint32_t)i);
        struct sampler_run run = {
            .logits = logits, .sampling = filters[i].sampling, .rows = 60, .steps = STEPS};
        run.sampling.seed = 99 + (uint64_t)i;
        sample(&run, 1, alone);
        for (int r = 0; r < 4; r++) {
            run.rows = rows[r];
            sample(&run, 1, ids);
            assert_memory_equal(ids, alone, sizeof(ids));
        }
        run.rows = 60;
        for (int r = 0; r < 3; r++) {
            sample(&run, ranks[r], ids);
            assert_memory_equal(ids, alone, sizeof(ids));
        }
    }
}

static void test_seed_and_sample_change_the_draw(void **state)
{
    enum { STEPS = 60 };
    int32_t ids[3][STEPS];
    float logits[VOCAB];
    struct sampler_run run = {.logits = logits,
                              .sampling = {.temperature = 2.0F, .top_p = 1.0F, .seed = 5},
                              .rows = 60,
                              .steps = STEPS};

    (void)state;
    make_logits(logits, 3);
    sample(&run, 1, ids[0]);
    run.sampling.sample = 1;
    sample(&run, 1, ids[1]);
    run.sampling = (struct sampling){.temperature = 2.0F, .top_p = 1.0F, .seed = 6};
    sample(&run, 1, ids[2]);
    assert_memory_not_equal(ids[0], ids[1], sizeof(ids[0]));
    assert_memory_not_equal(ids[0], ids[2], sizeof(ids[0]));
}

static void test_greedy_takes_the_lowest_of_equals(void **state)
{
    float logits[VOCAB] = {0};
    int32_t id;
    struct sampler_run run = {
        .logits = logits, .sampling = {.top_p = 0.5F, .top_k = 3}, .rows = 1, .steps = 1};

    (void)state;
    logits[20] = logits[40] = logits[60] = 1.0F;
    for (int ranks = 1; ranks <= MAX_RANKS; ranks++) {
        sample(&run, ranks, &id);
        CHECK(id == 20);
    }
}

static status sample_expecting_failure(struct comm *comm, void *context)
{
    status st = sample_on_rank(comm, context);

    if (st != STATUS_INTERNAL || !strstr(status_text(), "logits are not")) {
        return status_fail(STATUS_INTERNAL, "status %d: %s", (int)st, st ? status_text() : "");
    }
    return STATUS_OK;
}

static void test_logits_that_are_not_numbers_are_an_error(void **state)
{
    float logits[VOCAB];
    int32_t id;
    struct sampler_run run = {
        .logits = logits, .sampling = {.top_p = 1.0F}, .rows = 1, .steps = 1, .ids = &id};

    (void)state;
    for (int i = 0; i < VOCAB; i++) {
        logits[i] = NAN;
    }
    run.others = &id;
    group_run(2, sample_expecting_failure, &run);
    for (int i = 0; i < VOCAB; i++) {
        logits[i] = i == 30 ? INFINITY : 0.0F;
    }
    run.sampling = (struct sampling){.temperature = 1.0F, .top_p = 0.5F};
    group_run(2, sample_expecting_failure, &run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_draws_follow_the_exact_probabilities),
        cmocka_unit_test(test_tokens_do_not_depend_on_ranks_or_batch),
        cmocka_unit_test(test_seed_and_sample_change_the_draw),
        cmocka_unit_test(test_greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(test_logits_that_are_not_numbers_are_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
