/* Filters of logits: histograms, and the ids that the rounds leave over shards of the vocabulary,
 * against a plain sort. */
#include "tests/check.h"
#include "tests/definitions/select.h"
#include "tests/kernels/helpers_act.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 20000, ROWS = 2, MOST_RANKS = 3 };

static struct device *dev;
static struct act logits; /* (ROWS, VOCAB) */

static void test_histograms_match_their_definition(void **state)
{
    static const int shifts[] = {24, 16, 8, 0};
    static const struct drawn peaks[] = {{4.0f, 1}, {4.5f, 1}};
    struct logit_filter filters[ROWS] = {{.row = 1, .temperature = 1.0f},
                                         {.row = 0, .temperature = 0.3f}};
    struct logit_bin got[ROWS * OP_HISTOGRAM_BINS], expected[ROWS * OP_HISTOGRAM_BINS];

    (void)state;
    for (int i = 0; i < 4; i++) {
        uint32_t key = op_key(logits.f32[77]);

        filters[0].prefix = filters[1].prefix = shifts[i] < 24 ? key >> (shifts[i] + 8) : 7;
        struct logit_histogram args = {
            .out = got,
            .logits = logits.f32,
            .filters = filters,
            .peaks = peaks,
            .rows = ROWS,
            .n = VOCAB,
            .shift = shifts[i],
        };
        CHECK_OK(op_logit_histogram(dev, &args));
        args.out = expected;
        define_logit_histogram(&args);
        for (int b = 0; b < ROWS * OP_HISTOGRAM_BINS; b++) {
            CHECK(got[b].count == expected[b].count);
            CHECK(fabs(got[b].mass - expected[b].mass) <= 1e-12 * expected[b].mass);
        }
    }
}

/* Rows of logits over ranks, each with a shard and its own filters. */
struct shards {
    int rows, n, ranks;
    const float *logits; /* (rows, n) */
    const struct drawn *peaks;
    struct rank {
        int first, n;
        float *logits; /* (rows, n) */
        struct logit_filter *filters;
        struct draw *draws;
    } rank[MOST_RANKS];
    struct logit_bin *bins; /* (ranks, rows, OP_HISTOGRAM_BINS) */
};

static void open_shards(struct shards *s, const struct logit_filter *filters)
{
    size_t rows = (size_t)s->rows;

    s->bins = calloc((size_t)s->ranks * rows * OP_HISTOGRAM_BINS, sizeof(*s->bins));
    for (int r = 0; r < s->ranks; r++) {
        struct rank *rank = &s->rank[r];

        rank->first = s->n * r / s->ranks;
        rank->n = s->n * (r + 1) / s->ranks - rank->first;
        rank->logits = calloc(rows * (size_t)rank->n + 1, sizeof(float));
        rank->filters = calloc(rows, sizeof(*rank->filters));
        rank->draws = calloc(rows, sizeof(*rank->draws));
        memcpy(rank->filters, filters, rows * sizeof(*filters));
        for (int i = 0; i < s->rows; i++) {
            memcpy(rank->logits + (size_t)i * (size_t)rank->n,
                   s->logits + (size_t)i * (size_t)s->n + (size_t)rank->first,
                   (size_t)rank->n * sizeof(float));
        }
    }
}

static void close_shards(struct shards *s)
{
    for (int r = 0; r < s->ranks; r++) {
        free(s->rank[r].logits);
        free(s->rank[r].filters);
        free(s->rank[r].draws);
    }
    free(s->bins);
}

static void run_rounds(struct shards *s, bool by_mass)
{
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int r = 0; r < s->ranks; r++) {
            CHECK_OK(op_logit_histogram(
                dev, &(struct logit_histogram){
                         .out = s->bins + (size_t)r * (size_t)s->rows * OP_HISTOGRAM_BINS,
                         .logits = s->rank[r].logits,
                         .filters = s->rank[r].filters,
                         .peaks = s->peaks,
                         .rows = s->rows,
                         .n = s->rank[r].n,
                         .shift = shift,
                     }));
        }
        for (int r = 0; r < s->ranks; r++) {
            CHECK_OK(op_narrow(dev, &(struct narrow){
                                        .filters = s->rank[r].filters,
                                        .peaks = s->peaks,
                                        .bins = s->bins,
                                        .rows = s->rows,
                                        .ranks = s->ranks,
                                        .rank = r,
                                        .shift = shift,
                                        .by_mass = by_mass,
                                    }));
        }
    }
}

/* Whether the rank's draw takes exactly the ids of its shard that stay. */
static bool takes_what_stays(const struct rank *rank, const struct draw *draw, const float *row,
                             const bool *stays)
{
    for (int id = rank->first; id < rank->first + rank->n; id++) {
        uint32_t key = op_key(row[id]);
        bool got =
            key != 0 && (key > draw->floor_key || (key == draw->floor_key && id <= draw->tie_id));

        if (got != stays[id]) {
            return false;
        }
    }
    return true;
}

/* What is left is what the definition leaves, on every rank. */
static void check_shards(const struct shards *s, const struct logit_filter *filters)
{
    bool *stays = calloc((size_t)s->n, sizeof(*stays));

    for (int i = 0; i < s->rows; i++) {
        const float *row = s->logits + (size_t)filters[i].row * (size_t)s->n;

        define_filter(stays, row, s->n, &filters[i]);
        for (int r = 0; r < s->ranks; r++) {
            const struct draw *draw = &s->rank[r].draws[filters[i].row];

            CHECK(takes_what_stays(&s->rank[r], draw, row, stays));
        }
    }
    free(stays);
}

