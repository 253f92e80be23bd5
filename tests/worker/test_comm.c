#include "common/clock.h"
#include "tests/check.h"
#include "tests/worker/helpers_group.h"
#include "worker/comm.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A value whose sum depends on the order of its terms in float32. */
static float term(int rank, size_t i)
{
    return (float)(1.0 / (1.0 + rank * 7.0 + (double)(i % 1013))) * (rank % 2 ? 1e4F : 1.0F);
}

static status reduce_and_compare(struct comm *comm, void *context)
{
    size_t n = *(const size_t *)context;
    float *x = malloc(n * sizeof(*x));

    for (size_t i = 0; i < n; i++) {
        x[i] = term(comm_rank(comm), i);
    }
    status st = comm_all_reduce(comm, x, n);
    for (size_t i = 0; i < n && !st; i++) {
        float expected = term(0, i);
        for (int r = 1; r < comm_size(comm); r++) {
            expected += term(r, i);
        }
        if (memcmp(&expected, &x[i], sizeof(expected)) != 0) {
            st = status_fail(STATUS_INTERNAL, "element %zu is %g, not %g", i, (double)x[i],
                             (double)expected);
        }
    }
    free(x);
    return st;
}

static void test_sums_are_formed_in_rank_order(void **state)
{
    const size_t sizes[] = {1, 3, 4096, 4097, 100003, 300007};

    (void)state;
    for (int ranks = 1; ranks <= 4; ranks++) {
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            group_run(ranks, reduce_and_compare, (void *)&sizes[i]);
        }
    }
}

static status reduce_in_pairs(struct comm *comm, void *context)
{
    int rank = comm_rank(comm);
    float x[2] = {(float)rank, (float)-rank};

    (void)context;
    if (rank == 4) {
        return comm_all_reduce(comm, x, 2); /* has no partner, joins only the last one */
    }
    status st = comm_group_reduce(comm, rank / 2 * 2, 2, x, 2, 1);
    int even = rank - rank % 2;
    if (!st && (x[0] != (float)(even + 1) || x[1] != (float)-even)) {
        st =
            status_fail(STATUS_INTERNAL, "rank %d: max is %g %g", rank, (double)x[0], (double)x[1]);
    }
    return st ? st : comm_all_reduce(comm, x, 2);
}

static void test_groups_of_neighbours_reduce_apart(void **state)
{
    (void)state;
    group_run(5, reduce_in_pairs, NULL);
}

static status gather_and_compare(struct comm *comm, void *context)
{
    char mine[3] = {'r', (char)('0' + comm_rank(comm)), 0};
    char all[8][3];

    (void)context;
    status st = comm_all_gather(comm, all, mine, sizeof(mine));
    for (int r = 0; r < comm_size(comm) && !st; r++) {
        if (all[r][1] != '0' + r) {
            st = status_fail(STATUS_INTERNAL, "place %d holds %s", r, all[r]);
        }
    }
    return st;
}

static void test_gather_is_in_rank_order(void **state)
{
    (void)state;
    group_run(1, gather_and_compare, NULL);
    group_run(4, gather_and_compare, NULL);
}

/* As soon as the other thread is seen to wait, for the rank that is missing. */
static void *abort_soon(void *argument)
{
    double begin = clock_ms();
    int peer = -1;

    while (comm_waiting_ms(argument, &peer) < 30) {
        CHECK(clock_ms() - begin < 60000);
        nanosleep(&(struct timespec){.tv_nsec = 5 * 1000 * 1000}, NULL);
    }
    CHECK(peer == 1);
    comm_abort(argument);
    return NULL;
}

/* Rank 0 waits for a partner that never comes; an abort from another thread frees it. */
static status wait_for_nobody(struct comm *comm, void *context)
{
    pthread_barrier_t *done = context;
    status st = STATUS_OK;

    if (comm_rank(comm) == 0) {
        pthread_t thread;
        float x = 1;
        int peer;
        CHECK(pthread_create(&thread, NULL, abort_soon, comm) == 0);
        st = comm_all_reduce(comm, &x, 1);
        pthread_join(thread, NULL);
        CHECK(comm_waiting_ms(comm, &peer) == 0);
        if (st != STATUS_UNAVAILABLE || !strstr(status_text(), "aborted")) {
            st = status_fail(STATUS_INTERNAL, "the abort was not noticed");
        } else {
            st = comm_all_reduce(comm, &x, 1) ? STATUS_OK
                                              : status_fail(STATUS_INTERNAL, "works again");
        }
    }
    pthread_barrier_wait(done);
    return st;
}

