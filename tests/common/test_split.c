#include "common/split.h"
#include "tests/check.h"

#include <stdlib.h>
#include <string.h>

static struct model_config shape(int query_heads, int kv_heads, int intermediate, int vocab)
{
    return (struct model_config){.name = "m",
                                 .query_heads = query_heads,
                                 .kv_heads = kv_heads,
                                 .intermediate = intermediate,
                                 .vocab = vocab};
}

/* Adds [first, first + count) to what is owned so far; every share follows the one before. */
static void extend(int *next, int first, int count, int at_least)
{
    assert_int_equal(first, *next);
    CHECK(count >= at_least);
    *next = first + count;
}

static void check_even(int *smallest, int *largest, int count)
{
    *smallest = count < *smallest ? count : *smallest;
    *largest = count > *largest ? count : *largest;
    CHECK(*largest - *smallest <= 1);
}

/* A replicated KV head: the ranks that have it are neighbours and number themselves. */
static void check_replicas(const struct split *splits, int ranks, int kv_heads)
{
    for (int head = 0; head < kv_heads; head++) {
        int owners = 0;
        for (int rank = 0; rank < ranks; rank++) {
            const struct split *s = &splits[rank];
            if (head < s->kv_first || head >= s->kv_first + s->kv_heads) {
                continue;
            }
            assert_int_equal(s->replica, owners);
            CHECK(owners == 0 || (rank > 0 && splits[rank - 1].kv_first == head));
            owners++;
        }
        CHECK(owners >= 1);
        for (int rank = 0; rank < ranks; rank++) {
            const struct split *s = &splits[rank];
            if (head >= s->kv_first && head < s->kv_first + s->kv_heads) {
                assert_int_equal(s->replicas, owners);
            }
        }
    }
}

static void check_groups(const struct split *splits, int ranks, int group)
{
    for (int rank = 0; rank < ranks; rank++) {
        const struct split *s = &splits[rank];
        /* A rank's query head h belongs to its KV head h / (query_heads / kv_heads). */
        assert_int_equal(s->query_heads % s->kv_heads, 0);
        int local = s->query_heads / s->kv_heads;
        for (int h = 0; h < s->query_heads; h++) {
            assert_int_equal((s->query_first + h) / group, s->kv_first + h / local);
        }
        CHECK(s->replicas > 1 || local == group);
    }
}

static void check_shape(const struct model_config *config)
{
    struct split splits[64];

    for (int ranks = 1; ranks <= config->query_heads; ranks++) {
        int query = 0;
        int mlp = 0;
        int vocab = 0;
        int mlp_range[2] = {1 << 30, 0};
        int vocab_range[2] = {1 << 30, 0};
        for (int rank = 0; rank < ranks; rank++) {
            struct split *s = &splits[rank];
            memset(s, 0xff, sizeof(*s));
            CHECK_OK(split_for_rank(s, config, rank, ranks));
            extend(&query, s->query_first, s->query_heads, 1);
            extend(&mlp, s->mlp_first, s->mlp_columns, 1);
            extend(&vocab, s->vocab_first, s->vocab_rows, 1);
            check_even(&mlp_range[0], &mlp_range[1], s->mlp_columns);
            check_even(&vocab_range[0], &vocab_range[1], s->vocab_rows);
            CHECK(s->kv_first >= 0 && s->kv_heads >= 1);
            CHECK(s->kv_first + s->kv_heads <= config->kv_heads);
        }
        assert_int_equal(query, config->query_heads);
        assert_int_equal(mlp, config->intermediate);
        assert_int_equal(vocab, config->vocab);
        check_replicas(splits, ranks, config->kv_heads);
        check_groups(splits, ranks, config->query_heads / config->kv_heads);
    }
}

static void test_every_head_column_and_row_has_exactly_one_owner(void **state)
{
    (void)state;
    for (int kv_heads = 1; kv_heads <= 9; kv_heads++) {
        for (int group = 1; group <= 5; group++) {
            struct model_config config = shape(kv_heads * group, kv_heads, 101, 257);
            check_shape(&config);
        }
    }
}

static void test_nine_query_and_three_kv_heads_are_dealt_out_in_order(void **state)
{
    static const struct {
        int ranks, rank, query_first, query_heads, kv_first, kv_heads, replicas, replica;
    } expected[] = {
        {2, 0, 0, 6, 0, 2, 1, 0}, {2, 1, 6, 3, 2, 1, 1, 0}, {3, 1, 3, 3, 1, 1, 1, 0},
        {4, 0, 0, 2, 0, 1, 2, 0}, {4, 1, 2, 1, 0, 1, 2, 1}, {4, 2, 3, 3, 1, 1, 1, 0},
        {4, 3, 6, 3, 2, 1, 1, 0}, {9, 0, 0, 1, 0, 1, 3, 0}, {9, 4, 4, 1, 1, 1, 3, 1},
        {9, 8, 8, 1, 2, 1, 3, 2},
    };
    struct model_config config = shape(9, 3, 20, 30);

    (void)state;
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        struct split s;
        CHECK_OK(split_for_rank(&s, &config, expected[i].rank, expected[i].ranks));
        assert_int_equal(s.query_first, expected[i].query_first);
        assert_int_equal(s.query_heads, expected[i].query_heads);
        assert_int_equal(s.kv_first, expected[i].kv_first);
        assert_int_equal(s.kv_heads, expected[i].kv_heads);
        assert_int_equal(s.replicas, expected[i].replicas);
        assert_int_equal(s.replica, expected[i].replica);
    }
}

static void test_one_rank_owns_everything(void **state)
{
    struct model_config config = shape(32, 8, 14336, 128256);
    struct split s;

    (void)state;
    CHECK_OK(split_for_rank(&s, &config, 0, 1));
    assert_int_equal(s.query_heads, 32);
    assert_int_equal(s.kv_heads, 8);
    assert_int_equal(s.mlp_columns, 14336);
    assert_int_equal(s.vocab_rows, 128256);
    assert_int_equal(s.replicas, 1);
}

static void test_a_degree_that_leaves_a_rank_without_work_is_refused(void **state)
{
    struct model_config heads = shape(8, 2, 100, 100);
    struct model_config columns = shape(8, 2, 3, 100);
    struct model_config rows = shape(8, 2, 100, 3);
    struct split s;

    (void)state;
    CHECK_FAILS(split_for_rank(&s, &heads, 0, 0), STATUS_INVALID, "degree 0");
    CHECK_FAILS(split_for_rank(&s, &heads, 0, 9), STATUS_INVALID, "8 query heads, so 1 to 8");
    CHECK_FAILS(split_for_rank(&s, &columns, 0, 4), STATUS_INVALID, "3 MLP columns");
    CHECK_FAILS(split_for_rank(&s, &rows, 0, 4), STATUS_INVALID, "3 vocabulary rows");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_head_column_and_row_has_exactly_one_owner),
        cmocka_unit_test(test_nine_query_and_three_kv_heads_are_dealt_out_in_order),
        cmocka_unit_test(test_one_rank_owns_everything),
        cmocka_unit_test(test_a_degree_that_leaves_a_rank_without_work_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
