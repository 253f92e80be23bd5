/* test_comm_device.c - collectives of ranks with a GPU each, over NCCL's stand-in and over shared
 * memory: the same bits, and an end when a rank goes. */
#include "kernels/device.h"
#include "tests/check.h"
#include "tests/cuda_host/cuda_host.h"
#include "tests/worker/helpers_group.h"
#include "worker/comm.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 4 };

static struct device *devices[MOST_RANKS];

/* A value whose sum depends on the order of its terms in float32. */
static float term(int rank, size_t i)
{
    return (float)(1.0 / (1.0 + rank * 7.0 + (double)(i % 1013))) * (rank % 2 ? 1e4F : 1.0F);
}

/* A copy of host memory on the rank's device. */
static status to_device(struct comm *comm, void **out, const void *data, size_t bytes)
{
    struct device *dev = devices[comm_rank(comm)];
    status st = device_alloc(dev, out, bytes, "test");

    return st ? st : device_upload(dev, *out, data, bytes);
}

static status reduce_and_compare(struct comm *comm, void *context)
{
    struct device *dev = devices[comm_rank(comm)];
    size_t n = *(const size_t *)context;
    float *x = malloc(n * sizeof(*x));
    void *memory = NULL;

    for (size_t i = 0; i < n; i++) {
        x[i] = term(comm_rank(comm), i);
    }
    status st = to_device(comm, &memory, x, n * sizeof(*x));
    if (!st) {
        st = comm_all_reduce(comm, memory, n);
    }
    if (!st) {
        st = device_download(dev, x, memory, n * sizeof(*x));
    }
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
    device_free(dev, memory);
    free(x);
    return st;
}

static void over_each_transport(int ranks, group_body *body, void *context)
{
    group_tcp_ranks = 0;
    group_run(ranks, body, context);
    group_tcp_ranks = 1;
    group_run(ranks, body, context);
    group_tcp_ranks = 0;
}

static void test_sums_are_formed_in_rank_order(void **state)
{
    const size_t sizes[] = {1, 3, 65536, 65537, 300007, 2097152 + 11};

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        over_each_transport(2, reduce_and_compare, (void *)&sizes[i]);
        over_each_transport(i < 5 ? 3 : 1, reduce_and_compare, (void *)&sizes[i]);
    }
}

static status reduce_often(struct comm *comm, void *context)
{
    status st = STATUS_OK;

    for (int i = 0; !st && i < 20; i++) {
        st = reduce_and_compare(comm, context);
    }
    return st;
}

static void test_sums_keep_to_events_whatever_runs_ahead(void **state)
{
    const enum cuda_host_streams ways[] = {CUDA_HOST_LAZY, CUDA_HOST_SHUFFLED};

    (void)state;
    for (int i = 0; i < 2; i++) {
        cuda_host_set_streams(ways[i]);
        group_run(2, reduce_often, &(size_t){5});
        group_run(3, reduce_and_compare, &(size_t){70001});
    }
    cuda_host_set_streams(CUDA_HOST_EAGER);
}

/* Two sums are on their way while their neighbours are computed and gathered. */
static status begin_and_finish(struct comm *comm, void *context)
{
    enum { N = 300 };
    struct device *dev = devices[comm_rank(comm)];
    float x[3 * N], early[N];
    void *memory = NULL, *all = NULL;
    uint64_t tickets[2] = {0, 0};

    (void)context;
    for (int i = 0; i < 3 * N; i++) {
        x[i] = (float)(i + comm_rank(comm));
    }
    status st = to_device(comm, &memory, x, sizeof(x));
    float *sums = memory;
    st = st ? st : device_alloc(dev, &all, 2 * sizeof(float), "test");
    for (int i = 0; i < 2; i++) {
        st = st ? st : comm_begin_all_reduce(comm, sums + (size_t)i * N, N, &tickets[i]);
    }
    st = st ? st : device_copy(dev, sums + (size_t)2 * N + 1, sums + (size_t)2 * N, sizeof(float));
    st = st ? st : device_download(dev, early, sums + N, sizeof(early));
    st = st ? st : comm_finish(comm, tickets[0]);
    st = st ? st : comm_all_gather(comm, all, sums, sizeof(float));
    st = st ? st : comm_finish(comm, tickets[1]);
    st = st ? st : device_download(dev, x, memory, sizeof(x));
    for (int i = 0; !st && i < 2 * N; i++) {
        if (x[i] != (float)(2 * i + 1) || (i < N && early[i] == x[N + i])) {
            st = status_fail(STATUS_INTERNAL, "element %d is %g", i, (double)x[i]);
        }
    }
    if (!st && x[2 * N + 1] != x[2 * N]) {
        st =
            status_fail(STATUS_INTERNAL, "what was computed meanwhile is %g", (double)x[2 * N + 1]);
    }
    device_free(dev, memory);
    device_free(dev, all);
    return st;
}

static void test_begun_sums_are_there_once_they_are_finished_and_not_before(void **state)
{
    (void)state;
    cuda_host_set_streams(CUDA_HOST_LAZY);
    group_run(2, begin_and_finish, NULL);
    cuda_host_set_streams(CUDA_HOST_EAGER);
}

