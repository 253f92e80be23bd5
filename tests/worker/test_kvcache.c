#include "common/plan.h"
#include "tests/check.h"
#include "worker/kvcache.h"

#include <stdlib.h>
#include <string.h>

enum {
    LAYERS = 2,
    HEADS = 3,
    DIM = 8,
    PAGE_ROWS = 4,
    PAGES = 20,
    PAGE_BYTES = 4 * (2 * 8 * 4 + 4)
};

struct fixture {
    struct device *dev;
    struct kvcache *cache;
    float *k, *v; /* (64, DIM): row r, element i is r + i / 100 (k), negative (v) */
};

static const int max_rows[LAYERS] = {20, 9};

static int setup(void **state)
{
    static struct fixture fixture;
    const struct device_config device = {.dtype = DTYPE_F32, .threads = 1};
    const struct kvcache_config config = {
        .slots = 4,
        .layers = LAYERS,
        .head_dim = DIM,
        .page_rows = PAGE_ROWS,
        .bytes = PAGES * PAGE_BYTES + PAGE_BYTES - 1, /* the rest of a page is no page */
    };
    void *k;
    void *v;

    CHECK_OK(device_open(&fixture.dev, "cpu", &device));
    CHECK_OK(kvcache_create(&fixture.cache, fixture.dev, &config));
    CHECK_OK(device_alloc(fixture.dev, &k, 64 * DIM * sizeof(float), "k"));
    CHECK_OK(device_alloc(fixture.dev, &v, 64 * DIM * sizeof(float), "v"));
    fixture.k = k;
    fixture.v = v;
    for (int i = 0; i < 64 * DIM; i++) {
        fixture.k[i] = (float)(i - i % DIM) / DIM + (float)(i % DIM) / 100;
        fixture.v[i] = -fixture.k[i];
    }
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    kvcache_destroy(f->cache);
    device_free(f->dev, f->k);
    device_free(f->dev, f->v);
    device_close(f->dev);
    return 0;
}

/* Up to 8 rows join each head. */
static void begin(struct kvcache *cache, int slot, int heads, const int *most, bool noted)
{
    CHECK_OK(kvcache_begin(
        cache, slot,
        &(struct kv_slot){.heads = heads, .max_rows = most, .appended = 8, .noted = noted}));
}

static status store(struct fixture *f, int slot, int layer, int head, const int32_t *list, int n)
{
    const struct kv_rows rows = {.k = f->k, .v = f->v, .index = list, .positions = list, .n = n};

    return kvcache_store(f->cache, slot, layer, head, &rows);
}

/* Row `row` of a head holds what was row `source` of k and v. */
static void check_row(const struct fixture *f, int slot, int layer, int head, int row, int source)
{
    const int32_t *table = kvcache_table(f->cache, slot, layer, head);
    const struct kv_pool *pool = kvcache_pool(f->cache);
    size_t at = ((size_t)table[row / PAGE_ROWS] * PAGE_ROWS + (size_t)(row % PAGE_ROWS)) * DIM;

    assert_memory_equal((const float *)pool->k + at, f->k + (size_t)source * DIM,
                        DIM * sizeof(float));
    assert_memory_equal((const float *)pool->v + at, f->v + (size_t)source * DIM,
                        DIM * sizeof(float));
}

static void test_heads_keep_lists_of_their_own_length(void **state)
{
    struct fixture *f = *state;
    static const int32_t lists[HEADS][6] = {{0, 3, 5, 9, 20, 40}, {1}, {2, 4, 8, 16, 32}};
    static const int n[HEADS] = {6, 1, 5};

    CHECK(kvcache_pages_total(f->cache) == PAGES);
    CHECK(kvcache_bytes_total(f->cache) == PAGES * PAGE_BYTES);
    begin(f->cache, 2, HEADS, max_rows, false);
    CHECK(kvcache_pages_used(f->cache) == 0);
    for (int head = 0; head < HEADS; head++) {
        CHECK_OK(store(f, 2, 1, head, lists[head], n[head]));
    }
    CHECK(kvcache_pages_used(f->cache) == 2 + 1 + 2);
    CHECK(kvcache_bytes_used(f->cache) == 5 * PAGE_BYTES);
    for (int head = 0; head < HEADS; head++) {
        CHECK(kvcache_rows(f->cache, 2, 1, head) == n[head]);
        CHECK(kvcache_rows(f->cache, 2, 0, head) == 0);
        for (int row = 0; row < n[head]; row++) {
            check_row(f, 2, 1, head, row, lists[head][row]);
        }
    }
    kvcache_release(f->cache, 2);
    CHECK(kvcache_bytes_used(f->cache) == 0);
}

