/*
 * link.h - the worker's one stream to the coordinator.
 *
 * Events come in order through link_next(); the engine thread is their only reader.  What must
 * not wait for the engine is done at once, on the completion thread: rendezvous entries are
 * stored, and when the group is left or the stream breaks the collectives in progress are
 * aborted, so that the engine thread comes back.  Heartbeats have a thread of their own.
 *
 * A broken stream is opened again with backoff, for ever: a coordinator that comes back finds
 * its workers with their weights loaded.
 */
#ifndef WORKER_LINK_H
#define WORKER_LINK_H

#include "common/model_config.h"
#include "common/rpc.h"
#include "common/status.h"
#include "worker/comm.h"

#include <stdbool.h>
#include <stdint.h>

enum link_limits {
    LINK_MAX_EVENTS = 4096,   /* waiting for the engine thread; more is a broken coordinator */
    LINK_MAX_ENTRIES = 4096,  /* rendezvous keys of one epoch */
    LINK_MAX_ENTRY = 1 << 16, /* bytes of one */
    LINK_BEAT_MS = 500,       /* between heartbeats */
    LINK_BACKOFF_MS = 100,    /* before the first try to come back; doubles */
    LINK_MAX_BACKOFF_MS = 3000,
    LINK_BYE_MS = 1000,            /* for the coordinator to take note that a worker leaves */
    LINK_STORE_TIMEOUT_MS = 30000, /* for a key of the rendezvous */
};

struct link_config {
    const char *coordinator; /* HOST:PORT */
    struct rpc_identity identity;
    const char *host;   /* how this worker is called in status and errors */
    const char *device; /* "cpu" */
    uint64_t model_fingerprint;
    uint64_t memory_bytes;
    int fixed_rank;     /* -1: any */
    const char *cohort; /* of the workers that may be one group with this one; "" */
    int drain_ms;       /* that link_drain() waits at most */
};

struct link_assignment {
    uint32_t group, rank, size;
    uint64_t epoch;
    enum dtype dtype;
    uint32_t max_context;
    bool check_selection;
};

enum link_kind {
    LINK_ASSIGN, /* a place in a group: load, join, and say link_ready() */
    LINK_PLAN,   /* plan (plan_bytes): a packed Plan of this epoch; the reader frees it */
    LINK_LEAVE,  /* the epoch is over, or the stream broke: forget its sequences */
    LINK_STOP,   /* link_stop() was called */
};

struct link_event {
    enum link_kind kind;
    struct link_assignment assign;
    uint8_t *plan;
    size_t plan_bytes;
};

struct link_ready {
    uint64_t kv_bytes_total;
    uint32_t pages_total;
    uint32_t page_rows;
    uint64_t weight_bytes;
    uint64_t scratch_bytes;
    const char *device; /* "cpu avx512_bf16, 1 thread" */
};

struct link;

status link_open(struct link **out, const struct link_config *config);
void link_close(struct link *link); /* NULL is fine */

/* Async-signal-safe: link_next() returns LINK_STOP from now on, and the coordinator is told. */
void link_stop(struct link *link);

/* Async-signal-safe: the coordinator is told that this worker is to stop, and lets its group
 * finish; link_stop() follows when the group is left, or after drain_ms, or where there is no
 * stream. */
void link_drain(struct link *link);

/* Waits for the next event. */
void link_next(struct link *link, struct link_event *out);

/* The rendezvous of an epoch; the link outlives whoever uses it. */
struct comm_store link_store(struct link *link);

/* The collectives to abort when the group is left; NULL when they are gone. */
void link_watch(struct link *link, struct comm *comm);

/* The weights that this worker holds from now on (size 0: none).  A new coordinator is told, which
 * then gives it the same rank. */
void link_loaded(struct link *link, uint32_t rank, uint32_t size);

/* To the coordinator.  A message for a broken stream is dropped: the epoch is over anyway. */
void link_send_ready(struct link *link, uint64_t epoch, const struct link_ready *ready);
void link_send_result(struct link *link, const uint8_t *packed, size_t bytes);
void link_send_fault(struct link *link, uint64_t epoch, status code);

/* One more step executed: the number in the heartbeats, by which liveness is judged. */
void link_count_step(struct link *link);

#endif
