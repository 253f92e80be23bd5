/* What the policies choose in thousands of random layers, against plain definitions, and that it
 * is the same on every number of ranks. */
#include "tests/check.h"
#include "tests/definitions/attention.h"
#include "tests/definitions/select.h"
#include "tests/worker/helpers_group.h"
#include "worker/policy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_ROWS = 60,
    MAX_KV_HEADS = 4,
    MAX_GROUP = 3, /* up to here a split group is added up in the same order as a whole one */
    MAX_HEADS = MAX_KV_HEADS * MAX_GROUP,
    HEAD_DIM = 8,
    MAX_WINDOW = 8,
    LAYERS = 2,
    MAX_RANKS = 5,
    ROUNDS = 2400,
    GROUP_ROUNDS = 500, /* for each number of ranks */
};

/* One random layer, the same on every rank. */
struct trial {
    struct model_config config;
    struct method_params params;
    int rows;
    float k[MAX_KV_HEADS * MAX_ROWS * HEAD_DIM]; /* (KV heads of the model, rows, head_dim) */
    float q[MAX_WINDOW * MAX_HEADS * HEAD_DIM];  /* (window, query heads of the model, head_dim) */
    float head_scores[LAYERS * MAX_HEADS];
    float columns[MAX_HEADS * MAX_ROWS]; /* (query heads of the model, rows) */
};

struct list {
    int n;
    int32_t rows[MAX_ROWS];
};

struct choice {
    struct list kept[MAX_HEADS]; /* by cache head of the model */
    struct list propagated;
    int spoken_for[MAX_HEADS];          /* how many ranks report the head */
    float scores[MAX_HEADS * MAX_ROWS]; /* (cache heads, rows - window), of one rank alone */
};

static int below(uint64_t *seed, int n)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((*seed >> 33) % (uint64_t)n);
}

/* Few different numbers, so that whole rows, and with `alike` whole heads, score the same. */
static void fill(float *x, int n, int period, int kinds, uint64_t *seed)
{
    for (int i = 0; i < n; i++) {
        x[i] = i < period ? (float)(below(seed, kinds) - (kinds >> 1)) : x[i % period];
    }
}

static void make_params(struct trial *t, enum method method, uint64_t *seed)
{
    struct method_params *p = &t->params;

    method_defaults(p, method, &t->config);
    p->window = 1 + below(seed, MAX_WINDOW);
    p->kernel = 1 + 2 * below(seed, 3);
    p->pooling = below(seed, 2) ? POOLING_MAX : POOLING_AVG;
    p->granularity = below(seed, 2) ? GRANULARITY_KV : GRANULARITY_Q;
    p->group_reduce = (enum group_reduce)(1 + below(seed, 3));
    p->reduce_stage = below(seed, 2) ? REDUCE_PRE : REDUCE_POST;
    p->absolute = true;
    p->capacity = 1 + below(seed, t->rows + 4);
    p->tsp_len = 1 + below(seed, t->rows + 4);
    p->tsp_layer = 0;
    p->floor_alpha = 0.1 * below(seed, 11);
    p->pyramid_beta = 1 + below(seed, 20);
    p->sinks = below(seed, 6);
    p->head_scores = t->head_scores;
    p->n_head_scores = LAYERS * t->config.query_heads;
    for (int i = 0; i < p->n_head_scores; i++) {
        t->head_scores[i] = (float)(1 + below(seed, 9));
    }
}

static void make_trial(struct trial *t, int round)
{
    static const enum method tried[] = {METHOD_FASTKV, METHOD_SNAPKV,    METHOD_ADAKV,
                                        METHOD_HEADKV, METHOD_PYRAMIDKV, METHOD_STREAMINGLLM,
                                        METHOD_H2O};
    uint64_t seed = (uint64_t)round * 7919 + 1;
    int heads = 1 + below(&seed, MAX_KV_HEADS);
    int group = 1 + below(&seed, MAX_GROUP);
    int kinds = 1 + below(&seed, 4);
    bool alike = below(&seed, 3) == 0;

    *t = (struct trial){.config = {.name = "test",
                                   .layers = LAYERS,
                                   .hidden = 8,
                                   .intermediate = 32,
                                   .query_heads = heads * group,
                                   .kv_heads = heads,
                                   .head_dim = HEAD_DIM,
                                   .vocab = 32}};
    t->rows = 1 + below(&seed, MAX_ROWS);
    make_params(t, tried[round % 7], &seed);
    int keys = heads * t->rows * HEAD_DIM;
    int queries = t->params.window * heads * group * HEAD_DIM;
    fill(t->k, keys, alike ? t->rows * HEAD_DIM : keys, kinds, &seed);
    fill(t->q, queries, alike ? HEAD_DIM : queries, kinds, &seed);
    fill(t->columns, heads * group * t->rows, heads * group * t->rows, kinds, &seed);
}

