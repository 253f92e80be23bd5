#include "tests/check.h"
#include "tests/worker/helpers_group.h"
#include "worker/tsp.h"

#include <stdlib.h>
#include <string.h>

/* A model of which only the shape matters: `heads` KV heads in all. */
struct shape {
    struct model_config config;
    struct model model;
};

static status open_member(struct member *member, struct shape *shape, struct comm *comm, int heads,
                          int group, int context)
{
    const struct device_config device = {.dtype = DTYPE_F32, .threads = 1};
    status st;

    *shape = (struct shape){.model.config = {.name = "test",
                                             .layers = 1,
                                             .hidden = 8,
                                             .intermediate = 8,
                                             .query_heads = heads * group,
                                             .kv_heads = heads,
                                             .head_dim = 8,
                                             .vocab = 8}};
    *member = (struct member){.model = &shape->model, .comm = comm, .max_context = context};
    st =
        split_for_rank(&shape->model.split, &shape->model.config, comm_rank(comm), comm_size(comm));
    if (!st) {
        st = device_open(&member->dev, "cpu", &device);
    }
    if (!st) {
        st = scratch_create(&member->scratch, member->dev, &shape->model, context, comm_size(comm));
    }
    return st;
}

static void close_member(struct member *member)
{
    scratch_destroy(member->scratch);
    device_close(member->dev);
}

enum { HEADS = 3, ROWS = 70, WINDOW = 4, CHOSEN = 20, MAX_RANKS = 6 };

/* Thirds do not add up exactly in float32: the order of the sum shows. */
static float score_of(int head, int row)
{
    return (float)((row * 37 + head * 11) % 23) / 3.0F * (head == 1 ? 1e3F : 1.0F);
}

struct tsp_run {
    int32_t lists[MAX_RANKS][CHOSEN];
};

static status choose_on_rank(struct comm *comm, void *context)
{
    struct tsp_run *run = context;
    struct member member;
    struct shape shape;
    const struct tsp_choice choice = {.rows = ROWS, .window = WINDOW, .n_chosen = CHOSEN};
    struct tsp_choice mine = choice;
    float scores[HEADS][ROWS - WINDOW];
    status st = open_member(&member, &shape, comm, HEADS, 2, ROWS);

    if (!st) {
        const struct split *split = &shape.model.split;
        mine.heads = (struct cache_heads){.n = split->kv_heads, .speaks = split->replica == 0};
        for (int h = 0; h < split->kv_heads; h++) {
            for (int row = 0; row < ROWS - WINDOW; row++) {
                scores[h][row] = score_of(split->kv_first + h, row);
            }
        }
        st = tsp_choose(&member, run->lists[comm_rank(comm)], &scores[0][0], &mine);
    }
    close_member(&member);
    return st;
}

static void test_every_rank_chooses_the_same(void **state)
{
    struct tsp_run alone;
    struct tsp_run run;

    (void)state;
    group_run(1, choose_on_rank, &alone);
    for (int ranks = 2; ranks <= MAX_RANKS; ranks++) {
        group_run(ranks, choose_on_rank, &run);
        for (int r = 0; r < ranks; r++) {
            assert_memory_equal(run.lists[r], run.lists[0], sizeof(run.lists[0]));
        }
        /* Whole heads are summed in rank order, which is head order: the same bits as alone. */
        assert_memory_equal(run.lists[0], alone.lists[0], sizeof(alone.lists[0]));
    }
}

struct list_run {
    const float *scores;
    int rows, window, n;
    int32_t list[16];
};

static status choose_alone(struct comm *comm, void *context)
{
    struct list_run *run = context;
    struct member member;
    struct shape shape;
    status st = open_member(&member, &shape, comm, 1, 1, 16);

    if (!st) {
        st = tsp_choose(&member, run->list, run->scores,
                        &(struct tsp_choice){.heads = {.n = 1, .speaks = true},
                                             .rows = run->rows,
                                             .window = run->window,
                                             .n_chosen = run->n});
    }
    close_member(&member);
    return st;
}

static void test_window_tokens_always_survive(void **state)
{
    struct list_run run = {.scores = (const float[]){9, 1, 8, 0}, .rows = 6, .window = 2, .n = 4};

    (void)state;
    group_run(1, choose_alone, &run);
    CHECK(run.list[0] == 0 && run.list[1] == 2); /* best two by score, in position order */
    CHECK(run.list[2] == 4 && run.list[3] == 5); /* the window, whatever it scored */
}

static void test_equal_scores_go_to_the_lower_row(void **state)
{
    struct list_run run = {
        .scores = (const float[]){1, 2, 1, 2, 1, 1}, .rows = 7, .window = 1, .n = 5};

    (void)state;
    group_run(1, choose_alone, &run);
    CHECK(run.list[0] == 0 && run.list[1] == 1 && run.list[2] == 2 && run.list[3] == 3);
    CHECK(run.list[4] == 6);
}

static void test_only_the_window_may_be_left(void **state)
{
    struct list_run run = {.scores = (const float[]){5, 5}, .rows = 5, .window = 3, .n = 3};

    (void)state;
    group_run(1, choose_alone, &run);
    CHECK(run.list[0] == 2 && run.list[1] == 3 && run.list[2] == 4);
}

struct hash_run {
    int differing_rank; /* whose choice is another; -1: none */
    bool of_head;       /* the choice of a replicated head, not the shared one */
    status st[MAX_RANKS];
    char text[MAX_RANKS][256];
};

static status check_on_rank(struct comm *comm, void *context)
{
    struct hash_run *run = context;
    struct member member;
    struct shape shape;
    int rank = comm_rank(comm);
    status st = open_member(&member, &shape, comm, 2, 2, 16);

    if (!st) {
        const int32_t list[] = {1, 5, rank == run->differing_rank ? 8 : 9};
        const int32_t head[] = {shape.model.split.kv_first};
        member.shared_hash = member_hash(1, list, run->of_head ? 2 : 3);
        /* Ranks with different heads may differ here. */
        member.head_hash = member_hash(member_hash(2, head, 1), list, run->of_head ? 3 : 2);
        run->st[rank] = member_check_hashes(&member);
        strncpy(run->text[rank], run->st[rank] ? status_text() : "", sizeof(run->text[0]) - 1);
    }
    close_member(&member);
    return st;
}

static void test_differing_selections_are_an_error(void **state)
{
    struct hash_run run = {.differing_rank = -1};

    (void)state;
    group_run(4, check_on_rank, &run);
    CHECK(!run.st[0] && !run.st[1] && !run.st[2] && !run.st[3]);

    run = (struct hash_run){.differing_rank = 2};
    group_run(4, check_on_rank, &run);
    for (int r = 0; r < 4; r++) {
        CHECK(run.st[r] == STATUS_INTERNAL);
        CHECK(strstr(run.text[r], "selection differs between ranks"));
    }

    run = (struct hash_run){.differing_rank = 2, .of_head = true}; /* ranks 2 and 3 share a head */
    group_run(4, check_on_rank, &run);
    CHECK(!run.st[0] && !run.st[1]);
    CHECK(run.st[2] == STATUS_INTERNAL && run.st[3] == STATUS_INTERNAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_rank_chooses_the_same),
        cmocka_unit_test(test_window_tokens_always_survive),
        cmocka_unit_test(test_equal_scores_go_to_the_lower_row),
        cmocka_unit_test(test_only_the_window_may_be_left),
        cmocka_unit_test(test_differing_selections_are_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
