#include "coordinator/fleet.h"
#include "tests/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { RANKS = 2, GROUPS = 4, PEERS = 16 };

/* What the fleet told one worker, and what the test knows of it. */
struct peer {
    struct fleet_worker *worker;
    struct fleet_assignment assigned;
    int assigns, leaves, entries;
    uint64_t left;
    bool dismissed;
    char last_key[32];
};

struct world {
    struct fleet *fleet;
    struct peer peers[PEERS];
    int ready, lost, drains;
    uint32_t ready_group, lost_group, drain_group;
    uint64_t ready_epoch;
    struct failure failure;
};

static void on_assign(void *context, void *peer, const struct fleet_assignment *assignment)
{
    struct peer *p = peer;

    (void)context;
    p->assigned = *assignment;
    p->assigns++;
}

static void on_store(void *context, void *peer, const struct fleet_entry *entry)
{
    struct peer *p = peer;

    (void)context;
    p->entries++;
    snprintf(p->last_key, sizeof(p->last_key), "%.*s", (int)entry->key_bytes, entry->key);
}

static void on_leave(void *context, void *peer, uint64_t epoch)
{
    struct peer *p = peer;

    (void)context;
    p->leaves++;
    p->left = epoch;
}

static void on_dismiss(void *context, void *peer, uint32_t process, const struct failure *failure)
{
    struct peer *p = peer;

    CHECK(failure->code == STATUS_UNAVAILABLE);
    CHECK(p == &((struct world *)context)->peers[process]);
    p->dismissed = true;
}

static void on_ready(void *context, uint32_t group, uint64_t epoch,
                     const struct fleet_ready *const *ranks)
{
    struct world *world = context;

    CHECK(ranks[0]->pages_total == 100 && ranks[1]->pages_total == 101);
    world->ready++;
    world->ready_group = group;
    world->ready_epoch = epoch;
}

static void on_drain(void *context, uint32_t group, const struct failure *cause)
{
    struct world *world = context;

    world->drains++;
    world->drain_group = group;
    world->failure = *cause;
}

static void on_lost(void *context, uint32_t group, const struct failure *failure)
{
    struct world *world = context;

    world->lost++;
    world->lost_group = group;
    world->failure = *failure;
}

static struct world *open_world(void)
{
    static struct world world;
    struct fleet_config config = {
        .build = "1.2",
        .ranks = RANKS,
        .n_groups = GROUPS,
        .max_context = 4096,
        .heartbeat_timeout_ms = 5000,
        .sink = {on_assign, on_store, on_leave, on_dismiss, on_ready, on_drain, on_lost, &world},
    };

    world = (struct world){0};
    CHECK_OK(fleet_open(&world.fleet, &config));
    return &world;
}

static struct fleet_hello hello_of(int process)
{
    return (struct fleet_hello){.host = "host",
                                .device = "cpu",
                                .build = "1.2",
                                .model_fingerprint = 77,
                                .process = (uint32_t)process,
                                .fixed_rank = -1};
}

static void join(struct world *world, int i, int fixed_rank, double now)
{
    struct fleet_hello hello = hello_of(i);

    hello.fixed_rank = fixed_rank;
    CHECK_OK(fleet_join(world->fleet, &world->peers[i].worker, &world->peers[i], &hello, now));
}

static void join_cohort(struct world *world, int i, const char *cohort, double now)
{
    struct fleet_hello hello = hello_of(i);

    snprintf(hello.cohort, sizeof(hello.cohort), "%s", cohort);
    CHECK_OK(fleet_join(world->fleet, &world->peers[i].worker, &world->peers[i], &hello, now));
}

static void beat(struct world *world, int i, double waiting_ms, uint32_t waiting_for, double now)
{
    struct fleet_beat m = {world->peers[i].assigned.epoch, waiting_ms, waiting_for, 0};

    fleet_beat(world->fleet, world->peers[i].worker, &m, now);
}

static void say_ready(struct world *world, int i, double now)
{
    struct peer *peer = &world->peers[i];
    struct fleet_ready ready = {.epoch = peer->assigned.epoch,
                                .pages_total = 100 + peer->assigned.rank,
                                .page_rows = 32,
                                .kv_bytes_total = 5000};

    CHECK(fleet_heard(world->fleet, peer->worker, ready.epoch, now));
    fleet_worker_ready(world->fleet, peer->worker, &ready, now);
}

static struct world *open_ready_group(void)
{
    struct world *world = open_world();

