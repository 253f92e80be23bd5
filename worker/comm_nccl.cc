/*
 * comm_nccl.cc - the collectives of ranks that have a GPU each, by NCCL, on a stream of their own
 * that events join to the device's.
 *
 * NCCL moves the data, and our own kernel forms the sums: every element once, in rank order, on
 * the rank that it is dealt to (docs/decisions.md).  The communicator is non-blocking: a call that
 * NCCL is still busy with is waited for with an eye on abort().  A watcher looks for what NCCL
 * finds by itself and for a collective that does not end.  Whoever aborts first interrupts the
 * device, so that nothing half-finished is read from it.
 */
#include "common/clock.h"
#include "kernels/op.h"
#include "worker/comm_transport.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>

namespace
{

/* Floats of a piece of a long vector, and up to which one is exchanged whole. */
constexpr size_t PIECE = size_t{1} << 21;
constexpr size_t WHOLE = size_t{1} << 16;
/* Sums on their way at a time that can be told apart: of others the next one is waited for. */
constexpr int MARKS = 16;
constexpr auto WATCH = std::chrono::milliseconds(20);
constexpr auto BUSY = std::chrono::microseconds(20);

struct Group {
    int rank = 0, size = 0, timeout_ms = 0;
    struct device *device = nullptr;
    cudaStream_t compute = nullptr; /* the device's */
    cudaStream_t stream = nullptr;  /* of the collectives */
    cudaEvent_t ready = nullptr;    /* on `compute`: what a collective reads is there */
    cudaEvent_t done[MARKS] = {};   /* on `stream`, behind a collective: of mark % MARKS */
    cudaEvent_t last = nullptr;     /* recorded behind the latest collective */
    float *gathered = nullptr;      /* what came from the others; on the device */
    std::thread watcher;

