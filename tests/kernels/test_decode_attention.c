/* Decode attention over ragged pages: its definition, and the same bits in any company. */
#include "tests/check.h"
#include "tests/definitions/attention.h"
#include "tests/kernels/helpers_act.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 32, MAX_HEADS = 128 };

struct shape {
    int rows, q_heads, cache_heads, head_dim, page_rows, longest, sinks;
};

struct problem {
    enum dtype dtype;
    struct act q, q_sinks, k, v, out;
    struct kv_pool pool;
    struct kv_note *notes; /* (n_notes) of the pool */
    size_t n_notes;
    int32_t *tables;
    const int32_t *pages[MAX_HEADS];
    int32_t first[MAX_HEADS], length[MAX_HEADS], sinks[MAX_ROWS];
    struct decode_attention args;
};

/* Every cache head has its own pages, in shuffled order. */
static void problem_make(struct problem *p, enum dtype dtype, const struct shape *s, uint64_t seed)
{
    int heads = s->rows * s->cache_heads;
    int pages = (s->longest + s->sinks + s->page_rows - 1) / s->page_rows;
    int n = heads * pages;
    size_t elements = (size_t)n * (size_t)s->page_rows * (size_t)s->head_dim;
    size_t n_q = (size_t)s->rows * (size_t)s->q_heads * (size_t)s->head_dim;

    memset(p, 0, sizeof(*p));
    p->dtype = dtype;
    p->q = act_random(dtype, n_q, 2.0f, &seed);
    p->k = act_random(dtype, elements, 1.0f, &seed);
    p->v = act_random(dtype, elements, 1.0f, &seed);
    p->out = act_zeros(dtype, n_q);
    p->q_sinks = act_random(dtype, n_q, 2.0f, &seed);
    p->tables = calloc((size_t)n, sizeof(int32_t));
    p->n_notes = (size_t)n * (size_t)s->page_rows;
    p->notes = calloc(p->n_notes, sizeof(*p->notes));
    assert_non_null(p->tables);
    assert_non_null(p->notes);
    for (int i = 0; i < n; i++) {
        int j = test_below(&seed, i + 1);
        p->tables[i] = p->tables[j];
        p->tables[j] = i;
    }
    for (int i = 0; i < heads; i++) {
        p->pages[i] = p->tables + (size_t)i * (size_t)pages;
        p->length[i] = i == 0 ? s->longest : 1 + test_below(&seed, s->longest);
        p->first[i] = i % 3 == 2 ? test_below(&seed, p->length[i]) : 0;
    }
    for (int r = 0; s->sinks && r < s->rows; r += 2) { /* every second sequence has some */
        p->sinks[r] = s->sinks;
        for (int i = r * s->cache_heads; i < (r + 1) * s->cache_heads; i++) {
            p->length[i] += p->length[i] <= s->sinks ? s->sinks : 0;
            p->first[i] = 0;
        }
    }
    p->pool = (struct kv_pool){.k = p->k.act,
                               .v = p->v.act,
                               .notes = p->notes,
                               .page_rows = s->page_rows,
                               .head_dim = s->head_dim};
    p->args = (struct decode_attention){
        .out = p->out.act,
        .q = p->q.act,
        .pool = &p->pool,
        .pages = p->pages,
        .first = p->first,
        .length = p->length,
        .sinks = s->sinks ? p->sinks : NULL,
        .q_sinks = s->sinks ? p->q_sinks.act : NULL,
        .rows = s->rows,
        .q_heads = s->q_heads,
        .cache_heads = s->cache_heads,
        .head_dim = s->head_dim,
    };
}

static void problem_free(struct problem *p)
{
    act_free(&p->q);
    act_free(&p->q_sinks);
    act_free(&p->k);
    act_free(&p->v);
    act_free(&p->out);
    free(p->notes);
    free(p->tables);
}