    join(world, 0, -1, 0);
    join(world, 1, -1, 0);
    say_ready(world, 0, 1);
    CHECK(world->ready == 0);
    say_ready(world, 1, 2);
    CHECK(world->ready == 1 && world->ready_group == 0);
    CHECK(world->ready_epoch == world->peers[0].assigned.epoch);
    return world;
}

static void test_a_group_forms_when_its_seats_are_taken(void **state)
{
    struct world *world = open_world();

    (void)state;
    join(world, 0, -1, 0);
    CHECK(world->peers[0].assigns == 0);
    join(world, 1, -1, 0);
    for (int i = 0; i < 2; i++) {
        CHECK(world->peers[i].assigns == 1 && world->peers[i].assigned.size == RANKS);
        CHECK(world->peers[i].assigned.rank == (uint32_t)i);
        CHECK(world->peers[i].assigned.epoch == world->peers[0].assigned.epoch);
    }
    join(world, 2, -1, 0);
    join(world, 3, -1, 0);
    CHECK(world->peers[3].assigned.group == 1);
    CHECK(world->peers[3].assigned.epoch != world->peers[0].assigned.epoch);
    fleet_close(world->fleet);
}

static void test_a_worker_that_is_told_to_stop_leaves_when_its_group_is_done(void **state)
{
    struct world *world = open_ready_group();
    struct peer *peers = world->peers;

    (void)state;
    fleet_drain(world->fleet, peers[1].worker, 3);
    fleet_drain(world->fleet, peers[1].worker, 3); /* twice is once */
    CHECK(world->drains == 1 && world->drain_group == 0 && world->lost == 0);
    CHECK(strstr(world->failure.text, "rank 1 of group 0 (host, process 1) was told to stop"));
    CHECK(fleet_is_draining(world->fleet, 0) && peers[1].leaves == 0);
    join(world, 2, -1, 4); /* its seat is not free yet */
    CHECK(peers[2].assigns == 0);
    fleet_drained(world->fleet, 0, 5);
    CHECK(!fleet_is_draining(world->fleet, 0) && world->lost == 1);
    CHECK(peers[0].leaves == 1 && peers[1].leaves == 1);
    CHECK(peers[2].assigns == 1 && peers[2].assigned.rank == 1 && peers[1].assigns == 1);
    fleet_gone(world->fleet, peers[1].worker, "was told to stop", 6);
    say_ready(world, 0, 7);
    say_ready(world, 2, 7);
    CHECK(world->ready == 2 && world->lost == 1);
    fleet_close(world->fleet);
}

static void test_who_computes_nothing_is_let_go_at_once(void **state)
{
    struct world *world = open_world();
    struct peer *peers = world->peers;

    (void)state;
    join(world, 0, -1, 0);
    fleet_drain(world->fleet, peers[0].worker, 1); /* its group is not complete */
    CHECK(peers[0].leaves == 1 && peers[0].left == 0);
    join(world, 1, -1, 2);
    CHECK(peers[0].assigns == 0 && peers[1].assigns == 0);
    join(world, 2, -1, 2);
    CHECK(peers[1].assigns == 1);
    fleet_drain(world->fleet, peers[2].worker, 3); /* its group loads */
    CHECK(peers[2].leaves == 1 && peers[2].left == peers[2].assigned.epoch);
    CHECK(world->drains == 0 && world->lost == 0);
    join(world, 3, -1, 4);
    CHECK(peers[1].assigns == 2 && peers[3].assigns == 1 && peers[2].assigns == 1);
    fleet_close(world->fleet);
}

static void test_a_fixed_rank_is_honoured(void **state)
{
    struct world *world = open_world();

    (void)state;
    join(world, 0, 1, 0);
    join(world, 1, 1, 0); /* that seat is taken: it waits in the next group */
    CHECK(world->peers[0].assigns == 0 && world->peers[1].assigns == 0);
    join(world, 2, -1, 0);
    CHECK(world->peers[0].assigned.rank == 1 && world->peers[2].assigned.rank == 0);
    CHECK(world->peers[1].assigns == 0);
    join(world, 3, 0, 0);
    CHECK(world->peers[1].assigned.rank == 1 && world->peers[1].assigned.group == 1);
    fleet_close(world->fleet);
}

