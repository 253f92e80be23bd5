/*
 * core_state.h - what core.c (events), core_results.c (what workers computed) and core_status.c
 * (snapshots and counts) share; nobody else includes it.
 */
#ifndef COORDINATOR_CORE_STATE_H
#define COORDINATOR_CORE_STATE_H

#include "coordinator/core.h"
#include "coordinator/gather.h"
#include "coordinator/record.h"
#include "coordinator/scheduler.h"

enum {
    MAX_DRAINS = 16,
    MAX_STATUSES = 64,     /* snapshots that wait for workers to clear up */
    STATUS_WAIT_MS = 1000, /* at most */
    COUNT_MS = 200,        /* between two looks at the ranks for the metrics */
};

/* A request and what the workers reported about its samples. */
struct live {
    struct request *request;
    struct record *records[]; /* [n_samples], made when needed */
};

struct drain {
    void (*reply)(uint32_t unfinished, void *context);
    void *context;
};

struct ask {
    void (*reply)(const struct service_status *status, void *context);
    void *context;
    double until_ms;
};

struct core {
    const struct service_config *config;
    struct core_sink sink;
    struct scheduler *scheduler;
    struct fleet *fleet;
    struct split *splits;                       /* [ranks] */
    struct gather *gathers[SERVICE_MAX_GROUPS]; /* made when a group is ready first */
    struct dispatch_peer **peers;               /* [ranks], of the plan being sent */
    double opened_ms, now;
    bool ready, was_ready;
    bool draining, closing;
    double drain_deadline_ms;
    double next_count_ms;
    double progress_ms;
    struct drain drains[MAX_DRAINS];
    int n_drains;
    struct ask asks[MAX_STATUSES]; /* oldest first */
    int n_asks;
    bool broken; /* a group to give up once the event at hand is over */
    uint32_t broken_group;
    struct failure broken_failure;
    char last_fault[sizeof(((struct failure *)0)->text)];
    uint64_t steps, completed, failed;
};

/* core.c */

/* The group is given up once the event at hand is over. */
void core_break_group(struct core *core, uint32_t group, status st);
/* After every event: plans leave, waiting callers are answered. */
void core_settle(struct core *core);

/* core_results.c: a rank's result of its oldest plan. */
void core_take_result(struct core *core, struct fleet_worker *worker, struct step_result *result);

/* core_status.c */

/* Tells the metrics what each rank is doing. */
void core_count_groups(struct core *core);
/* Workers report their memory with results: a group whose last request has just ended is asked
 * about when it answered the plan that frees the pages. */
void core_answer_asks(struct core *core);
/* Snapshots that wait are given as things are. */
void core_answer_all(struct core *core);

#endif
