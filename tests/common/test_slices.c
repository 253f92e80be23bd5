#include "common/slices.h"
#include "tests/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct model_config config = {.layers = 5,
                                           .hidden = 64,
                                           .intermediate = 96,
                                           .query_heads = 4,
                                           .kv_heads = 2,
                                           .head_dim = 16,
                                           .vocab = 100};

static struct method_params full(void)
{
    struct method_params params;

    method_defaults(&params, METHOD_FULL, &config);
    return params;
}

static struct method_params fastkv(int tsp_layer, double tsp_rate)
{
    struct method_params params;

    method_defaults(&params, METHOD_FASTKV, &config);
    params.tsp_layer = tsp_layer;
    params.tsp_rate = tsp_rate;
    return params;
}

/* Of a query and a key. */
static double pair_work(void)
{
    return 4.0 * config.head_dim * config.query_heads;
}

/* What a slice may cost: so many rows of the linear layers. */
static double most_work(void)
{
    const struct slice first = {.kind = SLICE_WHOLE, .end = 1, .rows = 1, .chosen = 1};

    return SLICE_MOST_WORK * SLICE_ROWS * (slice_work(&config, &first) - pair_work());
}

/* Keys first, of all rows, then their scores, then queries: the rows of each part exactly once. */
static void check_parts(const struct method_params *params, int n_prompt, int scoring)
{
    static const enum slice_kind parts[] = {SLICE_KEYS, SLICE_SCORES, SLICE_QUERIES};
    struct slices it;
    struct slice slice;

    slices_begin(&it, params, &config, n_prompt);
    for (int layer = 0; layer < config.layers; layer++) {
        int chosen = layer == config.layers - 1 ? 1 : n_prompt;
        for (int part = 0; part < 3; part++) {
            int end = part == 2 ? chosen : n_prompt;
            int at = part == 1 ? n_prompt - scoring : 0;
            while (at < end) {
                CHECK(slices_next(&it, &slice));
                CHECK(slice.layer == layer && slice.kind == parts[part] && slice.begin == at);
                CHECK(slice.rows == n_prompt && slice.chosen == chosen && slice.apart);
                CHECK(slice.end > at && slice.end <= end && slice.end - at <= SLICE_ROWS);
                CHECK(slice.end - at <= SLICE_LEAST_ROWS ||
                      slice_work(&config, &slice) <= most_work());
                at = slice.end;
                CHECK(slice.chooses == (part == 1 && at == end));
            }
        }
    }
    CHECK(!slices_next(&it, &slice));
}

/* One chunk after the other; each but the last has as many rows as its work allows. */
static void check_chunk(const struct slice *slice, int total, int *next)
{
    int rows = slice->end - slice->begin;
    struct slice twice = *slice;

    assert_int_equal(slice->begin, *next);
    CHECK(rows > 0 && slice->end <= total);
    CHECK(rows <= SLICE_LEAST_ROWS || slice_work(&config, slice) <= most_work());
    if (slice->end < total) {
        CHECK(rows >= SLICE_LEAST_ROWS && rows <= SLICE_ROWS && (rows & (rows - 1)) == 0);
        assert_int_equal(slice->begin % rows, 0);
        twice.end = slice->begin + 2 * rows < total ? slice->begin + 2 * rows : total;
        bool would_score = slice->scoring > 0 && twice.end > slice->rows - slice->scoring;
        CHECK(rows == SLICE_ROWS || would_score || slice_work(&config, &twice) > most_work());
    }
    *next = slice->end == total ? 0 : slice->end;
}

/* Takes the slices of one part of a layer: rows begin..total. */
static void check_part(struct slices *it, const struct slice *part, int begin, int total)
{
    struct slice slice;
    int next = begin;

    do {
        CHECK(slices_next(it, &slice));
        CHECK(slice.layer == part->layer && slice.kind == part->kind);
        CHECK(slice.rows == part->rows && slice.chosen == part->chosen);
        check_chunk(&slice, total, &next);
        CHECK(slice.chooses == (part->chooses && next == 0));
    } while (next != 0);
}

/* Takes the slices of one layer that `rows` enter, and returns how many leave it. */
static int check_layer(struct slices *it, int layer, int rows, int chosen)
{
    struct slice part = {.layer = layer, .rows = rows, .chosen = chosen};
    bool apart = it->next.apart;
    bool whole = chosen == rows && !apart;

    part.kind = whole ? SLICE_WHOLE : SLICE_KEYS;
    part.chooses = !apart;
    int scoring = it->next.scoring;
    check_part(it, &part, 0, rows);
    if (apart) {
        part.kind = SLICE_SCORES;
        part.chooses = true;
        check_part(it, &part, rows - scoring, rows);
    }
    if (!whole) {
        part.kind = SLICE_QUERIES;
        part.chooses = false;
        check_part(it, &part, 0, chosen);
    }
    return chosen;
}