static const struct shape shapes[] = {
    {1, 1, 1, 8, 16, 1, 0},     {1, 4, 2, 32, 16, 100, 0},   {3, 8, 2, 64, 16, 700, 0},
    {2, 6, 6, 24, 5, 333, 0},   {2, 7, 1, 40, 64, 1500, 0},  {1, 8, 2, 128, 32, 3000, 0},
    {2, 6, 2, 256, 16, 200, 0}, {1, 11, 1, 80, 48, 2049, 0}, {4, 3, 3, 72, 16, 1025, 0},
};

/* Few sinks and many, more than a split of the kernels, of long caches and of short ones. */
static const struct shape with_sinks[] = {
    {1, 1, 1, 8, 16, 5, 4},     {3, 8, 2, 64, 16, 300, 4},  {3, 7, 1, 40, 64, 500, 1},
    {2, 4, 2, 128, 32, 300, 7}, {1, 2, 1, 8, 16, 4300, 33}, {1, 2, 1, 256, 16, 1150, 1100},
};

static void check_shape(struct device *dev, const struct shape *shape, uint64_t seed)
{
    enum dtype dtype = device_dtype(dev);
    struct problem p;

    problem_make(&p, dtype, shape, seed);
    struct kv_pool pool = p.pool;
    struct decode_attention defined = p.args;
    double *expected = calloc(p.out.n, sizeof(double));

    assert_non_null(expected);
    pool.k = p.k.f32;
    pool.v = p.v.f32;
    defined.q = p.q.f32;
    defined.q_sinks = p.q_sinks.f32;
    defined.pool = &pool;
    define_decode_attention(expected, &defined);
    CHECK_OK(op_decode_attention(dev, &p.args));
    act_read(dtype, &p.out);
    double worst = act_worst(p.out.f32, expected, p.out.n, 1.0);
    if (!(worst < (dtype == DTYPE_BF16 ? 0.005 : dtype == DTYPE_F16 ? 0.0007 : 3e-6))) {
        fail_msg("%s: longest %d: off by %g", device_description(dev), shape->longest, worst);
    }
    free(expected);
    problem_free(&p);
}

static void test_decode_attention_matches_its_definition(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        for (size_t n = 0; n < sizeof(shapes) / sizeof(shapes[0]); n++) {
            check_shape(dev, &shapes[n], n);
        }
        device_close(dev);
    }
}

static void test_sinks_see_queries_of_their_own(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        for (size_t n = 0; n < sizeof(with_sinks) / sizeof(with_sinks[0]); n++) {
            check_shape(dev, &with_sinks[n], n);
        }
        device_close(dev);
    }
}

static void test_every_head_dim_matches(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        for (int d = 8; d <= OP_MAX_HEAD_DIM; d += 8) {
            check_shape(dev, &(struct shape){2, 3, 1, d, 16, 40 + d % 33, 0}, (uint64_t)d);
        }
        device_close(dev);
    }
}

/* One cache is full, the others have some of that. */
static void test_a_batch_of_mixed_lengths_up_to_131072_matches(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        check_shape(dev, &(struct shape){3, 2, 1, 8, 32, 131072, 0}, 6);
        device_close(dev);
    }
}

/* Sequences r.. of the batch, n of them, that write to `out`. */
static struct decode_attention some_of(const struct problem *p, const struct act *out, int r, int n)
{
    struct decode_attention some = p->args;
    size_t bytes = (size_t)(r * some.q_heads * some.head_dim) * dtype_bytes(p->dtype);

    some.out = (char *)out->act + bytes;
    some.q = (const char *)some.q + bytes;
    some.pages += (ptrdiff_t)r * some.cache_heads;
    some.first += (ptrdiff_t)r * some.cache_heads;
    some.length += (ptrdiff_t)r * some.cache_heads;
    if (some.sinks) {
        some.sinks += r;
        some.q_sinks = (const char *)some.q_sinks + bytes;
    }
    some.rows = n;
    return some;
}

