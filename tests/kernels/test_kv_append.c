/* A decode step's rows on their way to the cache: rotated, copied to every cache of their KV head.
 */
#include "tests/check.h"
#include "tests/definitions/basic.h"
#include "tests/kernels/helpers_act.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE_ROWS = 4, MAX_ROWS = 64 };

struct shape {
    int rows, q_heads, kv_heads, cache_heads, head_dim;
};

struct problem {
    struct shape shape;
    struct act q, k, v, pool_k, pool_v;
    struct kv_pool pool;
    int32_t *slot;
    int32_t positions[MAX_ROWS];
    float inv_freq[OP_MAX_HEAD_DIM / 2];
    int pool_rows;
};

/* Every second row of the pool, the last one first, has a slot. */
static void problem_make(struct problem *p, enum dtype dtype, const struct shape *s, uint64_t seed)
{
    size_t d = (size_t)s->head_dim, rows = (size_t)s->rows, kv = rows * (size_t)s->kv_heads * d;
    int slots = s->rows * s->cache_heads;

    *p =
        (struct problem){.shape = *s, .pool_rows = (2 * slots + PAGE_ROWS) / PAGE_ROWS * PAGE_ROWS};
    p->q = act_random(dtype, rows * (size_t)s->q_heads * d, 1.0f, &seed);
    p->k = act_random(dtype, kv, 1.0f, &seed);
    p->v = act_random(dtype, kv, 1.0f, &seed);
    p->pool_k = act_zeros(dtype, (size_t)p->pool_rows * d);
    p->pool_v = act_zeros(dtype, (size_t)p->pool_rows * d);
    p->pool = (struct kv_pool){
        .k = p->pool_k.act, .v = p->pool_v.act, .page_rows = PAGE_ROWS, .head_dim = s->head_dim};
    p->slot = calloc((size_t)slots, sizeof(*p->slot));
    assert_non_null(p->slot);
    for (int i = 0; i < slots; i++) {
        p->slot[i] = 2 * (slots - 1 - i);
    }
    for (int r = 0; r < s->rows; r++) {
        p->positions[r] = r < 2 ? r : test_below(&seed, 131072);
    }
    for (int i = 0; i < s->head_dim / 2; i++) {
        p->inv_freq[i] = 1.0f / powf(500000.0f, 2.0f * (float)i / (float)s->head_dim);
    }
}

static void problem_free(struct problem *p)
{
    act_free(&p->q);
    act_free(&p->k);
    act_free(&p->v);
    act_free(&p->pool_k);
    act_free(&p->pool_v);
    free(p->slot);
}

static struct kv_append args_of(struct problem *p)
{
    const struct shape *s = &p->shape;

    return (struct kv_append){
        .pool = &p->pool,
        .slot = p->slot,
        .k = p->k.act,
        .v = p->v.act,
        .q = p->q.act,
        .positions = p->positions,
        .inv_freq = p->inv_freq,
        .rows = s->rows,
        .q_heads = s->q_heads,
        .kv_heads = s->kv_heads,
        .cache_heads = s->cache_heads,
    };
}

static double tolerance(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? 0x1p-8 : dtype == DTYPE_F16 ? 0x1p-10 : 1e-6;
}

/* Row i of the pool is cache head c of row r if it has a slot, else zeros. */
static void check_pool(const struct problem *p, const double *keys, double limit)
{
    const struct shape *s = &p->shape;
    size_t d = (size_t)s->head_dim;
    int slots = s->rows * s->cache_heads, copies = s->cache_heads / s->kv_heads;
    double none[OP_MAX_HEAD_DIM] = {0};

    for (int row = 0; row < p->pool_rows; row++) {
        const float *k = p->pool_k.f32 + (size_t)row * d, *v = p->pool_v.f32 + (size_t)row * d;
        int i = slots - 1 - row / 2;

        if (row % 2 || i < 0) {
            CHECK(act_worst(k, none, d, 1.0) == 0.0 && act_worst(v, none, d, 1.0) == 0.0);
            continue;
        }
        size_t from = (size_t)(i / s->cache_heads * s->kv_heads + i % s->cache_heads / copies) * d;
        CHECK(act_worst(k, keys + from, d, 1.0) <= limit);
        CHECK(memcmp(v, p->v.f32 + from, d * sizeof(float)) == 0);
    }
}

static void check_append(const struct variant *variant, const struct shape *s)
{
    struct device *dev = act_device(variant, 2);
    struct problem p;

    problem_make(&p, variant->dtype, s, (uint64_t)s->head_dim);
    double *q = calloc(p.q.n, sizeof(*q)), *k = calloc(p.k.n, sizeof(*k));
    struct kv_append args = args_of(&p);

    assert_non_null(q);
    assert_non_null(k);
    define_rope(q, p.q.f32, p.positions, p.inv_freq, s->rows, s->q_heads, s->head_dim);
    define_rope(k, p.k.f32, p.positions, p.inv_freq, s->rows, s->kv_heads, s->head_dim);
    CHECK_OK(op_kv_append(dev, &args));
    act_read(variant->dtype, &p.q);
    act_read(variant->dtype, &p.pool_k);
    act_read(variant->dtype, &p.pool_v);
    double worst = act_worst(p.q.f32, q, p.q.n, 1.0);
    if (!(worst <= tolerance(variant->dtype))) {
        fail_msg("%s: queries are off by %g", device_description(dev), worst);
    }
    check_pool(&p, k, tolerance(variant->dtype));
    free(q);
    free(k);
    problem_free(&p);
    device_close(dev);
}

static void test_rows_arrive_rotated_in_every_cache_of_their_head(void **state)
{
    static const struct shape shapes[] = {{1, 1, 1, 1, 8},   {3, 4, 2, 2, 24},  {5, 6, 2, 6, 40},
                                          {2, 8, 8, 8, 128}, {64, 4, 1, 4, 16}, {7, 3, 1, 1, 256}};

    (void)state;
    for (int v = 0; v < n_variants; v++) {
        for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
            check_append(&variants[v], &shapes[i]);
        }
    }
}

/* What op_rope() makes of each, bit for bit; alone and with others. */
static void test_a_row_has_the_bits_of_rope_in_any_company(void **state)
{
    static const struct shape shape = {9, 4, 2, 2, 32};

    (void)state;
    for (int v = 0; v < n_variants; v++) {
        struct device *dev = act_device(&variants[v], 2);
        size_t bytes = 32 * dtype_bytes(variants[v].dtype), q_row = 4 * bytes;
        struct problem p;

        problem_make(&p, variants[v].dtype, &shape, 3);
        struct act turned = act_zeros(variants[v].dtype, p.q.n);
        memcpy(turned.act, p.q.act, 9 * q_row);
        CHECK_OK(op_rope(dev, &(struct rope){.q = turned.act,
                                             .positions = p.positions,
                                             .inv_freq = p.inv_freq,
                                             .rows = 9,
                                             .q_heads = 4,
                                             .head_dim = 32}));
        for (int r = 0; r < 9; r++) {
            struct kv_append one = args_of(&p);

            one.q = (char *)p.q.act + (size_t)r * q_row;
            one.positions += r;
            one.rows = 1;
            CHECK_OK(op_kv_append(dev, &one));
        }
        CHECK(memcmp(turned.act, p.q.act, 9 * q_row) == 0);
        act_free(&turned);
        problem_free(&p);
        device_close(dev);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_arrive_rotated_in_every_cache_of_their_head),
        cmocka_unit_test(test_a_row_has_the_bits_of_rope_in_any_company),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
