#include "worker/comm.h"

#include "common/clock.h"
#include "common/log.h"
#include "worker/comm_transport.h"

#include <stdlib.h>
#include <string.h>

struct comm {
    int rank, size;
    const struct comm_transport *transport; /* NULL: one rank, or not open yet */
    void *self;
    double busy_ms;
};

static status connect_ranks(struct comm *comm, const struct comm_config *config)
{
    bool shared;

    status st = comm_shm_open(&comm->self, &shared, config);
    if (!st && !shared) {
        st = comm_gloo_open(&comm->self, config);
    }
    if (!st) {
        comm->transport = shared ? &comm_shm : &comm_gloo;
    }
    return st;
}

status comm_open(struct comm **out, const struct comm_config *config)
{
    struct comm *comm = calloc(1, sizeof(*comm));

    if (!comm) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the collectives");
    }
    comm->rank = config->rank;
    comm->size = config->size;
    if (comm->size > 1) {
        status st = connect_ranks(comm, config);
        if (st) {
            comm_close(comm);
            return st;
        }
        log_info("comm: joined rank=%d size=%d over=%s", comm->rank, comm->size,
                 comm->transport == &comm_shm ? "shared-memory" : "tcp");
    }
    *out = comm;
    return STATUS_OK;
}

void comm_close(struct comm *comm)
{
    if (comm && comm->transport) {
        comm->transport->close(comm->self);
    }
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

status comm_all_reduce(struct comm *comm, float *x, size_t n)
{
    return comm_group_reduce(comm, 0, comm->size, x, n, 0);
}

status comm_group_reduce(struct comm *comm, int first, int count, float *x, size_t n, int max)
{
    if (count == 1 || n == 0) {
        return STATUS_OK;
    }
    double begin = clock_ms();
    status st = comm->transport->reduce(comm->self, first, count, x, n, max);
    comm->busy_ms += clock_ms() - begin;
    return st;
}

status comm_all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    if (comm->size == 1) {
        memmove(out, in, bytes);
        return STATUS_OK;
    }
    double begin = clock_ms();
    status st = comm->transport->gather(comm->self, out, in, bytes);
    comm->busy_ms += clock_ms() - begin;
    return st;
}

double comm_take_ms(struct comm *comm)
{
    double ms = comm->busy_ms;

    comm->busy_ms = 0;
    return ms;
}
