/* Which row leaves a cache head: the definition, step by step over heads of different lengths. */
#include "tests/check.h"
#include "tests/definitions/select.h"
#include "tests/kernels/helpers_act.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 5, MOST_ROWS = 1400, STEPS = 12, PAGE_ROWS = 8, DIM = 8 };
enum { TABLE = (MOST_ROWS + STEPS + PAGE_ROWS - 1) / PAGE_ROWS };

struct head {
    struct kv_note expected[MOST_ROWS + STEPS]; /* in the order of the rows */
    int32_t pages[TABLE];
    struct evict_rule rule;
};

static struct device *dev;
static struct kv_pool pool = {.page_rows = PAGE_ROWS, .head_dim = DIM};

static struct kv_note *note_of(const struct head *head, int row)
{
    return &pool.notes[head->pages[row / PAGE_ROWS] * PAGE_ROWS + row % PAGE_ROWS];
}

/* Masses on a grid, so that many are equal; rows in any order. */
static void begin_head(struct head *head, int rows, uint64_t *seed)
{
    for (int i = 0; i < rows; i++) {
        int j = test_below(seed, i + 1);

        head->expected[i] = head->expected[j];
        head->expected[j] = (struct kv_note){.mass = (float)test_below(seed, 40) / 8.0f,
                                             .position = 2 * i,
                                             .marks = (uint32_t)test_below(seed, 4)};
    }
    for (int i = 0; i < rows; i++) {
        *note_of(head, i) = head->expected[i];
    }
    head->rule = (struct evict_rule){.pages = head->pages,
                                     .rows = rows,
                                     .position = 2 * rows,
                                     .first = test_below(seed, 9),
                                     .recent = INT_MAX,
                                     .marks = (uint32_t)test_below(seed, 4),
                                     .n_others = test_below(seed, rows + 1)};
    if (test_below(seed, 2)) {
        head->rule.recent = 2 * rows - test_below(seed, 2 * rows);
    }
}

/* The last one takes its place, as in a cache without an order. */
static void remove_row(struct head *head, int row)
{
    int last = head->rule.rows - 1;

    if (row >= 0) {
        head->expected[row] = head->expected[last];
        *note_of(head, row) = *note_of(head, last);
    }
    head->rule.rows -= row >= 0;
}

/* A row joins every head, the others gain mass, then one may leave. */
static void check_step(struct head *heads, uint64_t *seed)
{
    struct evict_rule rules[HEADS];
    int32_t got[HEADS];

    for (int h = 0; h < HEADS; h++) {
        heads[h].rule.rows++;
        heads[h].rule.position += 2;
        heads[h].rule.new_marks = (uint32_t)test_below(seed, 4);
        rules[h] = heads[h].rule;
        for (int i = 0; i < rules[h].rows - 1; i++) {
            heads[h].expected[i].mass += (float)test_below(seed, 8) / 8.0f;
            *note_of(&heads[h], i) = heads[h].expected[i];
        }
    }
    CHECK_OK(
        op_evict(dev, &(struct evict){.out = got, .pool = &pool, .rules = rules, .heads = HEADS}));
    for (int h = 0; h < HEADS; h++) {
        CHECK(got[h] == define_evict(&rules[h], heads[h].expected));
        for (int i = 0; i < rules[h].rows; i++) {
            CHECK(memcmp(note_of(&heads[h], i), &heads[h].expected[i], sizeof(struct kv_note)) ==
                  0);
        }
        remove_row(&heads[h], got[h]);
    }
}

static void test_the_lightest_of_the_rows_that_may_go_leaves(void **state)
{
    static const int rows[] = {1, 2, 40, 300, MOST_ROWS};
    struct head *heads = calloc(HEADS, sizeof(*heads));
    uint64_t seed = 5;

    (void)state;
    for (int i = 0; i < HEADS * TABLE; i++) { /* their pages lie among each other */
        heads[i % HEADS].pages[i / HEADS] = i;
    }
    for (int round = 0; round < 12; round++) {
        for (int h = 0; h < HEADS; h++) {
            begin_head(&heads[h], rows[(h + round) % HEADS], &seed);
        }
        for (int step = 0; step < STEPS; step++) {
            check_step(heads, &seed);
        }
    }
    free(heads);
}

static int set_up(void **state)
{
    (void)state;
    dev = act_device(&variants[0], 2);
    pool.k = calloc(1, 1); /* nothing reads keys and values */
    pool.v = calloc(1, 1);
    pool.notes = calloc((size_t)HEADS * TABLE * PAGE_ROWS, sizeof(*pool.notes));
    return !pool.k || !pool.v || !pool.notes;
}

static int tear_down(void **state)
{
    (void)state;
    free(pool.k);
    free(pool.v);
    free(pool.notes);
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
