/*
 * fleet.h - the workers that dialled in, and the groups they form.
 *
 * A worker says hello, gets a seat (group, rank), and waits there until every seat of its group
 * is taken.  Then the group forms: all ranks are assigned one epoch, meet through relayed store
 * entries, load their weights and say ready.  When a rank is lost or reports a fault, the whole
 * epoch is over: the others are told to leave it, and the group forms again, in a new epoch, as
 * soon as its seats are taken.  Epochs are never reused, so messages of an old one are dropped.
 *
 * No I/O, no clock, no threads: events in, calls of the sink out.  `peer` is the caller's name
 * for a worker's stream.  Sink calls come from within events and must not call the fleet.
 */
#ifndef COORDINATOR_FLEET_H
#define COORDINATOR_FLEET_H

#include "coordinator/service.h"

enum fleet_limits {
    FLEET_MAX_RANKS = MODEL_MAX_HEADS,
    FLEET_MAX_KEY = 4096,        /* bytes of a store key */
    FLEET_MAX_VALUE = 1 << 20,   /* bytes of a store value */
    FLEET_BLAME_MS = 300,        /* a rank that blames its peers is believed after so long */
    FLEET_MIN_BACKOFF_MS = 100,  /* before a group that reported a fault forms again */
    FLEET_MAX_BACKOFF_MS = 5000, /* it doubles up to here */
    FLEET_SETTLED_MS = 10000,    /* ready for so long: the next fault starts from the minimum */
    FLEET_ABSENT_MS = 1000,      /* between two ticks: this program was stopped, not the workers */
};

struct fleet_hello {
    char host[SERVICE_TEXT];
    char device[SERVICE_TEXT];
    char build[SERVICE_TEXT];
    uint64_t model_fingerprint;
    uint64_t memory_bytes;
    uint32_t process;
    int64_t fixed_rank; /* -1: any */
    /* Ranks of one group have the same, as a rack or a switch; "" is a name like others. */
    char cohort[SERVICE_TEXT];
    uint32_t loaded_rank, loaded_size; /* of the weights it holds; size 0: none */
};

struct fleet_assignment {
    uint32_t group;
    uint32_t rank;
    uint32_t size;
    uint64_t epoch;
    enum dtype dtype;
    uint32_t max_context;
    bool check_selection;
};

struct fleet_ready {
    uint64_t epoch;
    uint64_t kv_bytes_total;
    uint32_t pages_total;
    uint32_t page_rows;
    uint64_t weight_bytes;
    uint64_t scratch_bytes;
    char device[SERVICE_TEXT];
};

struct fleet_beat {
    uint64_t epoch;
    double waiting_ms;    /* in the collective in progress */
    uint32_t waiting_for; /* rank */
    uint64_t memory_peak_bytes;
};

struct fleet_entry {
    uint64_t epoch;
    const char *key; /* key_bytes long, no NUL needed */
    size_t key_bytes;
    const uint8_t *value;
    size_t value_bytes;
};

struct fleet_sink {
    void (*assign)(void *context, void *peer, const struct fleet_assignment *assignment);
    void (*store)(void *context, void *peer, const struct fleet_entry *entry);
    void (*leave)(void *context, void *peer, uint64_t epoch);
    /* The fleet gave the worker up; its stream is to be ended.  No event of it any more. */
    void (*dismiss)(void *context, void *peer, uint32_t process, const struct failure *failure);
    /* All ranks of the group are ready: `ranks` is what each said. */
    void (*ready)(void *context, uint32_t group, uint64_t epoch,
                  const struct fleet_ready *const *ranks);
    /* A group that is ready takes no more work: fleet_drained() is due when it has none. */
    void (*drain)(void *context, uint32_t group, const struct failure *cause);
    /* A group that was ready is not any more. */
    void (*lost)(void *context, uint32_t group, const struct failure *failure);
    void *context;
};

struct fleet_config {
    const char *build; /* that workers must have; borrowed */
    int ranks;
    uint32_t n_groups; /* at most */
    enum dtype dtype;
    uint32_t max_context;
    bool check_selection;
    int heartbeat_timeout_ms;
    struct fleet_sink sink;
};

struct fleet;
struct fleet_worker;

status fleet_open(struct fleet **out, const struct fleet_config *config);
void fleet_close(struct fleet *fleet); /* without any call of the sink; NULL is fine */

/* A failure says why the worker is refused; *out is valid until fleet_gone() or dismiss(). */
status fleet_join(struct fleet *fleet, struct fleet_worker **out, void *peer,
                  const struct fleet_hello *hello, double now);
/* The stream ended: `cause` completes "rank 1 of group 0 (host, process 7) ...". */
void fleet_gone(struct fleet *fleet, struct fleet_worker *worker, const char *cause, double now);

/* The worker was told to stop.  A ready group drains first; from any other it is let go at once. */
void fleet_drain(struct fleet *fleet, struct fleet_worker *worker, double now);
bool fleet_is_draining(const struct fleet *fleet, uint32_t index);
/* Nothing runs in the draining group any more: its epoch is over, and who was told to stop goes. */
void fleet_drained(struct fleet *fleet, uint32_t index, double now);

/* Any message of a worker shows that it lives.  False: it is of another epoch, drop it. */
bool fleet_heard(struct fleet *fleet, struct fleet_worker *worker, uint64_t epoch, double now);
/* A group whose ranks all wait in a collective for the heartbeat timeout is given up: somebody
 * would be computing if messages came through. */
void fleet_beat(struct fleet *fleet, struct fleet_worker *worker, const struct fleet_beat *beat,
                double now);
void fleet_store(struct fleet *fleet, struct fleet_worker *worker, const struct fleet_entry *entry);
void fleet_worker_ready(struct fleet *fleet, struct fleet_worker *worker,
                        const struct fleet_ready *ready, double now);
/* The worker cannot go on.  UNAVAILABLE means that it suspects its peers: if one of them is
 * lost within FLEET_BLAME_MS, that one is named. */
void fleet_fault(struct fleet *fleet, struct fleet_worker *worker, const struct failure *fault,
                 double now);
void fleet_kv_used(struct fleet *fleet, struct fleet_worker *worker, uint64_t bytes);
/* What the group sent cannot be: it starts again in a new epoch. */
void fleet_fail_group(struct fleet *fleet, uint32_t index, const struct failure *failure,
                      double now);
/* Heartbeats, suspicions, groups that wait to form again. */
void fleet_tick(struct fleet *fleet, double now);

/* Its seat; meaningful while the worker's group has an epoch (fleet_heard() was true). */
uint32_t fleet_worker_group(const struct fleet_worker *worker);
uint32_t fleet_worker_rank(const struct fleet_worker *worker);
uint32_t fleet_worker_process(const struct fleet_worker *worker);
void *fleet_peer(const struct fleet *fleet, uint32_t index, int rank); /* NULL: empty seat */

uint32_t fleet_groups(const struct fleet *fleet); /* that ever had a worker; at least one */
/* Fills *out, and workers[0..ranks) of which out->n_workers are used. */
void fleet_group_status(const struct fleet *fleet, uint32_t index, struct group_status *out,
                        struct worker_status *workers, double now);

#endif