/* At position 0 keys stay as they are. */
static void write_row(struct fixture *f, int32_t row, int source)
{
    static const float inv_freq[DIM / 2];
    static const int32_t position;

    CHECK_OK(op_kv_append(f->dev, &(struct kv_append){
                                      .pool = kvcache_pool(f->cache),
                                      .slot = &row,
                                      .k = f->k + (size_t)source * DIM,
                                      .v = f->v + (size_t)source * DIM,
                                      .positions = &position,
                                      .inv_freq = inv_freq,
                                      .rows = 1,
                                      .kv_heads = 1,
                                      .cache_heads = 1,
                                  }));
}

static void test_appended_rows_follow_in_fresh_pages(void **state)
{
    struct fixture *f = *state;
    static const int32_t list[] = {5, 6, 7};

    begin(f->cache, 0, 1, max_rows, false);
    CHECK_OK(store(f, 0, 0, 0, list, 3));
    for (int i = 0; i < 6; i++) {
        int32_t row;
        CHECK_OK(kvcache_append(f->cache, 0, 0, 0, 50 + i, &row));
        CHECK_OK(kvcache_settle(f->cache));
        write_row(f, row, 50 + i);
    }
    CHECK(kvcache_rows(f->cache, 0, 0, 0) == 9);
    CHECK(kvcache_pages_used(f->cache) == 3);
    for (int i = 0; i < 6; i++) {
        check_row(f, 0, 0, 0, 3 + i, 50 + i);
    }
    kvcache_release(f->cache, 0);
}

static void test_visible_rows_are_found_by_position(void **state)
{
    struct fixture *f = *state;
    static const int32_t list[] = {2, 3, 10, 11, 12, 30};
    int32_t row;

    begin(f->cache, 1, 1, max_rows, false);
    CHECK_OK(store(f, 1, 0, 0, list, 6));
    CHECK_OK(kvcache_append(f->cache, 1, 0, 0, 60, &row));
    CHECK(kvcache_first(f->cache, 1, 0, 0, -5) == 0);
    CHECK(kvcache_first(f->cache, 1, 0, 0, 3) == 1);
    CHECK(kvcache_first(f->cache, 1, 0, 0, 4) == 2);
    CHECK(kvcache_first(f->cache, 1, 0, 0, 31) == 6);
    CHECK(kvcache_first(f->cache, 1, 0, 0, 61) == 7);
    kvcache_release(f->cache, 1);
}

static void test_a_full_pool_refuses_and_recovers(void **state)
{
    struct fixture *f = *state;
    int32_t all[64];
    static const int rows[LAYERS] = {64, 64};
    int32_t row;

    for (int i = 0; i < 64; i++) {
        all[i] = i;
    }
    begin(f->cache, 0, 2, rows, false);
    CHECK_OK(store(f, 0, 0, 0, all, 64));
    CHECK_FAILS(store(f, 0, 0, 1, all, 17), STATUS_EXHAUSTED, "4 of 20 pages are free, 5");
    CHECK(kvcache_rows(f->cache, 0, 0, 1) == 0);
    CHECK_OK(store(f, 0, 0, 1, all, 16));
    CHECK_FAILS(kvcache_append(f->cache, 0, 0, 1, 64, &row), STATUS_EXHAUSTED, "0 of 20");
    kvcache_release(f->cache, 0);
    CHECK(kvcache_pages_used(f->cache) == 0);
    begin(f->cache, 0, 1, rows, false);
    CHECK_OK(store(f, 0, 1, 0, all, 64));
    kvcache_release(f->cache, 0);
    kvcache_release(f->cache, 0);
}

