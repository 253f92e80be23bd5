#include "worker/comm.h"

#include "common/clock.h"
#include "common/log.h"
#include "kernels/device.h"
#include "worker/comm_queue.h"
#include "worker/comm_transport.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Of one exchange of device memory by a transport that reads the host's. */
enum { STAGING_BYTES = 4 << 20 };

struct comm {
    int rank, size;
    const struct comm_transport *transport; /* NULL: one rank, or not open yet */
    void *self;
    struct device *device;    /* whose memory is not the host's; else NULL */
    char *staging;            /* (STAGING_BYTES) on the host, with a device */
    struct comm_queue *queue; /* NULL: sums that are begun are finished at once */
    uint64_t marks;           /* given so far, of a transport that has them */
    double waited_ms;         /* in all calls */
    double direct_ms;         /* in those that were not for the queue */
    _Atomic double since_ms;  /* when the transport was called; 0: it is not in a call */
};

static status connect_ranks(struct comm *comm, const struct comm_config *config)
{
    bool usable;
    status st = comm_nccl_open(&comm->self, &usable, config);

    if (st || usable) {
        comm->transport = st ? NULL : &comm_nccl;
        return st;
    }
    st = comm_shm_open(&comm->self, &usable, config);
    if (!st && !usable) {
        st = comm_gloo_open(&comm->self, config);
    }
    if (!st) {
        comm->transport = usable ? &comm_shm : &comm_gloo;
    }
    return st;
}

static status transport_reduce(struct comm *comm, int first, int count, float *x, size_t n,
                               int max);

static status sum_in_background(void *context, float *x, size_t n)
{
    struct comm *comm = context;

    return transport_reduce(comm, 0, comm->size, x, n, 0);
}

static const char *transport_name(const struct comm *comm)
{
    return comm->transport == &comm_nccl  ? "nccl"
           : comm->transport == &comm_shm ? "shared-memory"
                                          : "tcp";
}

/* A transport that reads host memory needs some of it to reach the device's. */
static status allocate_staging(struct comm *comm)
{
    if (comm->device && comm->transport != &comm_nccl) {
        comm->staging = malloc(STAGING_BYTES);
        if (!comm->staging) {
            return status_fail(STATUS_EXHAUSTED, "no memory for the collectives");
        }
    }
    return STATUS_OK;
}

status comm_open(struct comm **out, const struct comm_config *config)
{
    struct comm *comm = calloc(1, sizeof(*comm));

    if (!comm) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the collectives");
    }
    comm->rank = config->rank;
    comm->size = config->size;
    if (config->device && !device_on_host(config->device)) {
        comm->device = config->device;
    }
    if (comm->size > 1) {
        status st = connect_ranks(comm, config);
        if (!st) {
            st = allocate_staging(comm);
        }
        if (!st && comm->transport->in_background && !comm->device) {
            st = comm_queue_create(&comm->queue, sum_in_background, comm);
        }
        if (st) {
            comm_close(comm);
            return st;
        }
        log_info("comm: joined rank=%d size=%d over=%s", comm->rank, comm->size,
                 transport_name(comm));
    }
    *out = comm;
    return STATUS_OK;
}

void comm_close(struct comm *comm)
{
    if (!comm) {
        return;
    }
    if (comm->queue) {
        comm_abort(comm); /* a sum that nobody waits for may never come */
        comm_queue_destroy(comm->queue);
    }
    if (comm->transport) {
        comm->transport->close(comm->self);
    }
    free(comm->staging);
    free(comm);
}

void comm_abort(struct comm *comm)
{
    if (comm->transport) {
        comm->transport->abort(comm->self);
    }
}

int comm_rank(const struct comm *comm)
{
    return comm->rank;
}

int comm_size(const struct comm *comm)
{
    return comm->size;
}

static void set_since(struct comm *comm, double ms)
{
    atomic_store_explicit(&comm->since_ms, ms, memory_order_relaxed);
}

static status transport_reduce(struct comm *comm, int first, int count, float *x, size_t n, int max)
{
    set_since(comm, clock_ms());
    status st = comm->transport->reduce(comm->self, first, count, x, n, max);
    set_since(comm, 0);
    return st;
}

static status transport_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    set_since(comm, clock_ms());
    status st = comm->transport->gather(comm->self, out, in, bytes);
    set_since(comm, 0);
    return st;
}

/* Piece by piece through the host: an element's sum does not depend on its neighbours. */
static status reduce_staged(struct comm *comm, int first, int count, float *x, size_t n, int max)
{
    const size_t piece = STAGING_BYTES / sizeof(*x);
    float *staging = (float *)(void *)comm->staging;
    status st = STATUS_OK;

    for (size_t at = 0; !st && at < n; at += piece) {
        size_t part = n - at < piece ? n - at : piece;
        st = device_download(comm->device, staging, x + at, part * sizeof(*x));
        if (!st) {
            st = transport_reduce(comm, first, count, staging, part, max);
        }
        if (!st) {
            st = device_upload(comm->device, x + at, staging, part * sizeof(*x));
        }
    }
    return st;
}