static void filter_all(struct shards *s, const struct logit_filter *filters)
{
    for (s->ranks = 1; s->ranks <= MOST_RANKS; s->ranks++) {
        open_shards(s, filters);
        run_rounds(s, false);
        run_rounds(s, true);
        for (int r = 0; r < s->ranks; r++) {
            CHECK_OK(op_filter_draws(dev, &(struct filtered_draws){
                                              .draws = s->rank[r].draws,
                                              .filters = s->rank[r].filters,
                                              .peaks = s->peaks,
                                              .logits = s->rank[r].logits,
                                              .rows = s->rows,
                                              .n = s->rank[r].n,
                                              .first_id = s->rank[r].first,
                                          }));
        }
        check_shards(s, filters);
        close_shards(s);
    }
}

static struct drawn largest(const float *row, int n)
{
    return define_draw(row, n, 0, &(struct draw){0});
}

/* Row i of the filters is another row of the logits. */
static void test_the_rounds_leave_what_a_sort_leaves(void **state)
{
    static const struct logit_filter filters[] = {
        {.row = 1, .temperature = 1.0f, .top_k = 1, .top_p = 1.0f},
        {.row = 0, .temperature = 0.7f, .top_k = 40, .top_p = 0.91f, .min_p = 0.02f},
        {.row = 0, .temperature = 1.3f, .top_p = 0.63f},
        {.row = 1, .temperature = 5.0f, .top_p = 1.0f, .min_p = 0.3f},
        {.row = 1, .temperature = 0.2f, .top_k = 9999, .top_p = 0.9999f},
        {.row = 0, .temperature = 2.0f, .top_p = 0.0001f},
    };
    const struct drawn peaks[] = {largest(logits.f32, VOCAB), largest(logits.f32 + VOCAB, VOCAB)};

    (void)state;
    for (size_t i = 0; i < sizeof(filters) / sizeof(filters[0]); i += ROWS) {
        struct shards s = {.rows = ROWS, .n = VOCAB, .logits = logits.f32, .peaks = peaks};

        filter_all(&s, &filters[i]);
    }
}

/* Many logits are equal, some are not numbers; sets end among equals, on any rank. */
static void test_of_equal_logits_the_lowest_ids_stay(void **state)
{
    enum { N = 700 };
    float row[ROWS * N];
    struct drawn peaks[ROWS];

    (void)state;
    for (int i = 0; i < ROWS * N; i++) {
        row[i] = i % 11 == 5 ? NAN : roundf(logits.f32[i] * 2.0f) / 2.0f;
    }
    for (int r = 0; r < ROWS; r++) {
        peaks[r] = largest(row + (size_t)r * N, N);
    }
    for (uint32_t k = 1; k < N; k += 37) {
        const struct logit_filter filters[ROWS] = {
            {.row = 0, .temperature = 1.1f, .top_k = k, .top_p = 1.0f},
            {.row = 1, .temperature = 3.0f, .top_k = k, .top_p = 0.837f, .min_p = 0.11f},
        };
        struct shards s = {.rows = ROWS, .n = N, .logits = row, .peaks = peaks};

        filter_all(&s, filters);
    }
}

/* The rows' draws then find nothing, which is an error to whoever asked. */
static void test_nothing_stays_of_a_row_whose_peak_is_not_finite(void **state)
{
    enum { N = 5 };
    static const float odd[] = {INFINITY, -INFINITY, NAN};

    (void)state;
    for (int i = 0; i < 3; i++) {
        const float row[N] = {odd[i], odd[i], odd[i], odd[i], odd[i]};
        const struct drawn peak = largest(row, N);
        const struct logit_filter filter = {
            .temperature = 1.0f, .top_k = 2, .top_p = 0.5f, .min_p = 0.1f};
        struct draw draw = {.temperature = 1.0f};
        struct shards s = {.rows = 1, .n = N, .ranks = 1, .logits = row, .peaks = &peak};
        struct drawn got;

        open_shards(&s, &filter);
        run_rounds(&s, false);
        run_rounds(&s, true);
        CHECK_OK(op_filter_draws(dev, &(struct filtered_draws){.draws = &draw,
                                                               .filters = s.rank[0].filters,
                                                               .peaks = &peak,
                                                               .logits = row,
                                                               .rows = 1,
                                                               .n = N}));
        CHECK_OK(op_draw(dev, &got, row, 1, N, 0, &draw));
        CHECK(got.id == -1);
        close_shards(&s);
    }
}

static int set_up(void **state)
{
    uint64_t seed = 1;

    (void)state;
    dev = act_device(&variants[0], 2);
    logits = act_random(DTYPE_F32, ROWS * VOCAB, 2.0f, &seed);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    act_free(&logits);
    device_close(dev);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_histograms_match_their_definition),
        cmocka_unit_test(test_the_rounds_leave_what_a_sort_leaves),
        cmocka_unit_test(test_of_equal_logits_the_lowest_ids_stay),
        cmocka_unit_test(test_nothing_stays_of_a_row_whose_peak_is_not_finite),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