static int position_of(const struct kvcache *cache, int row)
{
    int n;
    const int32_t *positions = kvcache_positions(cache, 0, 0, 0, row / PAGE_ROWS, &n);

    CHECK(row % PAGE_ROWS < n);
    return positions[row % PAGE_ROWS];
}

/* Drops rows 1 and 0 of seven; what is left in row order is `left`. */
static void drop_two(const struct fixture *f, struct kvcache *cache, const int *left)
{
    static const int32_t list[] = {2, 3, 10, 11, 12, 30, 31};
    const struct kv_rows rows = {.k = f->k, .v = f->v, .index = list, .positions = list, .n = 7};

    begin(cache, 0, 1, max_rows, false);
    CHECK_OK(kvcache_store(cache, 0, 0, 0, &rows));
    CHECK(kvcache_pages_used(cache) == 2);
    CHECK_OK(kvcache_drop(cache, 0, 0, 0, 1));
    CHECK_OK(kvcache_drop(cache, 0, 0, 0, 0));
    CHECK_OK(kvcache_settle(cache));
    CHECK(kvcache_rows(cache, 0, 0, 0) == 5);
    for (int row = 0; row < 5; row++) {
        CHECK(position_of(cache, row) == left[row]);
    }
    CHECK_OK(kvcache_drop(cache, 0, 0, 0, 4));
    CHECK(kvcache_pages_used(cache) == 1);
}

static void test_the_last_row_takes_the_place_of_a_dropped_one(void **state)
{
    struct fixture *f = *state;
    static const int left[] = {30, 31, 10, 11, 12};

    drop_two(f, f->cache, left);
    for (int row = 0; row < 4; row++) {
        check_row(f, 0, 0, 0, row, left[row]);
    }
    kvcache_release(f->cache, 0);
    CHECK(kvcache_pages_used(f->cache) == 0);
}

static void test_an_ordered_cache_stays_in_order(void **state)
{
    struct fixture *f = *state;
    struct kvcache *own = f->cache;
    static const int left[] = {10, 11, 12, 30, 31};
    const struct kvcache_config config = {
        .slots = 1,
        .layers = LAYERS,
        .head_dim = DIM,
        .page_rows = PAGE_ROWS,
        .ordered = true,
        .bytes = PAGES * PAGE_BYTES,
    };

    CHECK_OK(kvcache_create(&f->cache, f->dev, &config));
    drop_two(f, f->cache, left);
    for (int row = 0; row < 4; row++) {
        check_row(f, 0, 0, 0, row, left[row]);
    }
    CHECK(kvcache_first(f->cache, 0, 0, 0, 12) == 2);
    kvcache_destroy(f->cache);
    f->cache = own;
}

/* Row r is about r in each element, and its step r / 127. */
static void test_int8_rows_take_a_byte_a_number_and_move_with_their_scales(void **state)
{
    struct fixture *f = *state;
    static const int left[] = {30, 31, 10, 11, 12};
    struct kvcache_config config = {
        .slots = 1, .layers = LAYERS, .head_dim = DIM, .page_rows = PAGE_ROWS, .int8 = true};
    uint64_t page = PAGE_ROWS * (2 * (DIM + 4) + 4);
    struct kvcache *cache;

    config.bytes = 5 * page + page - 1;
    CHECK(kvcache_row_bytes(&config, DTYPE_F32) == 2 * (DIM + 4));
    CHECK(kvcache_page_bytes(&config, DTYPE_F32) == page);
    CHECK_OK(kvcache_create(&cache, f->dev, &config));
    CHECK(kvcache_pages_total(cache) == 5 && kvcache_bytes_total(cache) == 5 * page);
    drop_two(f, cache, left);
    CHECK(kvcache_bytes_used(cache) == page);
    const struct kv_pool *pool = kvcache_pool(cache);
    const int32_t *pages = kvcache_table(cache, 0, 0, 0);
    for (int i = 0; i < 4 * DIM; i++) {
        ptrdiff_t row = pages[i / DIM / PAGE_ROWS] * PAGE_ROWS + i / DIM % PAGE_ROWS;
        ptrdiff_t at = row * DIM + i % DIM;
        float expected = f->k[(ptrdiff_t)left[i / DIM] * DIM + i % DIM];
        float k = (float)((const int8_t *)pool->k)[at] * pool->k_scale[row];

        CHECK(k > expected - 0.13F && k < expected + 0.13F);
        CHECK((float)((const int8_t *)pool->v)[at] * pool->v_scale[row] == -k);
    }
    kvcache_destroy(cache);
}

