/* Which row leaves a cache head: the definition, step by step over heads of different lengths. */
#include "tests/check.h"
#include "tests/definitions/select.h"
#include "tests/kernels/helpers_act.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 5, MOST_ROWS = 1400, STEPS = 12 };

struct head {
    struct kv_note notes[MOST_ROWS + STEPS], expected[MOST_ROWS + STEPS];
    struct evict_rule rule;
};

static struct device *dev;

/* Masses on a grid, so that many are equal; rows in any order. */
static void begin_head(struct head *head, int rows, uint64_t *seed)
{
    for (int i = 0; i < rows; i++) {
        int j = test_below(seed, i + 1);

        head->notes[i] = head->notes[j];
        head->notes[j] = (struct kv_note){.mass = (float)test_below(seed, 40) / 8.0f,
                                          .position = 2 * i,
                                          .marks = (uint32_t)test_below(seed, 4)};
    }
    head->rule = (struct evict_rule){.rows = rows,
                                     .position = 2 * rows,
                                     .first = test_below(seed, 9),
                                     .recent = INT_MAX,
                                     .marks = (uint32_t)test_below(seed, 4),
                                     .n_others = test_below(seed, rows + 1)};
    if (test_below(seed, 2)) {
        head->rule.recent = 2 * rows - test_below(seed, 2 * rows);
    }
    memcpy(head->expected, head->notes, sizeof(head->notes));
}

static void remove_expected(struct head *head, int row, bool ordered)
{
    int last = head->rule.rows - 1;

    if (row >= 0 && ordered) {
        memmove(head->expected + row, head->expected + row + 1,
                (size_t)(last - row) * sizeof(*head->expected));
    } else if (row >= 0) {
        head->expected[row] = head->expected[last];
    }
    head->rule.rows -= row >= 0;
}

/* A row joins every head, then one may leave. */
static void check_step(struct head *heads, bool ordered, bool weighs, uint64_t *seed)
{
    static float mass[HEADS][MOST_ROWS + STEPS];
    struct evict_rule rules[HEADS];
    int32_t got[HEADS];

    for (int h = 0; h < HEADS; h++) {
        heads[h].rule.rows++;
        heads[h].rule.position += 2;
        heads[h].rule.new_marks = (uint32_t)test_below(seed, 4);
        rules[h] = heads[h].rule;
        rules[h].notes = heads[h].notes;
        for (int i = 0; i < rules[h].rows; i++) {
            mass[h][i] = (float)test_below(seed, 8) / 8.0f;
        }
    }
    CHECK_OK(op_evict(dev, &(struct evict){.out = got,
                                           .rules = rules,
                                           .mass = weighs ? mass[0] : NULL,
                                           .stride = MOST_ROWS + STEPS,
                                           .heads = HEADS,
                                           .ordered = ordered}));
    for (int h = 0; h < HEADS; h++) {
        rules[h].notes = heads[h].expected;
        CHECK(got[h] == define_evict(&rules[h], weighs ? mass[h] : NULL));
        remove_expected(&heads[h], got[h], ordered);
        CHECK(memcmp(heads[h].notes, heads[h].expected,
                     (size_t)heads[h].rule.rows * sizeof(*heads[h].notes)) == 0);
    }
}

static void test_the_lightest_of_the_rows_that_may_go_leaves(void **state)
{
    static const int rows[] = {1, 2, 40, 300, MOST_ROWS};
    struct head *heads = calloc(HEADS, sizeof(*heads));
    uint64_t seed = 5;

    (void)state;
    for (int round = 0; round < 12; round++) {
        for (int h = 0; h < HEADS; h++) {
            begin_head(&heads[h], rows[(h + round) % HEADS], &seed);
        }
        for (int step = 0; step < STEPS; step++) {
            check_step(heads, round % 2, round % 3 > 0, &seed);
        }
    }
    free(heads);
}

static int set_up(void **state)
{
    (void)state;
    dev = act_device(&variants[0], 2);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    device_close(dev);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_lightest_of_the_rows_that_may_go_leaves),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
