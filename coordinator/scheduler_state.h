/*
 * scheduler_state.h - what scheduler.c (queue, admission, time), scheduler_job.c (a job's worst
 * case and ends), scheduler_group.c (room in the groups) and scheduler_plan.c (plans out, results
 * in) share; nobody else includes it.
 *
 * A job is one request, a sequence one of its samples.  A job waits in `queue`, then belongs to
 * one group, which keeps pages and slots for all its samples.  A slot whose sequence ended is
 * free at once, because the next plan releases it before it begins anything.
 */
#ifndef COORDINATOR_SCHEDULER_STATE_H
#define COORDINATOR_SCHEDULER_STATE_H

#include "common/slices.h"
#include "common/split.h"
#include "coordinator/heap.h"
#include "coordinator/list.h"
#include "coordinator/scheduler.h"
#include "coordinator/table.h"

struct job;

struct sequence {
    struct job *job;
    struct link decode; /* in group.decode while tokens remain to be planned */
    uint32_t sample;
    uint32_t slot;
    uint32_t planned, got; /* tokens */
    uint64_t begin_plan;   /* 0: not begun, so nothing to release */
    bool ended;
    double first_token_ms; /* time; 0: none yet */
    double collective_ms;
    double scoring_ms;
    double beside_ms; /* decode steps in the plans of its slices */
};

/* Pages of a rank that a job may need: its samples' prompt, and each sample beyond that. */
struct page_need {
    uint64_t shared; /* as long as one sample lives */
    uint64_t own;    /* of each */
};

struct job {
    const struct request *request;
    void *user;
    struct link link;    /* in scheduler.queue or group.jobs */
    struct link prefill; /* in scheduler.prefilling from admission to the first token */
    struct table_node by_handle;
    struct heap_node by_deadline;
    struct group *group;          /* NULL: it waits */
    struct page_need worst;       /* of one cache head, all layers */
    struct page_need *rank_worst; /* [ranks] where heads differ; NULL: all are alike */
    struct page_need *kept; /* [ranks] since the prompt's rows are chosen; NULL: the worst case */
    bool per_query_head;    /* cache heads are query heads */
    double work;            /* of one sample's prefill */
    double submitted_ms, admitted_ms, reported_ms;
    double place;          /* in the queue: smaller ones are before it */
    uint64_t fits_checked; /* scheduler.generation at which it last fitted somewhere */
    struct request_progress progress;
    uint32_t n_live; /* samples that have not ended */
    uint32_t reruns; /* groups that were lost with it */
    struct sequence sequences[];
};

/* A job whose prefill is not wholly planned, and its part of the group's prompt
 * memory. */
struct prompt {
    struct job *job;    /* NULL: free */
    uint32_t first_row; /* of n_prompt */
    uint64_t number;    /* in the order of admission */
    struct slices walk; /* once begun */
    double walked;      /* work of the slices taken from walk */
};

/* A prompt that a plan reads on. */
struct reading {
    struct sequence *sequence; /* NULL: ended since */
    double work;               /* of its slices */
    double work_done;          /* of the whole prefill, once they are done */
    uint32_t layer, tokens_done;
};

/* A plan whose result is not back. */
struct flight {
    struct reading readings[PLAN_MAX_PROMPTS];
    uint32_t n_readings;
    double work;       /* of all slices */
    uint32_t n_tokens; /* that the result must have */
    bool decodes;
    bool fewer; /* tokens: a sequence of it was given up */
};

/* What is measured again and again. */
struct estimate {
    double mean; /* 0: never measured */
    double deviation;
};