/* Every row of every layer is in exactly one slice of its kind. */
static void check_prompt(const struct method_params *params, int n_prompt)
{
    struct slices it;
    struct slice slice;
    int rows = n_prompt;

    slices_begin(&it, params, &config, n_prompt);
    for (int layer = 0; layer < config.layers; layer++) {
        int chosen = layer == config.layers - 1
                         ? 1
                         : method_layer_rows(params, &config, n_prompt, layer, rows).propagated;
        rows = check_layer(&it, layer, rows, chosen);
    }
    assert_int_equal(rows, 1);
    CHECK(!slices_next(&it, &slice));
    CHECK(!slices_next(&it, &slice));
}

static const int lengths[] = {1, 2, 7, 8, 9, 100, 511, 512, 513, 1024, 1025, 5000, 131072};

static void test_every_row_of_a_full_prompt_is_covered_exactly_once(void **state)
{
    struct method_params params = full();

    (void)state;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        check_prompt(&params, lengths[i]);
    }
}

static void test_chunks_shrink_where_attention_outweighs_the_rest(void **state)
{
    struct method_params params = full();
    struct slices it;
    struct slice slice;
    int rows[2] = {0};

    (void)state;
    slices_begin(&it, &params, &config, 131072);
    for (int i = 0; slices_next(&it, &slice) && slice.layer == 0; i++) {
        rows[0] = i == 0 ? slice.end - slice.begin : rows[0];
        CHECK(i == 0 || slice.end - slice.begin <= rows[1]);
        rows[1] = slice.end - slice.begin;
    }
    CHECK(rows[0] == SLICE_ROWS && rows[1] == SLICE_LEAST_ROWS);
}

static void test_rows_dropped_by_fastkv_get_keys_but_no_queries(void **state)
{
    (void)state;
    for (int layer = 0; layer < config.layers; layer++) {
        for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
            struct method_params params = fastkv(layer, 0.2);
            check_prompt(&params, lengths[i]);
            params = fastkv(layer, 1.0);
            check_prompt(&params, lengths[i]);
        }
    }
}

/* The prompt is cut into exactly these. */
static void check_slices(const struct method_params *params, int n_prompt,
                         const struct slice *expected, size_t n)
{
    struct slices it;
    struct slice slice;

    slices_begin(&it, params, &config, n_prompt);
    for (size_t i = 0; i < n; i++) {
        const struct slice *e = &expected[i];
        CHECK(slices_next(&it, &slice));
        CHECK(slice.kind == e->kind && slice.layer == e->layer);
        CHECK(slice.begin == e->begin && slice.end == e->end);
        CHECK(slice.rows == e->rows && slice.chosen == e->chosen);
        CHECK(slice.chooses == e->chooses && slice.filter == e->filter);
        CHECK(slice.nth_layer == e->nth_layer);
    }
    CHECK(!slices_next(&it, &slice));
}

static void test_a_fastkv_prompt_is_cut_as_drawn(void **state)
{
    static const struct slice expected[] = {
        {SLICE_WHOLE, 0, 0, 512, 1000, 1000, false, false, 0, 0, false, 0},
        {SLICE_WHOLE, 0, 512, 1000, 1000, 1000, true, false, 0, 0, false, 0},
        {SLICE_KEYS, 1, 0, 512, 1000, 600, false, false, 1, 0, false, 0},
        {SLICE_KEYS, 1, 512, 1000, 1000, 600, true, false, 1, 0, false, 0},
        {SLICE_QUERIES, 1, 0, 512, 1000, 600, false, false, 1, 0, false, 0},
        {SLICE_QUERIES, 1, 512, 600, 1000, 600, false, false, 1, 0, false, 0},
        {SLICE_WHOLE, 2, 0, 512, 600, 600, false, false, 2, 0, false, 0},
        {SLICE_WHOLE, 2, 512, 600, 600, 600, true, false, 2, 0, false, 0},
        {SLICE_WHOLE, 3, 0, 512, 600, 600, false, false, 3, 0, false, 0},
        {SLICE_WHOLE, 3, 512, 600, 600, 600, true, false, 3, 0, false, 0},
        {SLICE_KEYS, 4, 0, 512, 600, 1, false, false, 4, 0, false, 0},
        {SLICE_KEYS, 4, 512, 600, 600, 1, true, false, 4, 0, false, 0},
        {SLICE_QUERIES, 4, 0, 1, 600, 1, false, false, 4, 0, false, 0},
    };
    struct method_params params = fastkv(1, 0.6);

    (void)state;
    check_slices(&params, 1000, expected, sizeof(expected) / sizeof(expected[0]));
    assert_int_equal(slices_layers(&params, &config, 1000), 5);
}