static void test_an_abort_frees_a_rank_that_waits(void **state)
{
    pthread_barrier_t done;

    (void)state;
    pthread_barrier_init(&done, NULL, 2);
    group_run(2, wait_for_nobody, &done);
    pthread_barrier_destroy(&done);
}

/* The time for a collective is not the short one for connecting. */
static status come_late(struct comm *comm, void *context)
{
    float x = 1;

    (void)context;
    if (comm_rank(comm) == 1) {
        nanosleep(&(struct timespec){.tv_sec = 2, .tv_nsec = 500 * 1000 * 1000}, NULL);
    }
    return comm_all_reduce(comm, &x, 1);
}

static void test_a_late_rank_is_waited_for(void **state)
{
    (void)state;
    group_run(2, come_late, NULL);
}

static status leave_at_once(struct comm *comm, void *context)
{
    float x = 1;

    (void)context;
    if (comm_rank(comm) == 1) {
        return STATUS_OK; /* closes its comm: for the others it is gone */
    }
    status st = comm_all_reduce(comm, &x, 1);
    return st == STATUS_UNAVAILABLE ? STATUS_OK
                                    : status_fail(STATUS_INTERNAL, "status %d", (int)st);
}

static void test_a_lost_peer_fails_the_others(void **state)
{
    (void)state;
    group_run(3, leave_at_once, NULL);
}

/* Sums that were begun, some longer than others, with calls that wait between them. */
static status begin_and_finish(struct comm *comm, void *context)
{
    enum { SUMS = 40, LONGEST = 20000 };
    static float memory[4][SUMS][LONGEST];
    float(*x)[LONGEST] = memory[comm_rank(comm)];
    uint64_t tickets[SUMS];
    status st = STATUS_OK;

    (void)context;
    for (int i = 0; !st && i < SUMS; i++) {
        float here = 1;
        for (size_t e = 0; e < LONGEST; e++) {
            x[i][e] = term(comm_rank(comm), e + (size_t)i);
        }
        st = comm_begin_all_reduce(comm, x[i], i % 3 ? LONGEST : 5, &tickets[i]);
        if (!st && i % 7 == 6) {
            st = comm_all_reduce(comm, &here, 1);
            CHECK(here == (float)comm_size(comm));
        }
        if (!st && i >= 3) {
            st = comm_finish(comm, tickets[i - 3]);
        }
    }
    st = st ? st : comm_finish(comm, tickets[SUMS - 1]);
    for (int i = 0; !st && i < SUMS; i++) {
        size_t last = (i % 3 ? LONGEST : 5) - 1;
        float expected = term(0, last + (size_t)i);
        for (int r = 1; r < comm_size(comm); r++) {
            expected += term(r, last + (size_t)i);
        }
        CHECK(memcmp(&expected, &x[i][last], sizeof(expected)) == 0);
    }
    struct comm_times times = comm_take_times(comm);
    CHECK(st || comm_size(comm) == 1 || times.total > 0);
    return st;
}

static void test_sums_in_the_background_are_formed_in_rank_order(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks++) {
        group_run(ranks, begin_and_finish, NULL);
    }
}

/* Who waits for a sum that was begun hears why it did not come, and so do all that follow. */
static status begin_and_leave(struct comm *comm, void *context)
{
    float x[3] = {1, 2, 3};
    uint64_t tickets[3];
    status st = STATUS_OK;

    (void)context;
    if (comm_rank(comm) == 1) {
        return STATUS_OK;
    }
    for (int i = 0; !st && i < 3; i++) {
        st = comm_begin_all_reduce(comm, &x[i], 1, &tickets[i]);
    }
    st = st ? st : comm_finish(comm, tickets[1]);
    CHECK(st == STATUS_UNAVAILABLE && strlen(status_text()) > 0);
    st = comm_all_reduce(comm, x, 1);
    CHECK(st == STATUS_UNAVAILABLE);
    return STATUS_OK;
}

static void test_a_lost_peer_fails_what_was_begun(void **state)
{
    (void)state;
    group_run(3, begin_and_leave, NULL);
}

/* Closing waits for nobody. */
static status begin_and_close(struct comm *comm, void *context)
{
    static float x[2];
    uint64_t ticket;

    if (comm_rank(comm) == 0) {
        status st = comm_begin_all_reduce(comm, x, 2, &ticket);
        comm_abort(comm);
        pthread_barrier_wait(context);
        CHECK(!st && comm_finish(comm, ticket) == STATUS_UNAVAILABLE);
        return st;
    }
    pthread_barrier_wait(context);
    return STATUS_OK;
}