struct group {
    uint32_t index;
    bool ready;
    bool draining; /* it is ready, but gets no more jobs */
    bool listed;   /* in scheduler.dirty */
    struct link dirty;
    struct heap_node open; /* in scheduler.open while ready and with a place for a prompt */
    uint64_t epoch;
    uint64_t number; /* of the next plan */
    uint32_t *pages; /* [ranks], of the pool */
    uint32_t *free;  /* [ranks], not promised to anybody */
    uint64_t page_bytes;
    struct link jobs;
    uint32_t n_jobs;
    struct prompt prompts[PLAN_MAX_PROMPTS];
    uint32_t n_prompts;
    uint64_t n_admitted;
    bool oldest_next; /* the next slices are of the oldest prompt, else of the shortest */
    struct link decode;
    uint32_t n_free_slots, n_release;
    struct flight flights[SCHEDULER_MAX_LOOK_AHEAD]; /* by plan number */
    uint32_t n_flights;
    struct estimate ms_per_work; /* of slices */
    struct estimate decode_ms;   /* of a decode step */
    /* Made when the group is ready for the first time. */
    struct sequence **slots; /* [max_sequences]; NULL: free */
    uint32_t *free_slots;
    uint32_t *release; /* slots for the next plan; at most one entry each */
};

struct scheduler {
    struct scheduler_config config;
    struct split *splits; /* [ranks] */
    struct group *groups; /* [n_groups] */
    uint32_t n_ready;
    struct failure loss; /* of the last group that was ready */
    double lost_ms;      /* when it was lost */
    struct link queue;
    uint32_t n_queued;
    uint64_t queued_tokens;
    uint32_t n_running;
    struct link prefilling;
    struct link dirty; /* groups that may have a plan to send */
    struct table by_handle;
    struct heap by_deadline;
    struct heap open;    /* most free pages first */
    uint64_t best_pages; /* per cache head, of the largest ready group */
    uint64_t generation; /* of the set of ready groups */
    uint32_t page_rows;  /* 0: no group was ready yet */
    double next_report_ms;
    /* Behind the arrays of the plan last given out: */
    struct plan_begin begins[PLAN_MAX_PROMPTS * REQUEST_MAX_SAMPLES];
    struct plan_advance advances[PLAN_MAX_PROMPTS];
    uint32_t decode[PLAN_MAX_DECODE];
    uint32_t release[PLAN_MAX_SLOTS];
};

/* scheduler_job.c */

/* Counted and checked, in no list but by_handle.  NULL: it failed, see *st. */
struct job *job_create(struct scheduler *s, const struct request *request, void *user, double now,
                       status *st);
void job_free(struct job *job);

/* All that a job is before it is admitted, whether for the first time or again. */
void job_reset(const struct scheduler *s, struct job *job);

/* What its samples hold is given back. */
void job_leave_group(struct scheduler *s, struct job *job);

/* The job is told its end and freed.  NULL: it ended well. */
void job_end(struct scheduler *s, struct job *job, const struct failure *failure);

/* Every sample that still runs, or waits, ends with what it has. */
void job_abort(struct scheduler *s, struct job *job, double now);

/* With its last sequence the job ends. */
void sequence_end(struct scheduler *s, struct sequence *sequence, enum finish reason, double now);
void job_report(struct scheduler *s, struct job *job, double now);

/* scheduler.c */
void jobs_lost(struct scheduler *s, struct link *jobs, const struct failure *failure, double now);
uint32_t jobs_fail(struct scheduler *s, struct link *jobs, const struct failure *failure);
void scheduler_settle(struct scheduler *s, double now);

/* scheduler_group.c */
bool group_takes_jobs(const struct group *group);
void group_changed(struct scheduler *s, struct group *group);
struct group *group_for_job(struct scheduler *s, const struct job *job);
struct group *group_to_pass(struct scheduler *s, const struct job *job, const struct job *head);
void group_add_prompt(const struct scheduler *s, struct group *group, struct job *job, bool passes);
void group_drop_prompt(struct group *group, const struct job *job);
void group_take_pages(struct scheduler *s, struct group *group, const struct job *job);
void group_give_pages(struct scheduler *s, struct sequence *sequence);
status group_keep_pages(const struct scheduler *s, struct job *job, int rank,
                        const struct page_need *need);
bool job_can_ever_fit(struct scheduler *s, struct job *job);
status job_never_fits(const struct scheduler *s, const struct job *job);

#endif