static void test_a_group_is_of_one_cohort(void **state)
{
    struct world *world = open_world();

    (void)state;
    join_cohort(world, 0, "rack1", 0);
    join_cohort(world, 1, "rack2", 0);
    CHECK(world->peers[0].assigns == 0 && world->peers[1].assigns == 0);
    join_cohort(world, 2, "rack2", 0);
    CHECK(world->peers[1].assigned.epoch == world->peers[2].assigned.epoch);
    CHECK(world->peers[1].assigns == 1 && world->peers[0].assigns == 0);
    join_cohort(world, 3, "rack1", 0);
    CHECK(world->peers[0].assigned.epoch == world->peers[3].assigned.epoch);
    CHECK(world->peers[0].assigned.group != world->peers[1].assigned.group);
    /* A replacement goes where its cohort has a free seat. */
    fleet_gone(world->fleet, world->peers[1].worker, "died", 100);
    join_cohort(world, 4, "rack1", 200);
    CHECK(world->peers[4].assigns == 0);
    join_cohort(world, 1, "rack2", 300);
    CHECK(world->peers[1].assigned.epoch == world->peers[2].assigned.epoch);
    CHECK(world->peers[2].assigns == 2);
    fleet_close(world->fleet);
}

static void join_loaded(struct world *world, int i, uint32_t rank, uint32_t size)
{
    struct fleet_hello hello = hello_of(i);

    hello.loaded_rank = rank;
    hello.loaded_size = size;
    CHECK_OK(fleet_join(world->fleet, &world->peers[i].worker, &world->peers[i], &hello, 0));
}

/* As they come back to a new coordinator, in any order. */
static void test_workers_get_the_rank_whose_weights_they_hold(void **state)
{
    struct world *world = open_world();

    (void)state;
    join_loaded(world, 0, 1, RANKS);
    CHECK(fleet_worker_rank(world->peers[0].worker) == 1);
    join_loaded(world, 1, 0, RANKS);
    CHECK(world->peers[0].assigned.rank == 1 && world->peers[1].assigned.rank == 0);
    /* Of another split, or of a rank that is taken: any seat. */
    join_loaded(world, 2, 1, RANKS + 1);
    join_loaded(world, 3, 0, RANKS);
    CHECK(world->peers[2].assigned.rank == 0 && world->peers[3].assigned.rank == 1);
    CHECK(world->peers[2].assigned.group == 1 && world->peers[3].assigned.group == 1);
    fleet_close(world->fleet);
}

static void test_strangers_are_refused_with_a_sentence(void **state)
{
    struct world *world = open_world();
    struct fleet_hello hello = hello_of(0);
    struct fleet_worker *worker;

    (void)state;
    snprintf(hello.build, sizeof(hello.build), "1.1");
    CHECK_FAILS(fleet_join(world->fleet, &worker, NULL, &hello, 0), STATUS_INVALID,
                "worker build 1.1 differs from the coordinator's 1.2");
    hello = hello_of(0);
    hello.fixed_rank = RANKS;
    CHECK_FAILS(fleet_join(world->fleet, &worker, NULL, &hello, 0), STATUS_INVALID, "2 ranks");
    join(world, 0, -1, 0);
    hello = hello_of(1);
    hello.model_fingerprint = 78;
    CHECK_FAILS(fleet_join(world->fleet, &worker, NULL, &hello, 0), STATUS_INVALID,
                "model files (000000000000004e) differ");
    /* Nobody is left to differ from. */
    fleet_gone(world->fleet, world->peers[0].worker, "left", 1);
    CHECK_OK(fleet_join(world->fleet, &world->peers[1].worker, &world->peers[1], &hello, 0));
    fleet_close(world->fleet);
}

static void test_store_entries_reach_every_rank_of_the_group(void **state)
{
    struct world *world = open_world();
    struct fleet_entry entry = {.key = "rank0/address", .key_bytes = 5};

    (void)state;
    for (int i = 0; i < 4; i++) {
        join(world, i, -1, 0);
    }
    entry.epoch = world->peers[0].assigned.epoch;
    CHECK(fleet_heard(world->fleet, world->peers[0].worker, entry.epoch, 1));
    fleet_store(world->fleet, world->peers[0].worker, &entry);
    CHECK(world->peers[1].entries == 1 && strcmp(world->peers[1].last_key, "rank0") == 0);
    CHECK(world->peers[2].entries == 0 && world->peers[3].entries == 0);
    CHECK(!fleet_heard(world->fleet, world->peers[0].worker, entry.epoch + 9, 1));
    fleet_close(world->fleet);
}