/* A graph that reads a sum which was only begun is launched behind it. */
static status launch_behind_a_sum(struct comm *comm, void *context)
{
    struct device *dev = devices[comm_rank(comm)];
    struct device_graph *graph = NULL;
    float x[2] = {1.0F + (float)comm_rank(comm), 0.0F};
    void *memory = NULL;
    uint64_t ticket = 0;

    (void)context;
    status st = to_device(comm, &memory, x, sizeof(x));
    float *sum = memory;
    st = st ? st : device_record(dev);
    st = st ? st : device_copy(dev, sum + 1, sum, sizeof(*sum));
    st = st ? st : device_record_end(dev, &graph);
    st = st ? st : comm_begin_all_reduce(comm, sum, 1, &ticket);
    st = st ? st : comm_before_launch(comm);
    st = st ? st : device_launch(dev, graph);
    if (!st) {
        comm_launched(comm);
        st = device_download(dev, x, memory, sizeof(x));
    }
    st = st ? st : comm_finish(comm, ticket);
    if (!st && (x[0] != 3.0F || x[1] != 3.0F)) {
        st = status_fail(STATUS_INTERNAL, "the sum is %g, the graph read %g", (double)x[0],
                         (double)x[1]);
    }
    device_graph_free(dev, graph);
    device_free(dev, memory);
    return st;
}

static void test_a_graph_comes_behind_sums_that_were_begun(void **state)
{
    (void)state;
    cuda_host_set_streams(CUDA_HOST_LAZY);
    group_run(2, launch_behind_a_sum, NULL);
    cuda_host_set_streams(CUDA_HOST_EAGER);
}

static status reduce_in_pairs(struct comm *comm, void *context)
{
    int rank = comm_rank(comm);
    float x[2] = {(float)rank, (float)-rank};
    int even = rank - rank % 2;
    void *memory = NULL;
    status st = to_device(comm, &memory, x, sizeof(x));

    (void)context;
    if (!st) {
        st = comm_group_reduce(comm, even, 2, memory, 2, 1);
    }
    if (!st) {
        st = device_download(devices[rank], x, memory, sizeof(x));
    }
    if (!st && (x[0] != (float)(even + 1) || x[1] != (float)-even)) {
        st =
            status_fail(STATUS_INTERNAL, "rank %d: max is %g %g", rank, (double)x[0], (double)x[1]);
    }
    device_free(devices[rank], memory);
    return st;
}

static void test_groups_of_neighbours_reduce_apart(void **state)
{
    (void)state;
    over_each_transport(4, reduce_in_pairs, NULL);
}

static status gather_and_compare(struct comm *comm, void *context)
{
    struct device *dev = devices[comm_rank(comm)];
    size_t bytes = *(const size_t *)context;
    size_t ranks = (size_t)comm_size(comm);
    char *mine = malloc(bytes), *all = malloc(ranks * bytes);
    void *in = NULL, *out = NULL;

    memset(mine, 'a' + comm_rank(comm), bytes);
    status st = to_device(comm, &in, mine, bytes);
    if (!st) {
        st = device_alloc(dev, &out, ranks * bytes, "test");
    }
    if (!st) {
        st = comm_all_gather(comm, out, in, bytes);
    }
    if (!st) {
        st = device_download(dev, all, out, ranks * bytes);
    }
    for (size_t i = 0; i < ranks * bytes && !st; i++) {
        if (all[i] != 'a' + (int)(i / bytes)) {
            st = status_fail(STATUS_INTERNAL, "byte %zu is %c", i, all[i]);
        }
    }
    device_free(dev, in);
    device_free(dev, out);
    free(mine);
    free(all);
    return st;
}

static void test_gather_is_in_rank_order(void **state)
{
    const size_t sizes[] = {3, (4 << 20) + 5};

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        over_each_transport(1, gather_and_compare, (void *)&sizes[i]);
        over_each_transport(3, gather_and_compare, (void *)&sizes[i]);
    }
}

static void *abort_when_told(void *context)
{
    comm_abort(context);
    return NULL;
}

/* Rank 0 reduces with a rank that never will: what waits for the result is freed by an abort. */
static status wait_for_nobody(struct comm *comm, void *context)
{
    pthread_barrier_t *done = context;
    struct device *dev = devices[comm_rank(comm)];
    float x = 1.0F;
    void *memory = NULL;
    pthread_t thread;
    status st = to_device(comm, &memory, &x, sizeof(x));

    if (!st && comm_rank(comm) == 0) {
        st = comm_all_reduce(comm, memory, 1);
        CHECK(pthread_create(&thread, NULL, abort_when_told, comm) == 0);
        st = st ? st : device_download(dev, &x, memory, sizeof(x));
        pthread_join(thread, NULL);
        if (st != STATUS_UNAVAILABLE) {
            st = status_fail(STATUS_INTERNAL, "a result came out of an aborted collective");
        } else {
            st = comm_all_reduce(comm, memory, 1);
            st = st == STATUS_UNAVAILABLE && strstr(status_text(), "aborted")
                     ? STATUS_OK
                     : status_fail(STATUS_INTERNAL, "the abort is forgotten");
        }
    }
    pthread_barrier_wait(done);
    device_free(dev, memory);
    return st;
}

