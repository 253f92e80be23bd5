/* test_kv.c - what is written to the pages of the cache, and that nothing else is. */
#include "tests/check.h"
#include "tests/kernels/helpers_act.h"

#include <stdlib.h>
#include <string.h>

enum {
    PAGES = 6,
    PAGE_ROWS = 4,
    DIM = 8,
    ROWS = 30,
    WRITTEN = ROWS * DIM,
    POOL = PAGES * PAGE_ROWS * DIM,
};

struct cache {
    struct device *dev;
    size_t row_bytes;
    struct act k, v; /* (ROWS, DIM): what is written */
    struct act pool_k, pool_v;
    struct kv_pool pool;
};

static struct cache cache_open(const struct variant *variant)
{
    uint64_t seed = 9;
    struct cache c = {
        .dev = act_device(variant, 2),
        .row_bytes = (size_t)DIM * dtype_bytes(variant->dtype),
        .k = act_random(variant->dtype, WRITTEN, 1.0f, &seed),
        .v = act_random(variant->dtype, WRITTEN, 1.0f, &seed),
        .pool_k = act_zeros(variant->dtype, POOL),
        .pool_v = act_zeros(variant->dtype, POOL),
    };

    c.pool = (struct kv_pool){
        .k = c.pool_k.act, .v = c.pool_v.act, .page_rows = PAGE_ROWS, .head_dim = DIM};
    return c;
}

static void cache_close(struct cache *c)
{
    act_free(&c->pool_v);
    act_free(&c->pool_k);
    act_free(&c->v);
    act_free(&c->k);
    device_close(c->dev);
}

/* The pool's row `slot` holds row `from` of k and v; from < 0: nothing was written. */
static void check_row(const struct cache *c, int slot, int from)
{
    char nothing[DIM * sizeof(float)] = {0};
    size_t at = (size_t)slot * c->row_bytes, source = (size_t)from * c->row_bytes;
    const char *k = from < 0 ? nothing : (char *)c->k.act + source;
    const char *v = from < 0 ? nothing : (char *)c->v.act + source;

    CHECK(memcmp((char *)c->pool.k + at, k, c->row_bytes) == 0);
    CHECK(memcmp((char *)c->pool.v + at, v, c->row_bytes) == 0);
}

static void check_gather(const struct variant *variant, const int32_t *index, int n)
{
    const int32_t pages[] = {5, 0, 3};
    const int others[] = {1, 2, 4};
    struct cache c = cache_open(variant);

    CHECK_OK(op_kv_gather(c.dev, &c.pool, pages, c.k.act, c.v.act, index, n));
    for (int i = 0; i < 3 * PAGE_ROWS; i++) {
        int from = i >= n ? -1 : index ? index[i] : i;

        check_row(&c, pages[i / PAGE_ROWS] * PAGE_ROWS + i % PAGE_ROWS, from);
        check_row(&c, others[i / PAGE_ROWS] * PAGE_ROWS + i % PAGE_ROWS, -1);
    }
    cache_close(&c);
}

static void test_gather_fills_pages_in_table_order(void **state)
{
    const int32_t index[] = {0, 2, 3, 7, 8, 12, 20, 21, 28, 29};

    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_gather(&variants[v], index, 10);
        check_gather(&variants[v], NULL, 11);
        check_gather(&variants[v], NULL, 0);
    }
}

/* A random choice of rows into pages in random order, and nothing into what is left of them. */
struct gather_case {
    int rows, page_rows, dim;
    int per_mille; /* how many of the rows are chosen */
};
enum { SPARE_PAGES = 2 };

static int choose_rows(int32_t *index, const struct gather_case *c, uint64_t *seed)
{
    int n = 0;

    for (int i = 0; i < c->rows; i++) {
        if (test_below(seed, 1000) < c->per_mille) {
            index[n++] = i;
        }
    }
    return n;
}

static void shuffle_pages(int32_t *pages, int n, uint64_t *seed)
{
    for (int i = 0; i < n; i++) {
        int j = test_below(seed, i + 1);
        pages[i] = pages[j];
        pages[j] = i;
    }
}

static int wrong_rows(const struct gather_case *c, const struct act *pool, const struct act *in,
                      const int32_t *pages, int n_pages, const int32_t *index, int n,
                      size_t row_bytes)
{
    char nothing[256] = {0};
    int wrong = 0;

    for (int i = 0; i < n_pages * c->page_rows; i++) {
        size_t slot = (size_t)(pages[i / c->page_rows] * c->page_rows + i % c->page_rows);
        const char *row = i < n ? (char *)in->act + (size_t)index[i] * row_bytes : nothing;
        wrong += memcmp((char *)pool->act + slot * row_bytes, row, row_bytes) != 0;
    }
    return wrong;
}

