/*
 * comm.h - the collectives of one tensor-parallel group.
 *
 * Every element of a sum is formed once, in rank order, and then distributed: all ranks hold
 * the same bits, so all ranks choose alike.  Groups of one rank return at once.  Calls are made
 * by the engine thread alone, in the same order on every rank; comm_abort() may come from any
 * thread and makes the call in progress, and all later ones, fail with STATUS_UNAVAILABLE.
 *
 * The ranks find each other through `store`, a small key-value space that the coordinator
 * relays; the address that a rank publishes is `host`.
 *
 * Buffers are memory of `device`, without which they are the host's.  A call takes its place on the
 * device's stream: what was enqueued before it is done before it, and what comes after sees its
 * result, or that of a sum that was only begun once it was finished.  NCCL works on a stream of its
 * own, which events join to the device's.
 */
#ifndef WORKER_COMM_H
#define WORKER_COMM_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

struct device;

#ifdef __cplusplus
extern "C" {
#endif

struct comm;

/* How ranks exchange addresses.  get() waits for the key up to timeout_ms, or for an abort. */
struct comm_store {
    void *context;
    status (*set)(void *context, const char *key, const void *data, size_t bytes);
    /* *out is malloc'd, the caller frees it. */
    status (*get)(void *context, const char *key, int timeout_ms, void **out, size_t *out_bytes);
    /* Not 0: the group was dissolved, so nobody will join it any more. */
    int (*over)(void *context);
};

struct comm_config {
    int rank, size;
    uint64_t epoch;   /* keys carry it, so a late rank of an older epoch meets nobody */
    const char *host; /* address or interface that this rank listens on and publishes */
    int timeout_ms;   /* of one collective; a rank that stops is found by then */
    int tcp_only;     /* of any rank: no shared memory, even where all are on one host */
    struct comm_store store;
    struct device *device; /* borrowed until comm_close(); NULL: the host */
};

status comm_open(struct comm **out, const struct comm_config *config);
void comm_close(struct comm *comm); /* NULL is fine */
void comm_abort(struct comm *comm);

int comm_rank(const struct comm *comm);
int comm_size(const struct comm *comm);

/* x[i] = x_0[i] + x_1[i] + ... in rank order, on every rank. */
status comm_all_reduce(struct comm *comm, float *x, size_t n);

/* The sum of comm_all_reduce() behind the caller's back: x belongs to it until comm_finish() of
 * *ticket.  Collectives are carried out in the order of the calls, whatever their kind, so a call
 * that waits also waits for those that were begun before it.  Where nothing is gained (one rank, or
 * a transport without a background) the sum is there on return. */
status comm_begin_all_reduce(struct comm *comm, float *x, size_t n, uint64_t *ticket);

/* Waits for that sum and all that were begun before it. */
status comm_finish(struct comm *comm, uint64_t ticket);

/* The same as comm_all_reduce() among ranks first..first + count only (this rank is one of them);
 * the others do not call.  `max` takes the largest instead of the sum. */
status comm_group_reduce(struct comm *comm, int first, int count, float *x, size_t n, int max);

/* out (size, bytes) = every rank's `in` (bytes), in rank order. */
status comm_all_gather(struct comm *comm, void *out, const void *in, size_t bytes);

/* Whether collectives are work of the device's streams and nothing else, so that a graph can hold
 * them (device_record()).  Each launch of one that may hold some has comm_before_launch() just
 * before it, so that it comes behind sums that were begun, and comm_launched() after it. */
bool comm_on_stream(const struct comm *comm);
status comm_before_launch(struct comm *comm);
void comm_launched(struct comm *comm);

/* How long the collective in progress takes already, and *peer, whose part it waits for; 0: none is
 * in progress.  From any thread. */
double comm_waiting_ms(const struct comm *comm, int *peer);

/* Milliseconds since the last call, which starts the count again. */
struct comm_times {
    double waited; /* by the caller, for collectives */
    double total;  /* in collectives from begin to end, whether the caller waited or not */
};
struct comm_times comm_take_times(struct comm *comm);

#ifdef __cplusplus
}
#endif

#endif