static struct method_params gemfilter(int filter_layer, double rate)
{
    struct method_params params;

    method_defaults(&params, METHOD_GEMFILTER, &config);
    params.filter_layer = filter_layer;
    params.retain_rate = rate;
    return params;
}

static void test_a_gemfilter_prompt_passes_twice(void **state)
{
    static const struct slice expected[] = {
        {SLICE_WHOLE, 0, 0, 512, 600, 600, false, true, 0, 0, false, 0},
        {SLICE_WHOLE, 0, 512, 600, 600, 600, true, true, 0, 0, false, 0},
        {SLICE_KEYS, 1, 0, 512, 600, 60, false, true, 1, 0, false, 0},
        {SLICE_KEYS, 1, 512, 600, 600, 60, true, true, 1, 0, false, 0},
        {SLICE_WHOLE, 0, 0, 60, 60, 60, true, false, 2, 0, false, 0},
        {SLICE_WHOLE, 1, 0, 60, 60, 60, true, false, 3, 0, false, 0},
        {SLICE_WHOLE, 2, 0, 60, 60, 60, true, false, 4, 0, false, 0},
        {SLICE_WHOLE, 3, 0, 60, 60, 60, true, false, 5, 0, false, 0},
        {SLICE_KEYS, 4, 0, 60, 60, 1, true, false, 6, 0, false, 0},
        {SLICE_QUERIES, 4, 0, 1, 60, 1, false, false, 6, 0, false, 0},
    };
    struct method_params params = gemfilter(1, 0.1);

    (void)state;
    check_slices(&params, 600, expected, sizeof(expected) / sizeof(expected[0]));
    assert_int_equal(slices_layers(&params, &config, 600), 7);
}

static void test_a_filter_that_drops_nothing_is_left_out(void **state)
{
    struct method_params params = gemfilter(3, 1.0);

    (void)state;
    check_prompt(&params, 700);
    assert_int_equal(slices_layers(&params, &config, 700), 5);
    params = gemfilter(3, 0.1);
    check_prompt(&params, 1); /* one token cannot become none */
    params.absolute = true;
    params.capacity = 4000;
    check_prompt(&params, 700);
}

static void test_the_first_and_the_last_layer_can_filter(void **state)
{
    struct slices it;
    struct slice slice;

    (void)state;
    for (int layer = 0; layer < config.layers; layer += config.layers - 1) {
        struct method_params params = gemfilter(layer, 0.25);
        slices_begin(&it, &params, &config, 100);
        for (int i = 0; i <= layer; i++) {
            CHECK(slices_next(&it, &slice) && slice.filter && slice.layer == i);
            CHECK(slice.kind == (i == layer ? SLICE_KEYS : SLICE_WHOLE));
        }
        CHECK(slices_next(&it, &slice) && !slice.filter && slice.layer == 0);
        assert_int_equal(slice.rows, 25);
    }
}

static void test_pyramidinfer_drops_rows_at_many_layers(void **state)
{
    struct method_params params;

    (void)state;
    method_defaults(&params, METHOD_PYRAMIDINFER, &config);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        check_prompt(&params, lengths[i]);
    }
}

static double total_work(const struct method_params *params, int n_prompt)
{
    struct slices it;
    struct slice slice;
    double work = 0;

    slices_begin(&it, params, &config, n_prompt);
    while (slices_next(&it, &slice)) {
        double one = slice_work(&config, &slice);
        CHECK(one > 0 && isfinite(one));
        work += one;
    }
    return work;
}

static void test_scores_of_many_rows_have_slices_of_their_own(void **state)
{
    struct method_params params;

    (void)state;
    for (size_t i = 5; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        method_defaults(&params, METHOD_H2O, &config);
        params.h2o_causal = false;
        check_parts(&params, lengths[i], lengths[i]);
        method_defaults(&params, METHOD_SNAPKV, &config);
        params.window = SLICE_WINDOW_ROWS + 1;
        if (lengths[i] > 3000) {
            check_parts(&params, lengths[i], params.window);
        }
    }
    params.window = 64; /* few rows, many keys */
    check_parts(&params, 131072, 64);
}