/* ---- one rank ---- */

struct rank_run {
    int rounds;
    struct choice *choices; /* (rounds), filled by all ranks */
};

static status open_member(struct member *member, struct model *model, const struct trial *t,
                          struct comm *comm, struct device *dev)
{
    *model = (struct model){.config = t->config};
    *member = (struct member){
        .dev = dev, .model = model, .comm = comm, .max_context = MAX_ROWS, .shared_hash = 1};
    status st = split_for_rank(&model->split, &t->config, comm_rank(comm), comm_size(comm));

    return st ? st : scratch_create(&member->scratch, dev, model, MAX_ROWS, comm_size(comm));
}

/* The queries of this rank's heads. */
static void take_queries(float *out, const struct trial *t, const struct split *split)
{
    for (int w = 0; w < t->params.window; w++) {
        memcpy(out + (size_t)(w * split->query_heads * HEAD_DIM),
               t->q + (size_t)((w * t->config.query_heads + split->query_first) * HEAD_DIM),
               (size_t)(split->query_heads * HEAD_DIM) * sizeof(*out));
    }
}

/* Ranks that share a KV head fill in the same list: it is compared by member_check_hashes(). */
static void take_choice(struct choice *out, struct member *member, const struct trial *t,
                        const struct policy_choice *choice)
{
    struct cache_heads heads = member_cache_heads(member, &t->params);

    for (int h = 0; h < heads.n; h++) {
        struct list list = {.n = choice->n_kept[h]};
        for (int i = 0; i < list.n; i++) {
            list.rows[i] =
                choice->kept ? choice->kept[(size_t)h * choice->kept_stride + (size_t)i] : i;
        }
        if (!method_caches_by_query(&t->params)) {
            member->head_hash = member_hash(member->head_hash, list.rows, list.n);
        }
        if (heads.speaks) {
            out->kept[heads.first + h] = list;
            out->spoken_for[heads.first + h]++;
        }
    }
    if (choice->propagated) {
        member->shared_hash =
            member_hash(member->shared_hash, choice->propagated, choice->n_propagated);
    }
    if (comm_rank(member->comm) == 0 && choice->propagated) {
        out->propagated.n = choice->n_propagated;
        memcpy(out->propagated.rows, choice->propagated,
               (size_t)choice->n_propagated * sizeof(int32_t));
    }
    if (comm_size(member->comm) == 1) {
        memcpy(out->scores, member->scratch->pooled, (size_t)(heads.n * t->rows) * sizeof(float));
    }
}

static status run_trial(struct choice *out, struct member *member, const struct trial *t)
{
    const struct split *split = &member->model->split;
    float q[MAX_WINDOW * MAX_HEADS * HEAD_DIM];
    int32_t positions[MAX_ROWS];
    int32_t propagated[MAX_ROWS];
    struct policy_choice choice = {0};
    size_t stride = (size_t)(t->rows * HEAD_DIM);

    for (int i = 0; i < t->rows; i++) {
        positions[i] = i;
    }
    take_queries(q, t, split);
    status st =
        policy_for(t->params.method)
            ->choose(member,
                     &(struct policy_layer){
                         .params = &t->params,
                         .rows = t->rows,
                         .counts = method_layer_rows(&t->params, &t->config, t->rows, 0, t->rows),
                         .k = t->k + (size_t)split->kv_first * stride,
                         .v = t->k + (size_t)split->kv_first * stride,
                         .kv_stride = stride,
                         .window_q = q,
                         .columns = t->columns + (size_t)(split->query_first * t->rows),
                         .positions = positions,
                         .propagated = propagated,
                     },
                     &choice);
    if (!st) {
        take_choice(out, member, t, &choice);
        st = member_check_hashes(member);
    }
    return st;
}

static status run_rank(struct comm *comm, void *context)
{
    const struct device_config config = {.dtype = DTYPE_F32, .threads = 1};
    struct rank_run *run = context;
    struct device *dev = NULL;
    status st = device_open(&dev, "cpu", &config);

    for (int round = 0; !st && round < run->rounds; round++) {
        struct trial t;
        struct model model;
        struct member member;
        make_trial(&t, round);
        if (comm_size(comm) > t.config.query_heads) {
            continue;
        }
        st = open_member(&member, &model, &t, comm, dev);
        if (!st) {
            st = run_trial(&run->choices[round], &member, &t);
        }
        scratch_destroy(member.scratch);
        if (st) {
            st = status_note(st, "round %d", round);
        }
    }
    device_close(dev);
    return st;
}

/* ---- the definitions, by the scores of one rank alone ---- */

struct entry {
    float score;
    int at;
};

static int by_rank(const void *a, const void *b)
{
    const struct entry *x = a;
    const struct entry *y = b;

    return x->score == y->score ? x->at - y->at : x->score < y->score ? 1 : -1;
}

