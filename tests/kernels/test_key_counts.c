/* Counts of scores by key: against the definition, and as what they are for, a k-th largest. */
#include "tests/check.h"
#include "tests/definitions/select.h"
#include "tests/kernels/helpers_act.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 3, LONG = 131072 };

static struct device *dev;

static float any_score(uint64_t *seed, int kind)
{
    static const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-42f, -1e-42f, 1.0f};
    uint32_t bits = (uint32_t)test_random(seed);

    switch (kind) {
    case 0:
        return special[bits % 8];
    case 1:
        return (float)(bits % 5);
    default:
        return (float)bits * 0x1p-32f;
    }
}

static float *any_scores(size_t n, uint64_t *seed, int kind)
{
    float *scores = calloc(n + 1, sizeof(*scores));

    assert_non_null(scores);
    for (size_t i = 0; i < n; i++) {
        scores[i] = any_score(seed, kind);
    }
    return scores;
}

static void test_counts_agree_with_the_definition(void **state)
{
    int32_t got[ROWS * OP_KEY_BINS];
    int32_t expected[ROWS * OP_KEY_BINS];
    uint64_t seed = 3;

    (void)state;
    for (int round = 0; round < 200; round++) {
        int n = test_below(&seed, round % 10 == 0 ? 70000 : 300);
        float *scores = any_scores((size_t)n * ROWS, &seed, round % 3);
        int shift = 8 * (round % 4);
        float like = n > 0 ? scores[n / 2] : 0.0f;
        struct key_counts args = {
            .out = got,
            .scores = scores,
            .prefix = shift < 24 ? op_key(like + 0.0f) >> (shift + 8) : 99,
            .rows = ROWS,
            .n = n,
            .shift = shift,
        };
        CHECK_OK(op_key_counts(dev, &args));
        args.out = expected;
        define_key_counts(&args);
        assert_memory_equal(got, expected, sizeof(got));
        free(scores);
    }
}

/* The k-th largest of all rows together, as the counts find it. */
static uint32_t find_key(const float *scores, int n, int k)
{
    int32_t counts[ROWS * OP_KEY_BINS];
    struct key_counts args = {.out = counts, .scores = scores, .rows = ROWS, .n = n};

    for (args.shift = 24; args.shift >= 0; args.shift -= 8) {
        int bin = OP_KEY_BINS;
        int here = 0;

        CHECK_OK(op_key_counts(dev, &args));
        do {
            k -= here;
            bin--;
            here = counts[bin] + counts[OP_KEY_BINS + bin] + counts[2 * OP_KEY_BINS + bin];
        } while (here < k);
        args.prefix = args.prefix << 8 | (uint32_t)bin;
    }
    return args.prefix;
}

static int descending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x < y) - (x > y);
}

static void test_the_kth_largest_of_long_rows_is_found(void **state)
{
    static const int ks[] = {1, 1000, LONG, ROWS * LONG};
    uint64_t seed = 4;

    (void)state;
    for (int kind = 1; kind < 3; kind++) {
        float *scores = any_scores((size_t)LONG * ROWS, &seed, kind);
        uint32_t keys[4];

        for (int i = 0; i < 4; i++) {
            keys[i] = find_key(scores, LONG, ks[i]);
        }
        qsort(scores, (size_t)LONG * ROWS, sizeof(*scores), descending);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(keys[i], op_key(scores[ks[i] - 1]));
        }
        free(scores);
    }
}

static int open_device(void **state)
{
    (void)state;
    dev = act_device(&variants[0], 2);
    return 0;
}

static int close_device(void **state)
{
    (void)state;
    device_close(dev);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts_agree_with_the_definition),
        cmocka_unit_test(test_the_kth_largest_of_long_rows_is_found),
    };

    return cmocka_run_group_tests(tests, open_device, close_device);
}