    std::mutex mutex; /* guards what follows, and every call on the communicator */
    ncclComm_t comm = nullptr;
    bool failed = false, closing = false;
    double enqueued_ms = 0; /* when the latest collective was; 0: none was */
    char why[256] = "";
    std::condition_variable wake;
};

/* With the mutex. */
void fail(Group *group, const char *why)
{
    if (group->failed) {
        return;
    }
    group->failed = true;
    snprintf(group->why, sizeof(group->why), "%s", why);
    device_interrupt(group->device, true);
    if (group->comm) {
        ncclCommAbort(group->comm);
        group->comm = nullptr;
    }
    group->wake.notify_all();
}

status failure(const Group *group)
{
    return status_fail(STATUS_UNAVAILABLE, "rank %d of %d: %s", group->rank, group->size,
                       group->why);
}

/* Waits until NCCL has taken the call that returned `result`: only then is it on the stream. */
status settle(Group *group, std::unique_lock<std::mutex> &lock, ncclResult_t result,
              const struct comm_store *store)
{
    double begin = clock_ms();

    while (result == ncclInProgress && !group->failed) {
        lock.unlock();
        std::this_thread::sleep_for(BUSY);
        bool over = store && store->over(store->context);
        lock.lock();
        if (over) {
            fail(group, "the group was dissolved");
        } else if (clock_ms() - begin > group->timeout_ms) {
            fail(group, "NCCL did not finish a call in time");
        } else if (group->comm && ncclCommGetAsyncError(group->comm, &result)) {
            fail(group, "NCCL cannot tell its state");
        }
    }
    if (!group->failed && result != ncclSuccess) {
        fail(group, ncclGetErrorString(result));
    }
    return group->failed ? failure(group) : STATUS_OK;
}

void look(Group *group)
{
    ncclResult_t state = ncclSuccess;
    ncclResult_t asked = ncclCommGetAsyncError(group->comm, &state);

    if (asked != ncclSuccess || (state != ncclSuccess && state != ncclInProgress)) {
        fail(group, ncclGetErrorString(asked != ncclSuccess ? asked : state));
    } else if (group->enqueued_ms > 0 && clock_ms() - group->enqueued_ms > group->timeout_ms &&
               cudaEventQuery(group->last) == cudaErrorNotReady) {
        fail(group, "a collective does not end: another rank is silent");
    }
}

void watch(Group *group)
{
    std::unique_lock<std::mutex> lock(group->mutex);

    while (!group->closing && !group->failed) {
        group->wake.wait_for(lock, WATCH);
        if (!group->closing && !group->failed) {
            look(group);
        }
    }
}

/* With the mutex: a collective is on the stream, whose end the watcher may ask for.  One that is
 * being recorded is on it when the graph is launched. */
void note_enqueued(Group *group)
{
    if (!device_recording(group->device)) {
        group->enqueued_ms = clock_ms();
        cudaEventRecord(group->last, group->stream);
    }
}

/* The graph is on the device's stream, its collectives with it. */
void nccl_launched(void *self)
{
    Group *group = static_cast<Group *>(self);
    std::lock_guard<std::mutex> lock(group->mutex);

    group->enqueued_ms = clock_ms();
    cudaEventRecord(group->last, group->compute);
}

status joined(cudaError_t error)
{
    return error == cudaSuccess ? STATUS_OK
                                : status_fail(STATUS_INTERNAL, "cuda: joining streams: %s",
                                              cudaGetErrorString(error));
}

/* The collectives' stream goes on behind what is on the device's. */
status follow(Group *group)
{
    cudaError_t error = cudaEventRecord(group->ready, group->compute);

    return joined(error ? error : cudaStreamWaitEvent(group->stream, group->ready, 0));
}

status nccl_mark(void *self, uint64_t mark)
{
    Group *group = static_cast<Group *>(self);

    return joined(cudaEventRecord(group->done[mark % MARKS], group->stream));
}

status nccl_join(void *self, uint64_t mark)
{
    Group *group = static_cast<Group *>(self);

    return joined(cudaStreamWaitEvent(group->compute, group->done[mark % MARKS], 0));
}

/* The exchange of a group of ranks: each gives `send(peer)` and takes `receive(peer)`. */
struct Part {
    float *data;
    size_t n;
};
template <typename Send, typename Receive>
status exchange(Group *group, int first, int count, Send send, Receive receive)
{
    std::unique_lock<std::mutex> lock(group->mutex);

    if (group->failed) {
        return failure(group);
    }
    ncclResult_t result = ncclGroupStart();
    for (int peer = first; result == ncclSuccess && peer < first + count; peer++) {
        if (peer == group->rank) {
            continue;
        }
        Part out = send(peer - first), in = receive(peer - first);
        if (out.n > 0) {
            result = ncclSend(out.data, out.n, ncclFloat32, peer, group->comm, group->stream);
        }
        if (in.n > 0 && (result == ncclSuccess || result == ncclInProgress)) {
            result = ncclRecv(in.data, in.n, ncclFloat32, peer, group->comm, group->stream);
        }
        result = result == ncclInProgress ? ncclSuccess : result;
    }
    ncclResult_t ended = ncclGroupEnd();
    status st = settle(group, lock, result == ncclSuccess ? ended : result, nullptr);
    if (!st) {
        note_enqueued(group);
    }
    return st;
}

/* x (n) of every member, one behind the other in `gathered`, summed up to x + own.first: this
 * rank's part of everybody's vector. */
status sum_own(Group *group, int first, int count, float *x, size_t n, struct comm_part own,
               int max)
{
    bool whole = own.count == n;
    int mine = group->rank - first;
    size_t parts = static_cast<size_t>(count);
    auto gathered = [=](int i) {
        return Part{group->gathered + static_cast<size_t>(i) * own.count, own.count};
    };
    auto theirs = [=](int i) {
        struct comm_part part = comm_part(n, parts, static_cast<size_t>(i));
        return whole ? Part{x, n} : Part{x + part.first, part.count};
    };
    status st = exchange(group, first, count, theirs, gathered);

    if (!st && own.count > 0) {
        st = device_copy(group->device, gathered(mine).data, x + own.first, own.count * sizeof(*x));
    }
    if (!st && own.count > 0) {
        st = op_group_reduce(group->device, x + own.first, group->gathered, 1, count,
                             static_cast<int>(own.count), max ? GROUP_MAX : GROUP_SUM);
    }
    return st;
}

status reduce_piece(Group *group, int first, int count, float *x, size_t n, int max)
{
    size_t parts = static_cast<size_t>(count);
    struct comm_part own = {0, n};

    if (n <= WHOLE) {
        return sum_own(group, first, count, x, n, own, max);
    }
    own = comm_part(n, parts, static_cast<size_t>(group->rank - first));
    status st = sum_own(group, first, count, x, n, own, max);
    if (st) {
        return st;
    }
    return exchange(
        group, first, count,
        [=](int) {
            return Part{x + own.first, own.count};
        },
        [=](int i) {
            struct comm_part part = comm_part(n, parts, static_cast<size_t>(i));
            return Part{x + part.first, part.count};
        });
}

status nccl_reduce(void *self, int first, int count, float *x, size_t n, int max)
{
    Group *group = static_cast<Group *>(self);
    status st = follow(group);

    device_redirect(group->device, group->stream);
    for (size_t at = 0; !st && at < n; at += PIECE) {
        st = reduce_piece(group, first, count, x + at, std::min(PIECE, n - at), max);
    }
    device_redirect(group->device, nullptr);
    return st;
}

status nccl_gather(void *self, void *out, const void *in, size_t bytes)
{
    Group *group = static_cast<Group *>(self);
    status st = follow(group);
    std::unique_lock<std::mutex> lock(group->mutex);

    if (st || group->failed) {
        return st ? st : failure(group);
    }
    ncclResult_t result = ncclAllGather(in, out, bytes, ncclInt8, group->comm, group->stream);
    st = settle(group, lock, result, nullptr);
    if (!st) {
        note_enqueued(group);
    }
    return st;
}

void nccl_abort(void *self)
{
    Group *group = static_cast<Group *>(self);
    std::lock_guard<std::mutex> lock(group->mutex);

    fail(group, "aborted");
}

std::array<cudaEvent_t *, MARKS + 2> events(Group *group)
{
    std::array<cudaEvent_t *, MARKS + 2> all;

    for (size_t i = 0; i < MARKS; i++) {
        all[i] = &group->done[i];
    }
    all[MARKS] = &group->ready;
    all[MARKS + 1] = &group->last;
    return all;
}

/* What is on the stream ends first; after a failure there is nothing left that could hang. */
void nccl_close(void *self)
{
    Group *group = static_cast<Group *>(self);

    {
        std::lock_guard<std::mutex> lock(group->mutex);
        group->closing = true;
        group->wake.notify_all();
    }
    if (group->watcher.joinable()) {
        group->watcher.join();
    }
    if (group->comm) {
        ncclCommAbort(group->comm); /* ranks leave one by one: a destroy would wait for them */
    }
    device_interrupt(group->device, false);
    device_free(group->device, group->gathered);
    for (cudaEvent_t *event : events(group)) {
        if (*event) {
            cudaEventDestroy(*event);
        }
    }
    if (group->stream) {
        cudaStreamDestroy(group->stream);
    }
    delete group;
}

void key_of(char (&key)[64], const struct comm_config *config, int rank)
{
    snprintf(key, sizeof(key), "epoch%llu/nccl/%d", static_cast<unsigned long long>(config->epoch),
             rank);
}

/* What a rank tells the others; the first one's id is the group's. */
struct Answer {
    char usable;
    ncclUniqueId id;
};

status put(const struct comm_config *config, const Answer &answer)
{
    char key[64];

    key_of(key, config, config->rank);
    return config->store.set(config->store.context, key, &answer, sizeof(answer));
}

/* Whether all ranks can; *id is the first one's. */
status ask_all(const struct comm_config *config, bool *usable, ncclUniqueId *id)
{
    *usable = true;
    for (int rank = 0; rank < config->size; rank++) {
        char key[64];
        void *data = nullptr;
        size_t bytes = 0;

        key_of(key, config, rank);
        status st =
            config->store.get(config->store.context, key, config->timeout_ms, &data, &bytes);
        if (st) {
            return st;
        }
        Answer answer = {};
        if (bytes == sizeof(answer)) {
            memcpy(&answer, data, sizeof(answer));
        }
        free(data);
        *usable = *usable && answer.usable;
        *id = rank == 0 ? answer.id : *id;
    }
    return STATUS_OK;
}

status allocate(Group *group)
{
    void *memory = nullptr;
    size_t floats = PIECE + static_cast<size_t>(group->size) * (WHOLE + 1);
    status st = device_alloc(group->device, &memory, floats * sizeof(float), "collectives");

    group->gathered = static_cast<float *>(memory);
    for (cudaEvent_t *event : events(group)) {
        if (!st && cudaEventCreateWithFlags(event, cudaEventDisableTiming)) {
            st = status_fail(STATUS_INTERNAL, "cuda: no event for the collectives");
        }
    }
    if (!st && cudaStreamCreateWithFlags(&group->stream, cudaStreamNonBlocking)) {
        st = status_fail(STATUS_INTERNAL, "cuda: no stream for the collectives");
    }
    return st;
}

status join(Group *group, const struct comm_config *config, ncclUniqueId id)
{
    ncclConfig_t how = NCCL_CONFIG_INITIALIZER;
    std::unique_lock<std::mutex> lock(group->mutex);

    how.blocking = 0;
    ncclResult_t result = ncclCommInitRankConfig(&group->comm, group->size, id, group->rank, &how);
    return settle(group, lock, result, &config->store);
}

/* NCCL does not say whose part is missing: the next rank, which is as likely as any. */
int nccl_waits_for(const void *self)
{
    const Group *group = static_cast<const Group *>(self);

    return (group->rank + 1) % group->size;
}

} // namespace

