/*
 * scheduler.h - which request runs where and when: a pure state machine.
 *
 * Events go in as calls, with the time as an argument; decisions come out as step plans
 * (scheduler_next_plan) and as calls of the sink.  No I/O, no clock, no threads, no random
 * numbers: the same events give the same decisions, so a test replays thousands of groups
 * under a virtual clock.
 *
 * Requests are served first come, first served over all groups, where a level of priority counts as
 * much as having come SCHEDULER_PRIORITY_MS earlier.  The head of the queue is
 * admitted as soon as one group has pages for its worst case on every rank and rows of the prompt
 * memory for its prompt; who passes it meanwhile takes nothing that it waits for, and nothing
 * that runs is ever evicted.  A job whose group is lost before its first token is computed again,
 * with its place in the queue; while no group is ready the queue waits `reform_ms` for one.  Each
 * plan carries slices of prompts, as many as fit a time (the oldest and the one with the least left
 * take turns; a second one only where the first ends), and one decode step of all live sequences.
 * Plans leave `look_ahead` at a time: what was computed past the end of a sample is dropped here.
 *
 * Times are milliseconds on any one clock.  Sink calls come from within the event; they must
 * not call the scheduler.
 */
#ifndef COORDINATOR_SCHEDULER_H
#define COORDINATOR_SCHEDULER_H

#include "coordinator/request.h"

enum scheduler_limits {
    SCHEDULER_MAX_LOOK_AHEAD = 8,
    SCHEDULER_MAX_GROUPS = 65536,
    SCHEDULER_MAX_PRIORITY = 1000, /* a request's priority counts up to this, and down to -1000 */
    SCHEDULER_PRIORITY_MS = 10000, /* of waiting that one level is worth */
    SCHEDULER_MAX_RERUNS = 2,      /* of one request: it may be what kills its groups */
};

struct scheduler_sink {
    void (*progress)(void *context, void *user, const struct request_progress *progress);
    /* True: the sample ends here (a stop string). */
    bool (*token)(void *context, void *user, uint32_t sample, const struct result_token *token,
                  bool stop);
    /* kv_* of the usage and the trace are not the scheduler's. */
    void (*done)(void *context, void *user, const struct request_done *done);
    /* Once and last for each submitted request, which is not touched any more. */
    void (*ended)(void *context, void *user, const struct failure *failure);
    /* Its group was lost before it had a token: it waits again, and what workers reported about it
     * is void. */
    void (*rerun)(void *context, void *user, const struct failure *failure);
    void *context;
};

/* Zeros are replaced by the defaults behind them. */
struct scheduler_config {
    const struct model_config *model; /* borrowed */
    int ranks;                        /* of every group */
    uint32_t n_groups;
    uint32_t max_context;    /* the model's */
    uint32_t queue_requests; /* 1024 */
    uint64_t queue_tokens;   /* unlimited */
    uint32_t look_ahead;     /* 2 */
    uint32_t max_sequences;  /* of one group: PLAN_MAX_SLOTS */
    double itl_target_ms;    /* 100: of a plan that decodes and reads prompts */
    double report_ms;        /* 400: between two reports of progress */
    double reform_ms;        /* 30000: the queue waits for a ready group when there is none */
    struct scheduler_sink sink;
};

/* What a group brings, when it is ready. */
struct group_capacity {
    uint64_t epoch;
    uint32_t page_rows;    /* the same in all groups */
    const uint32_t *pages; /* [ranks] */
    uint64_t page_bytes;   /* for sentences only */
};

struct scheduler;

status scheduler_open(struct scheduler **out, const struct scheduler_config *config);
/* Requests that are still there get no call any more, but are looked at: fail them first. */
void scheduler_close(struct scheduler *s); /* NULL is fine */

/* The request is borrowed until sink.ended().  A refusal makes no call: UNAVAILABLE (no ready
 * group), OUT_OF_RANGE, EXHAUSTED (queue full, *retry is true; can never fit, *retry false). */
status scheduler_submit(struct scheduler *s, const struct request *request, void *user, double now,
                        bool *retry);

/* Ends a request by its handle; false: unknown.  Without a failure its samples end with
 * FINISH_ABORTED. */
bool scheduler_cancel(struct scheduler *s, uint64_t handle, const struct failure *failure,
                      double now);
/* Fails every request; returns how many there were. */
uint32_t scheduler_fail_all(struct scheduler *s, const struct failure *failure);

/* The group was not ready before.  INVALID: its numbers make no sense. */
status scheduler_group_ready(struct scheduler *s, uint32_t index,
                             const struct group_capacity *capacity, double now);
/* A ready group gets no more jobs; `cause` says why, to who waits for one in vain.  What runs there
 * goes on. */
void scheduler_group_drain(struct scheduler *s, uint32_t index, const struct failure *cause,
                           double now);
/* What runs there runs again elsewhere, or fails if it has a token or ran too often already. */
void scheduler_group_lost(struct scheduler *s, uint32_t index, const struct failure *failure,
                          double now);

/* Result of the oldest plan in flight: rank 0's tokens and milliseconds.  A failure means that
 * the group cannot be trusted: the caller ends it with scheduler_group_lost(). */
status scheduler_result(struct scheduler *s, uint32_t index, const struct step_result *result,
                        double now);

/* The choice of rows is over for the slot's prompt, and each sample of the job can need no more
 * than so many pages of this rank any more, `shared` of which they share: what the worst case had
 * beyond that is free for others.  Called before the result of plan `number` is handed in; a
 * sequence that has ended is ignored.  A failure, more than was promised, means that the group
 * cannot be trusted. */
status scheduler_keep_pages(struct scheduler *s, uint32_t index, uint32_t slot, uint64_t number,
                            int rank, uint64_t pages, uint64_t shared);

/* A rank has no memory for what the slot needs beside its pages: the request that it was computed
 * for in plan `number` ends with the failure, and the group goes on.  Called before that plan's
 * result is handed in; a sequence that has ended is ignored. */
void scheduler_lacks_memory(struct scheduler *s, uint32_t index, uint32_t slot, uint64_t number,
                            const struct failure *failure);

/* Deadlines and reports of progress. */
void scheduler_tick(struct scheduler *s, double now);

/* The next plan to send; its arrays are borrowed until the next call of any function here.
 * Called until it returns false, after every event. */
bool scheduler_next_plan(struct scheduler *s, uint32_t *index, struct plan *plan);

/* Which sample a slot of plan `number` was computed for; NULL: one that has ended. */
void *scheduler_find(const struct scheduler *s, uint32_t index, uint32_t slot, uint64_t number,
                     uint32_t *sample);

struct scheduler_counts {
    uint32_t queued, running;
    uint64_t queued_tokens;
    uint32_t ready_groups;
};

struct scheduler_counts scheduler_counts(const struct scheduler *s);
uint32_t scheduler_group_running(const struct scheduler *s, uint32_t index);
/* Nothing runs there any more, but the plan that gives the memory back is not answered yet. */
bool scheduler_group_clearing(const struct scheduler *s, uint32_t index);
/* Share of the pages that running requests may come to need, on the rank with least left: 0..1. */
double scheduler_promised(const struct scheduler *s, uint32_t index);
uint32_t scheduler_pages_free(const struct scheduler *s, uint32_t index, int rank);

#endif
