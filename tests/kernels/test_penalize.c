/* Penalties: their definition, the token that joins, shards, and rows without any. */
#include "tests/check.h"
#include "tests/definitions/select.h"
#include "tests/kernels/helpers_act.h"

#include <stdlib.h>
#include <string.h>

enum { VOCAB = 40000, ROWS = 5 };

static struct device *dev;
static struct act logits;

/* Prompt bits, counts, both and neither, by a fixed pattern. */
static void make_seen(uint32_t *seen, int n, int variant)
{
    for (int i = 0; i < n; i++) {
        int kind = (i * 7 + variant) % 11;

        seen[i] = (kind < 3 ? 0x80000000u : 0) | (kind % 4 == 1 ? (uint32_t)(i % 37 + 1) : 0);
    }
}

static void test_penalties_match_their_definition(void **state)
{
    static const struct penalty kinds[] = {
        {1.3f, 0.0f, 0.0f, -1, NULL},   {0.7f, 0.0f, 0.0f, 17, NULL},
        {1.0f, 0.4f, 0.0f, 0, NULL},    {1.0f, 0.0f, -1.5f, 9999, NULL},
        {1.1f, -0.2f, 0.6f, 123, NULL}, {100.0f, 2.0f, 2.0f, VOCAB - 1, NULL},
    };
    uint32_t *seen = malloc(VOCAB * sizeof(*seen));
    uint32_t *joined = malloc(VOCAB * sizeof(*joined));
    float *got = malloc(VOCAB * sizeof(*got)), *expected = malloc(VOCAB * sizeof(*expected));

    (void)state;
    for (int i = 0; i < 6; i++) {
        for (int n = VOCAB; n > 0; n /= 19) {
            struct penalty penalty = kinds[i];

            make_seen(seen, n, i);
            memcpy(joined, seen, (size_t)n * sizeof(*seen));
            if (penalty.token >= 0 && penalty.token < n) {
                joined[penalty.token]++;
            }
            define_penalize(expected, logits.f32, n, &penalty, joined);
            penalty.seen = seen;
            CHECK_OK(op_penalize(dev, got, logits.f32, 1, n, 0, &penalty));
            assert_memory_equal(seen, joined, (size_t)n * sizeof(*seen));
            assert_memory_equal(got, expected, (size_t)n * sizeof(*got));
        }
    }
    free(seen);
    free(joined);
    free(got);
    free(expected);
}

/* A shard has its part of `seen`, and only the one that holds the token counts it. */
static void test_shards_are_parts_of_the_whole(void **state)
{
    enum { N = 1000, SPLIT = 333 };
    uint32_t whole[N], parts[N];
    float all[N], shards[N];
    struct penalty penalty = {1.2f, 0.3f, 0.1f, SPLIT, whole};

    (void)state;
    make_seen(whole, N, 3);
    memcpy(parts, whole, sizeof(parts));
    CHECK_OK(op_penalize(dev, all, logits.f32, 1, N, 0, &penalty));
    penalty.seen = parts;
    CHECK_OK(op_penalize(dev, shards, logits.f32, 1, SPLIT, 0, &penalty));
    penalty.seen = parts + SPLIT;
    CHECK_OK(op_penalize(dev, shards + SPLIT, logits.f32 + SPLIT, 1, N - SPLIT, SPLIT, &penalty));
    assert_memory_equal(all, shards, sizeof(all));
    assert_memory_equal(whole, parts, sizeof(whole));
}

static void test_rows_have_their_own_penalties_or_none(void **state)
{
    enum { N = 777 };
    uint32_t seen[ROWS][N], joined[N];
    float got[ROWS * N], expected[N];
    struct penalty penalties[ROWS];

    (void)state;
    for (int r = 0; r < ROWS; r++) {
        make_seen(seen[r], N, r);
        penalties[r] = (struct penalty){1.0f + 0.1f * (float)r, 0.1f * (float)r, 0.2f, r,
                                        r % 2 ? NULL : seen[r]};
    }
    CHECK_OK(op_penalize(dev, got, logits.f32, ROWS, N, 0, penalties));
    for (int r = 0; r < ROWS; r++) {
        make_seen(joined, N, r);
        joined[r] += r % 2 == 0;
        define_penalize(expected, logits.f32 + (size_t)r * N, N, &penalties[r], joined);
        assert_memory_equal(got + (size_t)r * N, r % 2 ? logits.f32 + (size_t)r * N : expected,
                            sizeof(expected));
    }
    CHECK_OK(op_penalize(dev, got, logits.f32, 0, N, 0, penalties));
}

static int set_up(void **state)
{
    uint64_t seed = 5;

    (void)state;
    dev = act_device(&variants[0], 2);
    logits = act_random(DTYPE_F32, VOCAB, 3.0f, &seed);
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
        cmocka_unit_test(test_penalties_match_their_definition),
        cmocka_unit_test(test_shards_are_parts_of_the_whole),
        cmocka_unit_test(test_rows_have_their_own_penalties_or_none),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