static void append(struct fixture *f, int slot, int source)
{
    int32_t row;

    CHECK_OK(kvcache_append(f->cache, slot, 0, 0, source, &row));
    CHECK_OK(kvcache_settle(f->cache));
    write_row(f, row, source);
}

static void check_rows(const struct fixture *f, int slot, const int *sources, int n)
{
    CHECK(kvcache_rows(f->cache, slot, 0, 0) == n);
    for (int row = 0; row < n; row++) {
        int n_page;
        const int32_t *positions =
            kvcache_positions(f->cache, slot, 0, 0, row / PAGE_ROWS, &n_page);
        check_row(f, slot, 0, 0, row, sources[row]);
        CHECK(row % PAGE_ROWS < n_page && positions[row % PAGE_ROWS] == sources[row]);
    }
}

/* Six rows, a page and a half: the full page is never copied, the other by all but the last. */
static void test_forks_share_pages_until_they_append(void **state)
{
    struct fixture *f = *state;
    static const int32_t list[] = {2, 3, 10, 11, 12, 30};

    begin(f->cache, 0, 1, max_rows, false);
    CHECK_OK(store(f, 0, 0, 0, list, 6));
    CHECK(kvcache_shared_pages(f->cache, 0, 1) == 1 && kvcache_shared_pages(f->cache, 0, 0) == 2);
    CHECK_OK(kvcache_fork(f->cache, 0, 1));
    CHECK_OK(kvcache_fork(f->cache, 0, 2));
    CHECK(kvcache_pages_used(f->cache) == 2);
    append(f, 1, 41);
    CHECK(kvcache_pages_used(f->cache) == 3);
    append(f, 0, 40);
    append(f, 0, 50);
    append(f, 0, 51);
    CHECK(kvcache_pages_used(f->cache) == 5);
    append(f, 2, 42); /* the last one that holds it */
    CHECK(kvcache_pages_used(f->cache) == 5);
    check_rows(f, 0, (const int[]){2, 3, 10, 11, 12, 30, 40, 50, 51}, 9);
    check_rows(f, 1, (const int[]){2, 3, 10, 11, 12, 30, 41}, 7);
    check_rows(f, 2, (const int[]){2, 3, 10, 11, 12, 30, 42}, 7);
    kvcache_release(f->cache, 0);
    CHECK(kvcache_pages_used(f->cache) == 3);
    check_rows(f, 2, (const int[]){2, 3, 10, 11, 12, 30, 42}, 7);
    kvcache_release(f->cache, 2);
    CHECK(kvcache_pages_used(f->cache) == 2);
    kvcache_release(f->cache, 1);
    CHECK(kvcache_pages_used(f->cache) == 0);
}

static void test_forks_part_at_the_first_row_that_leaves(void **state)
{
    struct fixture *f = *state;
    static const int32_t list[] = {2, 3, 10, 11, 12, 30};

    begin(f->cache, 0, 1, max_rows, false);
    CHECK_OK(store(f, 0, 0, 0, list, 6));
    CHECK_OK(kvcache_fork(f->cache, 0, 1));
    CHECK_OK(kvcache_drop(f->cache, 1, 0, 0, 1)); /* a row of the full page */
    CHECK_OK(kvcache_settle(f->cache));
    CHECK(kvcache_pages_used(f->cache) == 3);
    check_rows(f, 0, (const int[]){2, 3, 10, 11, 12, 30}, 6);
    check_rows(f, 1, (const int[]){2, 30, 10, 11, 12}, 5);
    CHECK_OK(kvcache_drop(f->cache, 1, 0, 0, 4)); /* the fork lets go of the shared page */
    CHECK(kvcache_pages_used(f->cache) == 3);
    for (int slot = 0; slot < 2; slot++) {
        kvcache_release(f->cache, slot);
    }
    CHECK(kvcache_pages_used(f->cache) == 0);
}