/* Beside attention, every pair of a row that scores and a key that it sees. */
static void check_scoring_work(const struct method_params *params, int n, double pairs)
{
    struct method_params all = full();
    double more = total_work(params, n) - total_work(&all, n);

    if (fabs(more - pairs * pair_work()) > 1e-6 * more) {
        fail_msg("%s: %.17g more, not %.17g", method_name(params->method), more,
                 pairs * pair_work());
    }
}

static void test_scores_count_as_work(void **state)
{
    struct method_params params;
    double n = 1300;
    double causal = n * (n + 1) / 2;
    double layers = config.layers;

    (void)state;
    method_defaults(&params, METHOD_SNAPKV, &config);
    check_scoring_work(&params, 1300, layers * 8 * n);
    method_defaults(&params, METHOD_FASTGEN, &config);
    check_scoring_work(&params, 1300, layers * causal);
    method_defaults(&params, METHOD_H2O, &config);
    params.h2o_dynamic = false;
    check_scoring_work(&params, 1300, layers * causal);
    params.h2o_causal = false; /* their queries are computed twice */
    check_scoring_work(&params, 1300, layers * (n * n + n * 2 * 64 * 64 / pair_work()));
}

static void test_work_counts_every_multiplication_and_addition(void **state)
{
    struct method_params params = full();
    double n = 1300;
    double keys = 2 * 2 * 64 * 32;    /* two products with (32, 64) */
    double queries = 2 * 2 * 64 * 64; /* q and o */
    double mlp = 3 * 2 * 64 * 96;     /* gate, up, down */
    double pair = 2 * 2 * 16 * 4;     /* a key and a value, 4 heads of dimension 16 */
    double layer = n * (keys + queries + mlp) + pair * n * (n + 1) / 2;
    double last = n * keys + queries + mlp + pair * n;

    (void)state;
    double expected = 4 * layer + last;
    double work = total_work(&params, 1300);
    if (fabs(work - expected) > 1e-9 * expected) {
        fail_msg("%.17g instead of %.17g", work, expected);
    }
}

static void test_the_total_is_the_sum_of_all_slices(void **state)
{
    static const float head_scores[5 * 4] = {3, 1, 2, 5, 1, 1, 4};

    (void)state;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct method_params each[METHOD_COUNT + 2] = {full(), fastkv(2, 0.2), gemfilter(0, 0.3)};
        for (int m = 3; m < METHOD_COUNT + 2; m++) {
            method_defaults(&each[m], m < METHOD_COUNT ? (enum method)m : METHOD_H2O, &config);
            each[m].h2o_causal = m < METHOD_COUNT;
            each[m].head_scores = head_scores;
            each[m].n_head_scores = config.layers * config.query_heads;
        }
        each[METHOD_COUNT + 1].h2o_dynamic = true;
        for (int m = 0; m < METHOD_COUNT + 2; m++) {
            double sum = total_work(&each[m], lengths[i]);
            double total = slices_total_work(&each[m], &config, lengths[i]);
            CHECK(sum > 0 && fabs(total - sum) < 1e-6 * sum);
        }
    }
}

static void test_dropping_rows_saves_work(void **state)
{
    struct method_params all = full();
    struct method_params some = fastkv(2, 0.2);
    struct method_params few = fastkv(1, 0.2);

    (void)state;
    double full_work = total_work(&all, 4000);
    double some_work = total_work(&some, 4000);
    CHECK(some_work < full_work);
    CHECK(total_work(&few, 4000) < some_work);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_row_of_a_full_prompt_is_covered_exactly_once),
        cmocka_unit_test(test_chunks_shrink_where_attention_outweighs_the_rest),
        cmocka_unit_test(test_rows_dropped_by_fastkv_get_keys_but_no_queries),
        cmocka_unit_test(test_a_fastkv_prompt_is_cut_as_drawn),
        cmocka_unit_test(test_a_gemfilter_prompt_passes_twice),
        cmocka_unit_test(test_a_filter_that_drops_nothing_is_left_out),
        cmocka_unit_test(test_the_first_and_the_last_layer_can_filter),
        cmocka_unit_test(test_pyramidinfer_drops_rows_at_many_layers),
        cmocka_unit_test(test_scores_of_many_rows_have_slices_of_their_own),
        cmocka_unit_test(test_scores_count_as_work),
        cmocka_unit_test(test_work_counts_every_multiplication_and_addition),
        cmocka_unit_test(test_the_total_is_the_sum_of_all_slices),
        cmocka_unit_test(test_dropping_rows_saves_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