static int ascending(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

/* The n - window best of the rows before the window, and the window. */
static void best_rows(struct list *out, const float *scores, int rows, int window, int n)
{
    struct entry entries[MAX_ROWS];

    for (int i = 0; i < rows - window; i++) {
        entries[i] = (struct entry){scores[i], i};
    }
    qsort(entries, (size_t)(rows - window), sizeof(*entries), by_rank);
    out->n = n;
    for (int i = 0; i < n; i++) {
        out->rows[i] = i < n - window ? entries[i].at : rows - n + i;
    }
    qsort(out->rows, (size_t)n, sizeof(*out->rows), ascending);
}

/* ADAKV: the layer-wide top places, counted by head. */
static void count_won(int *won, const struct trial *t, const float *scores)
{
    struct entry entries[MAX_HEADS * MAX_ROWS];
    int heads = method_cache_heads(&t->params, &t->config);
    int n = t->rows - t->params.window;
    int places = (int)method_adakv_places(&t->params, &t->config, t->rows);

    for (int i = 0; i < heads * n; i++) {
        entries[i] = (struct entry){scores[i], i};
    }
    qsort(entries, (size_t)(heads * n), sizeof(*entries), by_rank);
    memset(won, 0, (size_t)heads * sizeof(*won));
    for (int i = 0; i < places; i++) {
        won[entries[i].at / n]++;
    }
}

/* Scores (cache heads, rows - window) from those of the query heads, (query heads, n), before or
 * without pooling. */
static void define_groups(double *out, const struct trial *t, const float *by_query, int n)
{
    int group = t->config.query_heads / t->config.kv_heads;

    if (method_caches_by_query(&t->params)) {
        for (int i = 0; i < t->config.query_heads * n; i++) {
            out[i] = by_query[i];
        }
    } else {
        define_group_reduce(out, by_query, t->config.kv_heads, group, n, t->params.group_reduce);
    }
}

static void narrow(float *out, const double *in, int n)
{
    for (int i = 0; i < n; i++) {
        out[i] = (float)in[i];
    }
}

/* The window score of every cache head, from the queries and keys on. */
static void define_window(double *out, const struct trial *t)
{
    int n = t->rows - t->params.window;
    bool pre = t->params.reduce_stage == REDUCE_PRE;
    int heads = pre ? method_cache_heads(&t->params, &t->config) : t->config.query_heads;
    double wide[MAX_HEADS * MAX_ROWS];
    float scores[MAX_HEADS * MAX_ROWS];
    int32_t positions[MAX_ROWS];

    for (int i = 0; i < t->rows; i++) {
        positions[i] = i;
    }
    define_window_scores(wide, &(struct window_scores){
                                   .q = t->q,
                                   .k = t->k,
                                   .kv_stride = (size_t)(t->rows * HEAD_DIM),
                                   .positions = positions,
                                   .window = t->params.window,
                                   .n_keys = t->rows,
                                   .q_heads = t->config.query_heads,
                                   .kv_heads = t->config.kv_heads,
                                   .head_dim = HEAD_DIM,
                               });
    narrow(scores, wide, t->config.query_heads * n);
    if (pre) {
        define_groups(wide, t, scores, n);
        narrow(scores, wide, heads * n);
    }
    define_pool(out, scores, heads, n, t->params.kernel, t->params.pooling);
    if (!pre) {
        narrow(scores, out, heads * n);
        define_groups(out, t, scores, n);
    }
}

/* H2O ranks by column sums.  They are small whole numbers here, so that sums are exact. */
static void define_columns(float *out, const struct trial *t)
{
    int n = t->rows - t->params.window;
    double wide[MAX_HEADS * MAX_ROWS];

    define_groups(wide, t, t->columns, t->rows);
    for (int h = 0; h < method_cache_heads(&t->params, &t->config); h++) {
        narrow(out + (size_t)(h * n), wide + (size_t)(h * t->rows), n);
    }
}

static int wanted_rows(const struct trial *t, const int *of_heads, int head, int uniform)
{
    switch (t->params.method) {
    case METHOD_ADAKV:
        return method_adakv_rows(&t->params, t->rows, of_heads[head]);
    case METHOD_HEADKV:
        return of_heads[head];
    default:
        return uniform;
    }
}

static void define_streaming(struct list *out, const struct trial *t, int n)
{
    out->n = n;
    for (int i = 0; i < n; i++) {
        out->rows[i] = i < t->params.sinks ? i : t->rows - n + i;
    }
}

static void define_kept(struct list *out, const struct trial *t, const float *scores)
{
    struct layer_rows counts = method_layer_rows(&t->params, &t->config, t->rows, 0, t->rows);
    int heads = method_cache_heads(&t->params, &t->config);
    int n = t->rows - t->params.window;
    int of_heads[MAX_HEADS] = {0};
    float columns[MAX_HEADS * MAX_ROWS];

    if (counts.selects && t->params.method == METHOD_H2O) {
        define_columns(columns, t);
        scores = columns;
    }
    if (counts.selects && t->params.method == METHOD_ADAKV) {
        count_won(of_heads, t, scores);
    } else if (counts.selects && t->params.method == METHOD_HEADKV) {
        method_headkv_rows(&t->params, &t->config, 0, t->rows, of_heads);
    }
    for (int h = 0; h < heads; h++) {
        int kept = counts.selects ? wanted_rows(t, of_heads, h, counts.kept) : t->rows;
        if (!counts.selects || t->params.method == METHOD_STREAMINGLLM) {
            define_streaming(&out[h], t, kept);
        } else {
            best_rows(&out[h], scores + (size_t)(h * n), t->rows, t->params.window, kept);
        }
    }
}

static void check_list(const struct list *got, const struct list *expected, int round, int head)
{
    if (got->n != expected->n ||
        memcmp(got->rows, expected->rows, (size_t)got->n * sizeof(*got->rows)) != 0) {
        fail_msg("round %d, head %d: %d rows, expected %d, or others", round, head, got->n,
                 expected->n);
    }
}

static struct choice alone[ROUNDS]; /* what one rank chooses; see choose_alone() */
static struct choice grouped[GROUP_ROUNDS];

static int choose_alone(void **state)
{
    struct rank_run run = {ROUNDS, alone};

    (void)state;
    group_run(1, run_rank, &run);
    return 0;
}

static void test_choices_are_as_defined(void **state)
{
    int selected = 0;

    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct list expected[MAX_HEADS];
        struct trial t;
        memset(expected, 0, sizeof(expected));
        make_trial(&t, round);
        define_kept(expected, &t, alone[round].scores);
        for (int h = 0; h < method_cache_heads(&t.params, &t.config); h++) {
            CHECK(alone[round].spoken_for[h] == 1);
            check_list(&alone[round].kept[h], &expected[h], round, h);
            selected += expected[h].n < t.rows;
        }
    }
    CHECK(selected > ROUNDS / 2);
}

