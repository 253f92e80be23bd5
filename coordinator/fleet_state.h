/*
 * fleet_state.h - what fleet.c (workers come, speak and go), fleet_seats.c (who sits where, groups
 * form) and fleet_status.c (what is there) share; nobody else includes it.
 */
#ifndef COORDINATOR_FLEET_STATE_H
#define COORDINATOR_FLEET_STATE_H

#include "coordinator/fleet.h"
#include "coordinator/list.h"

struct fleet_worker {
    void *peer;
    struct fleet_hello hello;
    struct fleet_ready ready;
    struct link link; /* in fleet.workers */
    struct link wait; /* in fleet.waiting while it has no seat */
    bool seated;
    bool leaving; /* it was told to stop */
    uint32_t group, rank;
    bool is_ready; /* in this epoch */
    double heard_ms;
    double waiting_ms; /* of its last beat in this epoch */
    uint32_t waiting_for;
    uint64_t kv_bytes_used;
    uint64_t memory_peak_bytes; /* of its last beat */
};

/* A place in a group, and what became of who sat there last. */
struct seat {
    struct fleet_worker *worker;
    struct worker_status last; /* host, device and error; host "": never taken */
};

struct fleet_group {
    struct seat *seats; /* [ranks]; NULL: never used */
    uint32_t n_seated, n_ready;
    uint64_t epoch; /* 0: not formed */
    bool ready;
    bool draining;
    bool failed; /* since it was last ready or formed */
    double ready_ms;
    double retry_ms; /* not formed again before */
    double backoff_ms;
    bool suspected;
    double suspected_ms;
    struct failure suspicion;
};

struct fleet {
    struct fleet_config config;
    struct fleet_group *groups; /* [n_groups] */
    uint32_t n_used;
    struct link workers;
    struct link waiting;
    uint64_t last_epoch;
    double ticked_ms;     /* 0: never */
    uint64_t fingerprint; /* of the model, as the first worker has it */
    struct failure scratch;
};

static inline struct fleet_group *fleet_group_of(const struct fleet *fleet,
                                                 const struct fleet_worker *worker)
{
    return &fleet->groups[worker->group];
}

static inline bool fleet_is_complete(const struct fleet *fleet, const struct fleet_group *group)
{
    return group->n_seated == (uint32_t)fleet->config.ranks;
}

/* fleet_seats.c */

/* The worker's seat is free, or it waits no longer. */
void fleet_stand_up(struct fleet *fleet, struct fleet_worker *worker);
/* After every change of who is there. */
void fleet_settle(struct fleet *fleet, double now);

#endif
