/* Draws: their definition, the published noise, splits of the vocabulary. */
#include "tests/check.h"
#include "tests/definitions/select.h"
#include "tests/kernels/helpers_act.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 40000 };

static struct device *dev;
static struct act logits;

static void check_draw(const float *row, int n, int first_id, const struct draw *draw)
{
    struct drawn got, expected = define_draw(row, n, first_id, draw);

    CHECK_OK(op_draw(dev, &got, row, 1, n, first_id, draw));
    if (got.id != expected.id || got.value != expected.value) {
        fail_msg("T %g n %d first %d: got %d %.9g, expected %d %.9g", (double)draw->temperature, n,
                 first_id, got.id, (double)got.value, expected.id, (double)expected.value);
    }
}

static void test_draws_match_their_definition(void **state)
{
    static const float temperatures[] = {0.0f, 0.01f, 0.7f, 1.0f, 5.0f, 100.0f};

    (void)state;
    for (int i = 0; i < 120; i++) {
        struct draw draw = {
            .temperature = temperatures[i % 6],
            .seed = 0x123456789abcdefu * (uint64_t)(i + 1),
            .sample = (uint32_t)i % 3,
            .step = (uint32_t)i,
        };
        int n = i % 5 == 0 ? VOCAB : 1 + i * 7;

        if (i % 2) {
            draw.floor_key = op_key(logits.f32[i]);
            draw.tie_id = i % 4 == 1 ? -1 : VOCAB;
        }
        check_draw(logits.f32, n, i % 7, &draw);
    }
}

static void test_noise_is_the_published_one(void **state)
{
    /* Philox4x32-10 of counter 0 and key 0 begins 6627e8d5 e169c58d bc57ac4c 9b00dbd8 */
    double u = (double)(0xe169c58d6627e8d5u >> 12) + 0.5;
    double v = (double)(0x9b00dbd8bc57ac4cu >> 12) + 0.5;

    (void)state;
    CHECK(define_gumbel(0, 0, 0, 0) == -log(-log(u * 0x1p-52)));
    CHECK(define_gumbel(0, 0, 0, 1) == -log(-log(v * 0x1p-52)));
}

static void test_the_best_of_all_shards_is_the_draw_of_the_whole(void **state)
{
    (void)state;
    for (uint32_t step = 0; step < 20; step++) {
        struct draw draw = {.temperature = step % 2 ? 1.3f : 0.0f, .seed = 9, .step = step};
        struct drawn whole, best = {.value = -INFINITY, .id = -1};
        int first = 0;

        CHECK_OK(op_draw(dev, &whole, logits.f32, 1, VOCAB, 0, &draw));
        for (int shard = 0; shard < 3; shard++) {
            int end = shard == 2 ? VOCAB : first + 9999 + shard;
            struct drawn part;

            CHECK_OK(op_draw(dev, &part, logits.f32 + first, 1, end - first, first, &draw));
            best = part.value > best.value ? part : best;
            first = end;
        }
        CHECK(best.id == whole.id && best.value == whole.value);
    }
}

static void test_draws_follow_the_softmax(void **state)
{
    enum { DRAWS = 20000 };
    const float row[] = {0.0f, 1.0f, 2.0f, -1.0f, NAN};
    int count[4] = {0};
    double total = 0.0;

    (void)state;
    for (uint32_t step = 0; step < DRAWS; step++) {
        struct draw draw = {.temperature = 2.0f, .seed = 77, .step = step};
        struct drawn got;

        CHECK_OK(op_draw(dev, &got, row, 1, 5, 0, &draw));
        CHECK(got.id >= 0 && got.id < 4);
        count[got.id]++;
    }
    for (int i = 0; i < 4; i++) {
        total += exp((double)row[i] / 2.0);
    }
    for (int i = 0; i < 4; i++) {
        double p = exp((double)row[i] / 2.0) / total;

        CHECK(fabs(count[i] - DRAWS * p) < 5.0 * sqrt(DRAWS * p * (1.0 - p)));
    }
}

static void test_greedy_takes_the_lowest_id_of_equals_and_never_nan(void **state)
{
    float row[100];
    struct draw draw = {.temperature = 0.0f};
    struct drawn got;

    (void)state;
    for (int i = 0; i < 100; i++) {
        row[i] = i % 10 == 3 ? 5.0f : i % 2 ? NAN : 1.0f;
    }
    CHECK_OK(op_draw(dev, &got, row, 1, 100, 1000, &draw));
    CHECK(got.id == 1003 && got.value == 5.0f);
    CHECK_OK(op_draw(dev, &got, row, 1, 3, 1000, &draw));
    CHECK(got.id == 1000 && got.value == 1.0f);
    CHECK_OK(op_draw(dev, &got, row + 1, 1, 1, 1000, &draw));
    CHECK(got.id == -1 && isinf(got.value));
    draw.temperature = 1.0f;
    CHECK_OK(op_draw(dev, &got, row + 1, 1, 1, 1000, &draw));
    CHECK(got.id == -1 && isinf(got.value));
    CHECK_OK(op_draw(dev, &got, row, 1, 0, 1000, &draw));
    CHECK(got.id == -1);
}

static void test_the_best_of_ranks_is_the_lowest_id_of_equals(void **state)
{
    enum { ROWS = 3 };
    const struct drawn of_ranks[][ROWS] = {
        {{1.0f, 4}, {-INFINITY, -1}, {-INFINITY, -1}},
        {{2.0f, 10}, {-3.0f, 11}, {-INFINITY, -1}},
        {{2.0f, 20}, {-3.0f, 21}, {-INFINITY, -1}},
    };
    struct drawn got[ROWS];

    (void)state;
    CHECK_OK(op_best_drawn(dev, got, of_ranks[0], ROWS, 3));
    CHECK(got[0].id == 10 && got[0].value == 2.0f);
    CHECK(got[1].id == 11 && got[1].value == -3.0f);
    CHECK(got[2].id == -1 && isinf(got[2].value));
}

static void test_only_the_rank_that_has_a_token_knows_its_logit(void **state)
{
    enum { N = 10, FIRST = 100 };
    const struct drawn chosen[] = {{0, FIRST}, {0, FIRST + 9}, {0, FIRST - 1}, {0, FIRST + N}};
    float got[4];

    (void)state;
    CHECK_OK(op_logits_of(dev, got, logits.f32, 4, N, FIRST, chosen));
    CHECK(got[0] == logits.f32[0] && got[1] == logits.f32[N + 9]);
    CHECK(got[2] == 0.0f && got[3] == 0.0f);
}

static int set_up(void **state)
{
    uint64_t seed = 1;

    (void)state;
    dev = act_device(&variants[0], 2);
    logits = act_random(DTYPE_F32, VOCAB, 2.0f, &seed);
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
        cmocka_unit_test(test_draws_match_their_definition),
        cmocka_unit_test(test_noise_is_the_published_one),
        cmocka_unit_test(test_the_best_of_all_shards_is_the_draw_of_the_whole),
        cmocka_unit_test(test_draws_follow_the_softmax),
        cmocka_unit_test(test_greedy_takes_the_lowest_id_of_equals_and_never_nan),
        cmocka_unit_test(test_the_best_of_ranks_is_the_lowest_id_of_equals),
        cmocka_unit_test(test_only_the_rank_that_has_a_token_knows_its_logit),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