static struct kv_note note_of(const struct fixture *f, int slot, int layer, int head, int row)
{
    const int32_t *table = kvcache_table(f->cache, slot, layer, head);

    return kvcache_pool(f->cache)->notes[table[row / PAGE_ROWS] * PAGE_ROWS + row % PAGE_ROWS];
}

/* Every step changes notes, so rows with notes are copied at once; a row's note goes where it
 * goes. */
static void test_rows_with_notes_are_not_shared(void **state)
{
    struct fixture *f = *state;
    static const int32_t list[] = {2, 3, 10, 11, 12, 30};
    struct kv_note notes[6];

    for (int i = 0; i < 6; i++) {
        notes[i] = (struct kv_note){.mass = (float)i, .position = list[i], .marks = 1};
    }
    begin(f->cache, 0, 1, max_rows, true);
    CHECK_OK(store(f, 0, 0, 0, list, 6));
    CHECK_OK(
        op_kv_note(f->dev, kvcache_pool(f->cache), kvcache_table(f->cache, 0, 0, 0), notes, 6));
    CHECK_OK(kvcache_fork(f->cache, 0, 1));
    CHECK_OK(kvcache_settle(f->cache));
    CHECK(kvcache_pages_used(f->cache) == 4);
    notes[5].mass = 9.0F;
    CHECK_OK(
        op_kv_note(f->dev, kvcache_pool(f->cache), kvcache_table(f->cache, 0, 0, 0), notes, 6));
    CHECK_OK(kvcache_drop(f->cache, 1, 0, 0, 1));
    CHECK_OK(kvcache_settle(f->cache));
    check_rows(f, 0, (const int[]){2, 3, 10, 11, 12, 30}, 6);
    check_rows(f, 1, (const int[]){2, 30, 10, 11, 12}, 5);
    CHECK(note_of(f, 0, 0, 0, 1).mass == 1.0F && note_of(f, 0, 0, 0, 5).mass == 9.0F);
    CHECK(note_of(f, 1, 0, 0, 1).mass == 5.0F && note_of(f, 1, 0, 0, 1).position == 30);
    kvcache_release(f->cache, 0);
    kvcache_release(f->cache, 1);
    CHECK(kvcache_pages_used(f->cache) == 0);
}