status comm_nccl_open(void **self, bool *usable, const struct comm_config *config)
{
    Answer mine = {};
    ncclUniqueId id = {};
    bool here = !config->tcp_only && config->device && !device_on_host(config->device);

    *self = nullptr;
    *usable = false;
    mine.usable = here && (config->rank > 0 || ncclGetUniqueId(&mine.id) == ncclSuccess);
    status st = put(config, mine);
    if (st || !here) {
        return st; /* the others read the answer and do without, too */
    }
    st = ask_all(config, usable, &id);
    if (st || !*usable) {
        return st;
    }
    Group *group = new (std::nothrow) Group;
    if (!group) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the collectives");
    }
    group->rank = config->rank;
    group->size = config->size;
    group->timeout_ms = config->timeout_ms;
    group->device = config->device;
    group->compute = static_cast<cudaStream_t>(device_stream(config->device));
    st = allocate(group);
    if (!st) {
        st = join(group, config, id);
    }
    if (st) {
        nccl_close(group);
        return st;
    }
    group->watcher = std::thread(watch, group);
    *self = group;
    return STATUS_OK;
}

const struct comm_transport comm_nccl = {nccl_reduce,    nccl_gather, nccl_abort,
                                         nccl_waits_for, nccl_close,  false,
                                         nccl_mark,      nccl_join,   nccl_launched};
