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

static void check_append(const struct variant *variant)
{
    const int32_t slot[] = {23, 0, 9, 10};
    struct cache c = cache_open(variant);

    CHECK_OK(op_kv_append(c.dev, &c.pool, c.k.act, c.v.act, slot, 4));
    for (int row = 0; row < PAGES * PAGE_ROWS; row++) {
        int from = -1;

        for (int i = 0; i < 4; i++) {
            from = slot[i] == row ? i : from;
        }
        check_row(&c, row, from);
    }
    cache_close(&c);
}

static void test_append_writes_one_row_a_slot(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_append(&variants[v]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gather_fills_pages_in_table_order),
        cmocka_unit_test(test_append_writes_one_row_a_slot),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