/* The sequences of one batch of 32, in batches of 1, 2 and 8 and on other numbers of threads. */
static void check_batches(const struct variant *variant, int sinks)
{
    static const int batches[] = {1, 2, 8};
    const struct shape s = {MAX_ROWS, 8, 2, 32, 16, 1600, sinks};
    struct device *dev = act_device(variant, 2);
    struct problem p;

    problem_make(&p, variant->dtype, &s, 99);
    struct act part = act_zeros(variant->dtype, p.out.n);
    CHECK_OK(op_decode_attention(dev, &p.args));
    device_close(dev);
    for (size_t b = 0; b < 3; b++) {
        dev = act_device(variant, (int)b + 1);
        for (int r = 0; r < MAX_ROWS; r += batches[b]) {
            const struct decode_attention some = some_of(&p, &part, r, batches[b]);
            CHECK_OK(op_decode_attention(dev, &some));
        }
        CHECK(memcmp(part.act, p.out.act, p.out.n * dtype_bytes(variant->dtype)) == 0);
        device_close(dev);
    }
    act_free(&part);
    problem_free(&p);
}

static void test_a_row_has_the_same_bits_in_any_batch(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        check_batches(&variants[i], i % 2 ? 5 : 0);
    }
}

/* The group's sum for each row of cache head `head` of the first sequence. */
static void define_mass(double *out, const struct problem *p, int head)
{
    int d = p->pool.head_dim, group = p->args.q_heads / p->args.cache_heads;
    int first = p->first[head], n = p->length[head];
    double *s = calloc((size_t)n, sizeof(double));

    assert_non_null(s);
    memset(out, 0, (size_t)n * sizeof(double));
    for (int h = head * group; h < (head + 1) * group; h++) {
        double sum = 0.0;

        for (int i = first; i < n; i++) {
            int page = p->pages[head][i / p->pool.page_rows];
            size_t row = (size_t)(page * p->pool.page_rows + i % p->pool.page_rows);

            s[i] = 0.0;
            for (int c = 0; c < d; c++) {
                s[i] += (double)p->q.f32[h * d + c] * (double)p->k.f32[row * (size_t)d + (size_t)c];
            }
            s[i] = exp(s[i] / sqrt(d));
            sum += s[i];
        }
        for (int i = first; i < n; i++) {
            out[i] += s[i] / sum;
        }
    }
    free(s);
}

static void check_notes(const struct problem *p, int head, const double *expected)
{
    int page_rows = p->pool.page_rows;

    for (int i = 0; i < p->length[head]; i++) {
        int row = p->pages[head][i / page_rows] * page_rows + i % page_rows;
        double worst = act_worst(&p->notes[row].mass, expected + i, 1, 1e-3);

        if (!(worst < 2e-5)) {
            fail_msg("head %d, row %d of %d: off by %g", head, i, p->length[head], worst);
        }
    }
}

/* All heads of the first sequence, by what joins notes without mass. */
static void check_mass(struct device *dev, size_t n)
{
    double *expected = calloc((size_t)shapes[n].longest, sizeof(double));
    struct evict_rule rules[MAX_HEADS];
    int32_t gone[MAX_HEADS];
    struct problem p;

    assert_non_null(expected);
    problem_make(&p, device_dtype(dev), &shapes[n], n);
    p.args.rows = 1;
    for (int h = 0; h < shapes[n].cache_heads; h++) {
        rules[h] = (struct evict_rule){
            .pages = p.pages[h], .rows = p.length[h], .joins = GROUP_SUM, .n_others = INT_MAX};
    }
    CHECK_OK(op_evict(dev, &(struct evict){.out = gone,
                                           .pool = &p.pool,
                                           .rules = rules,
                                           .heads = shapes[n].cache_heads,
                                           .attention = &p.args}));
    for (int h = 0; h < shapes[n].cache_heads; h++) {
        define_mass(expected, &p, h);
        check_notes(&p, h, expected);
    }
    free(expected);
    problem_free(&p);
}