static void test_an_abort_frees_who_waits_for_a_result(void **state)
{
    pthread_barrier_t done;

    (void)state;
    cuda_host_set_streams(CUDA_HOST_LAZY);
    pthread_barrier_init(&done, NULL, 2);
    group_run(2, wait_for_nobody, &done);
    pthread_barrier_destroy(&done);
    cuda_host_set_streams(CUDA_HOST_EAGER);
    group_run(2, reduce_and_compare, &(size_t){5}); /* the next epoch is as good as the first */
}

/* Rank 1 leaves at once: NCCL finds that its connection is gone. */
static status reduce_with_one_who_left(struct comm *comm, void *context)
{
    struct device *dev = devices[comm_rank(comm)];
    float x = 1.0F;
    void *memory = NULL;
    status st = STATUS_OK;

    (void)context;
    if (comm_rank(comm) == 1) {
        return STATUS_OK;
    }
    st = to_device(comm, &memory, &x, sizeof(x));
    if (!st) {
        st = comm_all_reduce(comm, memory, 1);
    }
    if (!st) {
        st = device_download(dev, &x, memory, sizeof(x));
    }
    bool missed = st == STATUS_UNAVAILABLE;
    st = comm_all_reduce(comm, memory, 1);
    device_free(dev, memory);
    return missed && st == STATUS_UNAVAILABLE && strstr(status_text(), "remote process")
               ? STATUS_OK
               : status_fail(STATUS_INTERNAL, "nobody missed rank 1: %s", status_text());
}

static void test_a_rank_that_left_is_missed(void **state)
{
    (void)state;
    cuda_host_set_streams(CUDA_HOST_LAZY);
    group_run(2, reduce_with_one_who_left, NULL);
    cuda_host_set_streams(CUDA_HOST_EAGER);
}

/* Rank 1 is there and says nothing. */
static status reduce_with_a_silent_one(struct comm *comm, void *context)
{
    pthread_barrier_t *done = context;
    struct device *dev = devices[comm_rank(comm)];
    float x = 1.0F;
    void *memory = NULL;
    status st = STATUS_OK;

    if (comm_rank(comm) == 0) {
        st = to_device(comm, &memory, &x, sizeof(x));
        if (!st) {
            st = comm_all_reduce(comm, memory, 1);
        }
        if (!st) {
            st = device_download(dev, &x, memory, sizeof(x));
        }
        bool found = st == STATUS_UNAVAILABLE;
        st = comm_all_reduce(comm, memory, 1);
        st = found && st == STATUS_UNAVAILABLE && strstr(status_text(), "silent")
                 ? STATUS_OK
                 : status_fail(STATUS_INTERNAL, "the silence went on: %s", status_text());
        device_free(dev, memory);
    }
    pthread_barrier_wait(done);
    return st;
}

static void test_a_silent_rank_is_found_when_the_time_is_over(void **state)
{
    const int timeout_ms = group_timeout_ms;
    pthread_barrier_t done;

    (void)state;
    cuda_host_set_streams(CUDA_HOST_LAZY);
    pthread_barrier_init(&done, NULL, 2);
    group_timeout_ms = 300;
    group_run(2, reduce_with_a_silent_one, &done);
    group_timeout_ms = timeout_ms;
    pthread_barrier_destroy(&done);
    cuda_host_set_streams(CUDA_HOST_EAGER);
}

/* Where one rank has no GPU, all go through the host. */
static void test_a_rank_without_a_gpu_is_no_obstacle(void **state)
{
    struct device *gpu = devices[1], *host;
    const struct device_config config = {.dtype = DTYPE_F32, .threads = 1};

    (void)state;
    CHECK_OK(device_open(&host, "cpu", &config));
    devices[1] = host;
    group_run(2, reduce_and_compare, &(size_t){70001});
    devices[1] = gpu;
    device_close(host);
}

int main(void)
{
    const struct device_config config = {.dtype = DTYPE_F32, .threads = 1};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums_are_formed_in_rank_order),
        cmocka_unit_test(test_sums_keep_to_events_whatever_runs_ahead),
        cmocka_unit_test(test_begun_sums_are_there_once_they_are_finished_and_not_before),
        cmocka_unit_test(test_a_graph_comes_behind_sums_that_were_begun),
        cmocka_unit_test(test_groups_of_neighbours_reduce_apart),
        cmocka_unit_test(test_gather_is_in_rank_order),
        cmocka_unit_test(test_an_abort_frees_who_waits_for_a_result),
        cmocka_unit_test(test_a_rank_that_left_is_missed),
        cmocka_unit_test(test_a_silent_rank_is_found_when_the_time_is_over),
        cmocka_unit_test(test_a_rank_without_a_gpu_is_no_obstacle),
    };

    for (int i = 0; i < MOST_RANKS; i++) {
        CHECK_OK(device_open(&devices[i], "cuda", &config));
    }
    group_devices = devices;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (int i = 0; i < MOST_RANKS; i++) {
        device_close(devices[i]);
    }
    return failed;
}