/* The mean over a query group is kept as its sum, which ranks alike. */
static void check_scores(const struct trial *t, const struct choice *choice, int round)
{
    int n = t->rows - t->params.window;
    bool summed = t->params.group_reduce == GROUP_MEAN && !method_caches_by_query(&t->params);
    double scale = summed ? (double)t->config.query_heads / (double)t->config.kv_heads : 1.0;
    double expected[MAX_HEADS * MAX_ROWS];

    define_window(expected, t);
    for (int i = 0; i < method_cache_heads(&t->params, &t->config) * n; i++) {
        if (!(fabs(choice->scores[i] - scale * expected[i]) <=
              1e-5 * (1.0 + scale * expected[i]))) {
            fail_msg("round %d: score %d is %g, expected %g", round, i, (double)choice->scores[i],
                     scale * expected[i]);
        }
    }
}

/* Every granularity, reduction, stage and pooling, as far as the methods have them. */
static void test_scores_are_as_defined(void **state)
{
    int checked = 0;

    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct trial t;
        make_trial(&t, round);
        if (t.params.method != METHOD_STREAMINGLLM && t.params.method != METHOD_H2O &&
            method_layer_rows(&t.params, &t.config, t.rows, 0, t.rows).selects) {
            check_scores(&t, &alone[round], round);
            checked++;
        }
    }
    CHECK(checked > ROUNDS / 3);
}

static void check_ranks(int ranks)
{
    struct rank_run run = {GROUP_ROUNDS, grouped};

    memset(grouped, 0, sizeof(grouped));
    group_run(ranks, run_rank, &run);
    for (int round = 0; round < GROUP_ROUNDS; round++) {
        struct trial t;
        make_trial(&t, round);
        if (ranks > t.config.query_heads) {
            continue;
        }
        for (int h = 0; h < method_cache_heads(&t.params, &t.config); h++) {
            CHECK(grouped[round].spoken_for[h] == 1);
            check_list(&grouped[round].kept[h], &alone[round].kept[h], round, h);
        }
        check_list(&grouped[round].propagated, &alone[round].propagated, round, -1);
    }
}

/* Heads dealt evenly and unevenly, and query groups split over two and three ranks. */
static void test_ranks_choose_as_one_rank_does(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= MAX_RANKS; ranks++) {
        check_ranks(ranks);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scores_are_as_defined),
        cmocka_unit_test(test_choices_are_as_defined),
        cmocka_unit_test(test_ranks_choose_as_one_rank_does),
    };

    return cmocka_run_group_tests(tests, choose_alone, NULL);
}