static void test_a_lost_rank_is_named_and_its_replacement_forms_the_next_epoch(void **state)
{
    struct world *world = open_ready_group();
    uint64_t epoch = world->ready_epoch;

    (void)state;
    fleet_gone(world->fleet, world->peers[1].worker, "closed its connection", 100);
    CHECK(world->lost == 1 && world->lost_group == 0);
    CHECK(strcmp(world->failure.text,
                 "rank 1 of group 0 (host, process 1) closed its connection") == 0);
    CHECK(world->failure.code == STATUS_UNAVAILABLE);
    CHECK(world->peers[0].leaves == 1 && world->peers[0].left == epoch);
    CHECK(!fleet_heard(world->fleet, world->peers[0].worker, epoch, 101));
    join(world, 2, -1, 200);
    CHECK(world->peers[0].assigns == 2 && world->peers[0].assigned.rank == 0);
    CHECK(world->peers[2].assigned.rank == 1 && world->peers[2].assigned.epoch > epoch);
    say_ready(world, 2, 300);
    say_ready(world, 0, 300);
    CHECK(world->ready == 2 && world->ready_epoch > epoch);
    fleet_close(world->fleet);
}

static void test_a_replacement_that_came_early_moves_to_the_free_seat(void **state)
{
    struct world *world = open_ready_group();

    (void)state;
    join(world, 2, -1, 50); /* sits in group 1, alone */
    CHECK(world->peers[2].assigns == 0);
    fleet_gone(world->fleet, world->peers[0].worker, "died", 100);
    CHECK(world->peers[2].assigned.group == 0 && world->peers[2].assigned.rank == 0);
    CHECK(world->peers[1].assigned.epoch == world->peers[2].assigned.epoch);
    fleet_close(world->fleet);
}

static void test_a_silent_worker_is_given_up(void **state)
{
    struct world *world = open_ready_group();

    (void)state;
    beat(world, 0, 0, 0, 4000);
    fleet_tick(world->fleet, 5001);
    CHECK(world->lost == 0);
    fleet_tick(world->fleet, 5002);
    CHECK(world->peers[1].dismissed && !world->peers[0].dismissed);
    CHECK(world->lost == 1 && strstr(world->failure.text, "rank 1") &&
          strstr(world->failure.text, "sent nothing for 5.0 s"));
    fleet_close(world->fleet);
}

/* Stopped and continued, it finds old times on all workers: they lived on meanwhile. */
static void test_a_coordinator_that_stood_still_blames_nobody(void **state)
{
    struct world *world = open_ready_group();
    double now = 100;

    (void)state;
    fleet_tick(world->fleet, now);
    now += 20000;
    fleet_tick(world->fleet, now);
    CHECK(world->lost == 0);
    beat(world, 0, 0, 0, now + 100);
    for (int i = 0; i < 50; i++) {
        now += 100;
        fleet_tick(world->fleet, now);
    }
    CHECK(world->lost == 1 && world->peers[1].dismissed && !world->peers[0].dismissed);
    fleet_close(world->fleet);
}

/* One that computes may take its time; when all wait, nothing will ever come. */
static void test_a_group_whose_ranks_all_wait_is_given_up(void **state)
{
    struct world *world = open_ready_group();

    (void)state;
    beat(world, 0, 5000, 1, 7000);
    beat(world, 1, 4999, 0, 7000);
    fleet_tick(world->fleet, 7001);
    CHECK(world->lost == 0);
    beat(world, 0, 5500, 1, 7500);
    beat(world, 1, 5499, RANKS, 7500); /* of a rank that there is not */
    fleet_tick(world->fleet, 7501);
    CHECK(world->lost == 0);
    beat(world, 1, NAN, 0, 7550);
    fleet_tick(world->fleet, 7551);
    CHECK(world->lost == 0);
    beat(world, 1, 5499, 0, 7600);
    fleet_tick(world->fleet, 7601);
    CHECK(world->lost == 1 && world->peers[0].leaves == 1 && world->peers[1].leaves == 1);
    CHECK(strcmp(world->failure.text,
                 "rank 1 of group 0 (host, process 1) waits for rank 0 since 5.5 s, and no rank "
                 "goes on: the network between the ranks is cut") == 0);
    fleet_tick(world->fleet, 7701);
    CHECK(world->peers[0].assigns == 2);
    say_ready(world, 0, 7702);
    say_ready(world, 1, 7702);
    fleet_tick(world->fleet, 7703); /* what was waited for then does not count any more */
    CHECK(world->ready == 2 && world->lost == 1);
    fleet_close(world->fleet);
}