static void test_a_fork_without_pages_for_its_rows_is_refused(void **state)
{
    struct fixture *f = *state;
    static const int32_t list[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

    begin(f->cache, 0, HEADS, (const int[]){20, 20}, true);
    for (int head = 0; head < HEADS; head++) {
        CHECK_OK(store(f, 0, 0, head, list, 17));
    }
    CHECK_FAILS(kvcache_fork(f->cache, 0, 1), STATUS_EXHAUSTED,
                "5 of 20 pages are free, 15 are needed");
    CHECK(kvcache_pages_used(f->cache) == 15);
    kvcache_release(f->cache, 0);
}

/* Slots come and go until the block's end was reached several times; those that stay have their
 * rows where they were.  A table is as large as its head can become: 15 rows and 8, or 20. */
static void test_tables_move_together_when_their_block_ends(void **state)
{
    struct fixture *f = *state;
    static const int most[LAYERS] = {160, 20};
    int32_t list[15];
    int32_t row;

    for (int i = 0; i < 15; i++) {
        list[i] = 2 * i;
    }
    begin(f->cache, 3, 1, most, false);
    CHECK_OK(store(f, 3, 0, 0, list, 4));
    CHECK(kvcache_most_pages(f->cache, 3) == 3);
    for (int round = 0; round < 400; round++) {
        int slot = round % 2;
        kvcache_release(f->cache, slot);
        begin(f->cache, slot, 1, most, false);
        CHECK_OK(store(f, slot, 0, 0, list, 15));
        CHECK_OK(store(f, slot, 1, 0, list, 15));
        CHECK(kvcache_most_pages(f->cache, slot) == 6 + 5);
        if (round == 200) { /* a page that is not settled yet */
            CHECK_OK(kvcache_append(f->cache, 3, 0, 0, 50, &row));
        }
    }
    append(f, 3, 51);
    CHECK(kvcache_rows(f->cache, 3, 0, 0) == 6);
    check_row(f, 3, 0, 0, 1, 2);
    check_row(f, 3, 0, 0, 5, 51);
    for (int slot = 0; slot < 2; slot++) {
        for (int i = 0; i < 15; i++) {
            check_row(f, slot, 1, 0, i, 2 * i);
        }
    }
    for (int slot = 0; slot < 4; slot++) {
        kvcache_release(f->cache, slot);
    }
    CHECK(kvcache_pages_used(f->cache) == 0);
}

static void test_tables_without_room_are_refused(void **state)
{
    struct fixture *f = *state;
    static const int32_t list[] = {0};
    static const int rows[LAYERS] = {PAGES * PLAN_MAX_SAMPLES * PAGE_ROWS + 1, 1};

    CHECK_OK(kvcache_begin(
        f->cache, 0, &(struct kv_slot){.heads = 1, .max_rows = rows, .appended = rows[0] - 1}));
    CHECK_FAILS(store(f, 0, 0, 0, list, 1), STATUS_EXHAUSTED,
                "page tables have 0 of 1280 entries, 1281 more");
    kvcache_release(f->cache, 0);
}

static void test_a_copy_without_a_free_page_is_refused(void **state)
{
    struct fixture *f = *state;
    static const int32_t list[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    int32_t row;

    begin(f->cache, 0, HEADS, (const int[]){20, 20}, false);
    for (int i = 0; i < 4; i++) {
        CHECK_OK(store(f, 0, i / 2, i % 2, list, 17));
    }
    CHECK_OK(kvcache_fork(f->cache, 0, 1));
    CHECK(kvcache_pages_used(f->cache) == PAGES);
    CHECK_FAILS(kvcache_append(f->cache, 1, 0, 0, 50, &row), STATUS_EXHAUSTED,
                "0 of 20 pages are free, 1 are needed");
    kvcache_release(f->cache, 0);
    CHECK_OK(kvcache_append(f->cache, 1, 0, 0, 50, &row)); /* nobody else has it now */
    kvcache_release(f->cache, 1);
    CHECK(kvcache_pages_used(f->cache) == 0);
}

static void test_memory_below_a_page_is_refused(void **state)
{
    struct fixture *f = *state;
    struct kvcache *cache;
    const struct kvcache_config config = {
        .slots = 1, .layers = 1, .head_dim = DIM, .page_rows = PAGE_ROWS, .bytes = PAGE_BYTES - 1};

    CHECK_FAILS(kvcache_create(&cache, f->dev, &config), STATUS_INVALID, "less than a page");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heads_keep_lists_of_their_own_length),
        cmocka_unit_test(test_appended_rows_follow_in_fresh_pages),
        cmocka_unit_test(test_visible_rows_are_found_by_position),
        cmocka_unit_test(test_a_full_pool_refuses_and_recovers),
        cmocka_unit_test(test_the_last_row_takes_the_place_of_a_dropped_one),
        cmocka_unit_test(test_an_ordered_cache_stays_in_order),
        cmocka_unit_test(test_int8_rows_take_a_byte_a_number_and_move_with_their_scales),
        cmocka_unit_test(test_forks_share_pages_until_they_append),
        cmocka_unit_test(test_forks_part_at_the_first_row_that_leaves),
        cmocka_unit_test(test_rows_with_notes_are_not_shared),
        cmocka_unit_test(test_a_fork_without_pages_for_its_rows_is_refused),
        cmocka_unit_test(test_tables_move_together_when_their_block_ends),
        cmocka_unit_test(test_tables_without_room_are_refused),
        cmocka_unit_test(test_a_copy_without_a_free_page_is_refused),
        cmocka_unit_test(test_memory_below_a_page_is_refused),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