static void check_random_gather(const struct variant *variant, const struct gather_case *c,
                                uint64_t *seed)
{
    size_t row_bytes = (size_t)c->dim * dtype_bytes(variant->dtype);
    int n_pages = (c->rows + c->page_rows - 1) / c->page_rows + SPARE_PAGES;
    size_t size = (size_t)c->rows * (size_t)c->dim;
    size_t pool_size = (size_t)(n_pages * c->page_rows) * (size_t)c->dim;
    struct act k = act_random(variant->dtype, size, 1.0f, seed);
    struct act v = act_random(variant->dtype, size, 1.0f, seed);
    struct act pool_k = act_zeros(variant->dtype, pool_size);
    struct act pool_v = act_zeros(variant->dtype, pool_size);
    int32_t *index = calloc((size_t)c->rows, sizeof(*index));
    int32_t *pages = calloc((size_t)n_pages, sizeof(*pages));
    struct device *dev = act_device(variant, 2);

    assert_non_null(index);
    assert_non_null(pages);
    int n = choose_rows(index, c, seed);
    shuffle_pages(pages, n_pages, seed);
    CHECK_OK(op_kv_gather(
        dev,
        &(struct kv_pool){
            .k = pool_k.act, .v = pool_v.act, .page_rows = c->page_rows, .head_dim = c->dim},
        pages, k.act, v.act, index, n));
    CHECK(wrong_rows(c, &pool_k, &k, pages, n_pages, index, n, row_bytes) == 0);
    CHECK(wrong_rows(c, &pool_v, &v, pages, n_pages, index, n, row_bytes) == 0);
    device_close(dev);
    free(pages);
    free(index);
    act_free(&pool_v);
    act_free(&pool_k);
    act_free(&v);
    act_free(&k);
}

static void test_gather_of_any_shape_up_to_long_prompts(void **state)
{
    uint64_t seed = 4;

    (void)state;
    for (int round = 0; round < 60; round++) {
        check_random_gather(&variants[round % n_variants],
                            &(struct gather_case){.rows = 1 + test_below(&seed, 700),
                                                  .page_rows = 1 << test_below(&seed, 6),
                                                  .dim = 8 * (1 + test_below(&seed, 8)),
                                                  .per_mille = test_below(&seed, 1001)},
                            &seed);
    }
    check_random_gather(
        &variants[0],
        &(struct gather_case){.rows = 131072, .page_rows = 32, .dim = 8, .per_mille = 500}, &seed);
}

/* A note for each row of a table; a row that moves takes it along. */
static void check_notes(const struct variant *variant)
{
    const int32_t pages[] = {5, 0, 3};
    const int32_t to[] = {23, 1}, from[] = {2, 23};
    struct cache c = cache_open(variant);
    struct kv_note notes[PAGES * PAGE_ROWS] = {0}, list[10];

    c.pool.notes = notes;
    for (int i = 0; i < 10; i++) {
        list[i] = (struct kv_note){.mass = (float)i, .position = 100 + i, .marks = 3};
    }
    CHECK_OK(op_kv_note(c.dev, &c.pool, pages, list, 0));
    CHECK(notes[5 * PAGE_ROWS].position == 0);
    CHECK_OK(op_kv_note(c.dev, &c.pool, pages, list, 10));
    for (int i = 0; i < 3 * PAGE_ROWS; i++) {
        const struct kv_note *note = &notes[pages[i / PAGE_ROWS] * PAGE_ROWS + i % PAGE_ROWS];
        CHECK(note->position == (i < 10 ? 100 + i : 0) && note->marks == (i < 10 ? 3 : 0));
    }
    CHECK_OK(op_kv_gather(c.dev, &c.pool, pages, c.k.act, c.v.act, NULL, 10));
    CHECK_OK(op_kv_move(c.dev, &c.pool, to, from, 2));
    check_row(&c, 23, 6);
    check_row(&c, 1, 6);
    CHECK(notes[23].position == 106 && notes[1].position == 106 && notes[1].mass == 6.0f);
    cache_close(&c);
}

static void test_notes_are_rows_notes(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_notes(&variants[v]);
    }
}

static void check_entries(const struct variant *variant)
{
    enum { N = 300 };
    struct device *dev = act_device(variant, 2);
    struct page_entry list[N];
    int32_t table[2 * N];

    for (int i = 0; i < 2 * N; i++) {
        table[i] = -1;
    }
    for (int i = 0; i < N; i++) {
        list[i] = (struct page_entry){&table[2 * ((i * 7) % N)], 1000 + i};
    }
    CHECK_OK(op_enter_pages(dev, list, 0));
    CHECK(table[0] == -1);
    CHECK_OK(op_enter_pages(dev, list, N));
    for (int i = 0; i < N; i++) {
        CHECK(table[2 * ((i * 7) % N)] == 1000 + i && table[2 * i + 1] == -1);
    }
    device_close(dev);
}

static void test_pages_are_entered_where_the_list_says(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_entries(&variants[v]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gather_fills_pages_in_table_order),
        cmocka_unit_test(test_gather_of_any_shape_up_to_long_prompts),
        cmocka_unit_test(test_notes_are_rows_notes),
        cmocka_unit_test(test_pages_are_entered_where_the_list_says),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