static void test_a_fault_ends_the_epoch_and_the_group_forms_again_later(void **state)
{
    struct world *world = open_ready_group();
    struct failure fault = {.code = STATUS_INTERNAL, .text = "out of pages"};

    (void)state;
    fleet_fault(world->fleet, world->peers[0].worker, &fault, 1000);
    CHECK(world->lost == 1);
    CHECK(strcmp(world->failure.text,
                 "rank 0 of group 0 (host, process 0) reports: out of pages") == 0);
    CHECK(world->peers[0].leaves == 1 && world->peers[1].leaves == 1);
    fleet_tick(world->fleet, 1099);
    CHECK(world->peers[0].assigns == 1);
    fleet_tick(world->fleet, 1100);
    CHECK(world->peers[0].assigns == 2 && world->peers[1].assigns == 2);
    /* The next one waits twice as long. */
    fleet_fault(world->fleet, world->peers[0].worker, &fault, 1200);
    fleet_tick(world->fleet, 1399);
    CHECK(world->peers[0].assigns == 2);
    fleet_tick(world->fleet, 1400);
    CHECK(world->peers[0].assigns == 3);
    fleet_close(world->fleet);
}

static void test_a_rank_that_blames_its_peers_yields_to_the_one_that_died(void **state)
{
    struct world *world = open_ready_group();
    struct failure fault = {.code = STATUS_UNAVAILABLE, .text = "all-reduce: connection reset"};

    (void)state;
    fleet_fault(world->fleet, world->peers[0].worker, &fault, 1000);
    CHECK(world->lost == 0);
    fleet_gone(world->fleet, world->peers[1].worker, "was killed by signal 9", 1010);
    CHECK(world->lost == 1 && strstr(world->failure.text, "rank 1 of group 0"));
    fleet_tick(world->fleet, 2000);
    CHECK(world->lost == 1);
    fleet_close(world->fleet);

    world = open_ready_group();
    fleet_fault(world->fleet, world->peers[0].worker, &fault, 1000);
    fleet_tick(world->fleet, 1299);
    CHECK(world->lost == 0);
    fleet_tick(world->fleet, 1300);
    CHECK(world->lost == 1 && strstr(world->failure.text, "rank 0 of group 0"));
    fleet_close(world->fleet);
}

static void test_the_status_tells_who_is_there_and_who_was(void **state)
{
    struct world *world = open_world();
    struct worker_status workers[RANKS];
    struct group_status group;

    (void)state;
    fleet_group_status(world->fleet, 0, &group, workers, 0);
    CHECK(group.state == GROUP_FORMING && group.n_workers == 0);
    fleet_close(world->fleet);
    world = open_ready_group();
    fleet_kv_used(world->fleet, world->peers[1].worker, 123);
    fleet_beat(world->fleet, world->peers[1].worker, &(struct fleet_beat){.memory_peak_bytes = 77},
               2);
    fleet_group_status(world->fleet, 0, &group, workers, 502);
    CHECK(workers[1].memory_peak_bytes == 77);
    CHECK(group.state == GROUP_READY && group.n_workers == 2);
    CHECK(workers[1].state == WORKER_STATE_READY && workers[1].kv_bytes_used == 123);
    CHECK(workers[1].kv_bytes_total == 5000 && workers[1].heartbeat_age_s == 0.5);
    fleet_gone(world->fleet, world->peers[1].worker, "was killed by signal 9", 600);
    fleet_group_status(world->fleet, 0, &group, workers, 700);
    CHECK(group.state == GROUP_FAILED && workers[0].state == WORKER_STATE_JOINING);
    CHECK(workers[1].state == WORKER_STATE_LOST && strstr(workers[1].last_error, "signal 9"));
    CHECK(strcmp(workers[1].host, "host") == 0);
    fleet_close(world->fleet);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_group_forms_when_its_seats_are_taken),
        cmocka_unit_test(test_a_worker_that_is_told_to_stop_leaves_when_its_group_is_done),
        cmocka_unit_test(test_who_computes_nothing_is_let_go_at_once),
        cmocka_unit_test(test_a_fixed_rank_is_honoured),
        cmocka_unit_test(test_a_group_is_of_one_cohort),
        cmocka_unit_test(test_workers_get_the_rank_whose_weights_they_hold),
        cmocka_unit_test(test_strangers_are_refused_with_a_sentence),
        cmocka_unit_test(test_store_entries_reach_every_rank_of_the_group),
        cmocka_unit_test(test_a_lost_rank_is_named_and_its_replacement_forms_the_next_epoch),
        cmocka_unit_test(test_a_replacement_that_came_early_moves_to_the_free_seat),
        cmocka_unit_test(test_a_silent_worker_is_given_up),
        cmocka_unit_test(test_a_coordinator_that_stood_still_blames_nobody),
        cmocka_unit_test(test_a_group_whose_ranks_all_wait_is_given_up),
        cmocka_unit_test(test_a_fault_ends_the_epoch_and_the_group_forms_again_later),
        cmocka_unit_test(test_a_rank_that_blames_its_peers_yields_to_the_one_that_died),
        cmocka_unit_test(test_the_status_tells_who_is_there_and_who_was),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