/* A piece from this rank is the first in the staging memory, those of all ranks follow it. */
static status gather_staged(struct comm *comm, char *out, const char *in, size_t bytes)
{
    size_t ranks = (size_t)comm->size;
    const size_t piece = STAGING_BYTES / (ranks + 1);
    status st = STATUS_OK;

    for (size_t at = 0; !st && at < bytes; at += piece) {
        size_t part = bytes - at < piece ? bytes - at : piece;
        char *all = comm->staging + piece;
        st = device_download(comm->device, comm->staging, in + at, part);
        if (!st) {
            st = transport_gather(comm, all, comm->staging, part);
        }
        for (size_t r = 0; !st && r < ranks; r++) {
            st = device_upload(comm->device, out + r * bytes + at, all + r * part, part);
        }
    }
    return st;
}

status comm_all_reduce(struct comm *comm, float *x, size_t n)
{
    return comm_group_reduce(comm, 0, comm->size, x, n, 0);
}

static void count_direct(struct comm *comm, double begin)
{
    double ms = clock_ms() - begin;

    comm->waited_ms += ms;
    comm->direct_ms += ms;
}

static bool has_marks(const struct comm *comm)
{
    return comm->transport && comm->transport->join;
}

/* What was called so far is seen by what is enqueued next. */
static status join_stream(struct comm *comm)
{
    if (!has_marks(comm)) {
        return STATUS_OK;
    }
    status st = comm->transport->mark(comm->self, ++comm->marks);
    return st ? st : comm->transport->join(comm->self, comm->marks);
}

static status begin_on_stream(struct comm *comm, float *x, size_t n, uint64_t *ticket)
{
    double begin = clock_ms();
    status st = transport_reduce(comm, 0, comm->size, x, n, 0);

    if (!st) {
        st = comm->transport->mark(comm->self, ++comm->marks);
    }
    *ticket = comm->marks;
    count_direct(comm, begin);
    return st;
}

status comm_begin_all_reduce(struct comm *comm, float *x, size_t n, uint64_t *ticket)
{
    *ticket = 0;
    if (has_marks(comm) && n > 0) {
        return begin_on_stream(comm, x, n, ticket);
    }
    if (!comm->queue || n == 0) {
        return comm_all_reduce(comm, x, n);
    }
    *ticket = comm_queue_add(comm->queue, x, n);
    return STATUS_OK;
}

status comm_finish(struct comm *comm, uint64_t ticket)
{
    if (has_marks(comm) && ticket > 0) {
        return comm->transport->join(comm->self, ticket);
    }
    if (!comm->queue || ticket == 0) {
        return STATUS_OK;
    }
    double begin = clock_ms();
    status st = comm_queue_wait(comm->queue, ticket);
    comm->waited_ms += clock_ms() - begin;
    return st;
}

/* What was begun comes first.  *begin is when the call's own collective begins. */
static status take_turn(struct comm *comm, double *begin)
{
    status st = comm->queue ? comm_finish(comm, comm_queue_last(comm->queue)) : STATUS_OK;

    *begin = clock_ms();
    return st;
}

status comm_group_reduce(struct comm *comm, int first, int count, float *x, size_t n, int max)
{
    double begin;

    if (count == 1 || n == 0) {
        return STATUS_OK;
    }
    status st = take_turn(comm, &begin);
    if (st) {
        return st;
    }
    st = comm->staging ? reduce_staged(comm, first, count, x, n, max)
                       : transport_reduce(comm, first, count, x, n, max);
    count_direct(comm, begin);
    return st ? st : join_stream(comm);
}

static status copy_alone(struct comm *comm, void *out, const void *in, size_t bytes)
{
    if (comm->device) {
        return device_copy(comm->device, out, in, bytes);
    }
    memmove(out, in, bytes);
    return STATUS_OK;
}

status comm_all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    if (comm->size == 1) {
        return copy_alone(comm, out, in, bytes);
    }
    double begin;
    status st = take_turn(comm, &begin);
    if (st) {
        return st;
    }
    st = comm->staging ? gather_staged(comm, out, in, bytes)
                       : transport_gather(comm, out, in, bytes);
    count_direct(comm, begin);
    return st ? st : join_stream(comm);
}

bool comm_on_stream(const struct comm *comm)
{
    return comm->size == 1 || has_marks(comm);
}

status comm_before_launch(struct comm *comm)
{
    return join_stream(comm);
}

void comm_launched(struct comm *comm)
{
    if (comm->size > 1) {
        comm->transport->launched(comm->self);
    }
}

double comm_waiting_ms(const struct comm *comm, int *peer)
{
    double since = atomic_load_explicit(&comm->since_ms, memory_order_relaxed);

    *peer = comm->transport ? comm->transport->waits_for(comm->self) : 0;
    return since > 0 ? clock_ms() - since : 0;
}

struct comm_times comm_take_times(struct comm *comm)
{
    struct comm_times times = {.waited = comm->waited_ms, .total = comm->direct_ms};

    if (comm->queue) {
        times.total += comm_queue_take_ms(comm->queue);
    }
    comm->waited_ms = 0;
    comm->direct_ms = 0;
    return times;
}