static void test_an_abort_ends_what_was_begun(void **state)
{
    pthread_barrier_t done;

    (void)state;
    pthread_barrier_init(&done, NULL, 2);
    group_run(2, begin_and_close, &done);
    pthread_barrier_destroy(&done);
}

/* The other one waits until it is given up, which no heartbeat does for it here. */
static status be_silent(struct comm *comm, void *context)
{
    float x[2] = {1, 2};

    if (comm_rank(comm) == 1) {
        pthread_barrier_wait(context);
        return STATUS_OK;
    }
    double begin = clock_ms();
    status st = comm_all_reduce(comm, x, 2);
    bool in_time = clock_ms() - begin >= 300;
    status later = comm_all_reduce(comm, x, 2);
    pthread_barrier_wait(context);
    return st == STATUS_UNAVAILABLE && later == STATUS_UNAVAILABLE && in_time
               ? STATUS_OK
               : status_fail(STATUS_INTERNAL, "statuses %d %d", (int)st, (int)later);
}

static void test_a_silent_peer_is_given_up(void **state)
{
    const int timeout_ms = group_timeout_ms;
    pthread_barrier_t done;

    (void)state;
    pthread_barrier_init(&done, NULL, 2);
    group_timeout_ms = 300;
    group_run(2, be_silent, &done);
    group_timeout_ms = timeout_ms;
    pthread_barrier_destroy(&done);
}

static int over_shared_memory(void **state)
{
    (void)state;
    group_tcp_ranks = 0;
    return 0;
}

static int over_tcp(void **state)
{
    (void)state;
    group_tcp_ranks = ~0U;
    return 0;
}

/* One rank without shared memory, the one that makes it or another, sends all to the network. */
static void test_ranks_agree_on_the_transport(void **state)
{
    size_t n = 5000;

    (void)state;
    for (unsigned rank = 0; rank < 3; rank++) {
        group_tcp_ranks = 1U << rank;
        group_run(3, reduce_and_compare, &n);
    }
    group_tcp_ranks = 0;
}

static status many_messages(struct comm *comm, void *context)
{
    uint32_t all[4];
    uint32_t n = *(const uint32_t *)context;

    for (uint32_t i = 0; i < n; i++) {
        float x[4] = {(float)i, 1, 2, 3};
        uint32_t mine = i * 4 + (uint32_t)comm_rank(comm);
        int first = comm_rank(comm) / 2 * 2;
        status st = comm_all_gather(comm, all, &mine, sizeof(mine));
        st = st ? st : comm_all_reduce(comm, x, 1 + i % 4);
        if (!st && first == 0) { /* some ranks meet more often than others */
            st = comm_group_reduce(comm, first, 2, x, 1, 0);
        }
        if (st) {
            return st;
        }
        if (all[3] != i * 4 + 3 || x[0] != (float)i * (first == 0 ? 8 : 4)) {
            return status_fail(STATUS_INTERNAL, "message %u is wrong", i);
        }
    }
    return STATUS_OK;
}

static void test_many_messages_of_unequal_groups_keep_their_order(void **state)
{
    uint32_t n = group_tcp_ranks ? 100 : 3000;

    (void)state;
    group_run(4, many_messages, &n);
}

#define ON_BOTH(test)                                                    \
    {#test " over shared memory", test, over_shared_memory, NULL, NULL}, \
    {                                                                    \
#test " over tcp", test, over_tcp, NULL, NULL                    \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_BOTH(test_sums_are_formed_in_rank_order),
        ON_BOTH(test_groups_of_neighbours_reduce_apart),
        ON_BOTH(test_gather_is_in_rank_order),
        ON_BOTH(test_an_abort_frees_a_rank_that_waits),
        ON_BOTH(test_a_lost_peer_fails_the_others),
        ON_BOTH(test_sums_in_the_background_are_formed_in_rank_order),
        ON_BOTH(test_a_lost_peer_fails_what_was_begun),
        cmocka_unit_test_setup(test_an_abort_ends_what_was_begun, over_tcp),
        cmocka_unit_test_setup(test_a_late_rank_is_waited_for, over_tcp),
        cmocka_unit_test_setup(test_a_silent_peer_is_given_up, over_tcp),
        ON_BOTH(test_many_messages_of_unequal_groups_keep_their_order),
        cmocka_unit_test(test_ranks_agree_on_the_transport),
    };

    signal(SIGPIPE, SIG_IGN); /* gloo writes to peers that may be gone */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