static void test_mass_is_the_probability_summed_over_the_group(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        for (size_t n = 0; n < sizeof(shapes) / sizeof(shapes[0]); n++) {
            check_mass(dev, n);
        }
        device_close(dev);
    }
}

/* A sequence alone. */
static void evict_alone(struct device *dev, const struct problem *p, int row,
                        const struct evict_rule *rules, int32_t *out)
{
    const struct decode_attention one = some_of(p, &p->out, row, 1);
    int first = row * one.cache_heads;

    CHECK_OK(op_evict(dev, &(struct evict){.out = out + first,
                                           .pool = &p->pool,
                                           .rules = rules + first,
                                           .heads = one.cache_heads,
                                           .attention = &one}));
}

/* Notes that no two heads share; each row has a way of its own to reduce, or joins nothing, or has
 * no rows at all. */
static void check_joined_mass(struct device *dev, const struct shape *shape, uint64_t seed)
{
    static const int32_t ways[] = {GROUP_SUM, GROUP_MAX, 0, GROUP_MEAN};
    struct evict_rule rules[MAX_HEADS];
    int32_t alone[MAX_HEADS], together[MAX_HEADS];
    struct problem p;

    problem_make(&p, device_dtype(dev), shape, seed);
    struct kv_note *before = calloc(2 * p.n_notes, sizeof(*before));
    struct kv_note *expected = before + p.n_notes;
    int heads = shape->rows * shape->cache_heads;

    assert_non_null(before);
    for (size_t i = 0; i < p.n_notes; i++) {
        before[i] = (struct kv_note){(float)test_below(&seed, 8) / 64.0f, (int32_t)i, 0};
    }
    for (int h = 0; h < heads; h++) {
        int row = h / shape->cache_heads;
        rules[h] = (struct evict_rule){.pages = p.pages[h],
                                       .rows = row == 4 ? 0 : p.length[h],
                                       .joins = row == 4 ? 0 : ways[row % 4],
                                       .position = 1 << 30,
                                       .recent = INT_MAX,
                                       .n_others = test_below(&seed, p.length[h] + 1)};
    }
    memcpy(p.notes, before, p.n_notes * sizeof(*before));
    for (int row = 0; row < shape->rows; row++) {
        evict_alone(dev, &p, row, rules, alone);
    }
    memcpy(expected, p.notes, p.n_notes * sizeof(*before));
    memcpy(p.notes, before, p.n_notes * sizeof(*before));
    CHECK_OK(op_evict(dev, &(struct evict){.out = together,
                                           .pool = &p.pool,
                                           .rules = rules,
                                           .heads = heads,
                                           .attention = &p.args}));
    CHECK(memcmp(together, alone, (size_t)heads * sizeof(*alone)) == 0);
    CHECK(memcmp(p.notes, expected, p.n_notes * sizeof(*before)) == 0);
    for (int h = 0; h < heads; h++) {
        CHECK((alone[h] >= 0) == (rules[h].rows > rules[h].n_others));
    }
    free(before);
    problem_free(&p);
}

static void test_masses_join_the_notes_of_a_batch_as_of_each_sequence_alone(void **state)
{
    (void)state;
    for (int i = 0; i < n_variants; i++) {
        struct device *dev = act_device(&variants[i], 2);

        check_joined_mass(dev, &(struct shape){6, 8, 2, 64, 16, 300, 0}, 3);
        check_joined_mass(dev, &(struct shape){5, 3, 3, 24, 32, 900, 0}, 4);
        device_close(dev);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode_attention_matches_its_definition),
        cmocka_unit_test(test_mass_is_the_probability_summed_over_the_group),
        cmocka_unit_test(test_masses_join_the_notes_of_a_batch_as_of_each_sequence_alone),
        cmocka_unit_test(test_sinks_see_queries_of_their_own),
        cmocka_unit_test(test_every_head_dim_matches),
        cmocka_unit_test(test_a_batch_of_mixed_lengths_up_to_131072_matches),
        cmocka_unit_test(test_a_row_has_the_same_bits_in_any_batch),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
