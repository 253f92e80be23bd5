/*
 * meters.h - what /metrics says about the coordinator: requests, the queue, steps and ranks.
 *
 * Names are those that dashboards for vLLM expect, with the prefix "winnow:"; times are seconds.
 * The front end reports requests and tokens, the core reports steps, the queue and the ranks; each
 * function may be called on any thread, except meters_step(), meters_capacity() and
 * meters_groups(), which are the service thread's.  All accept NULL, and then nothing is counted.
 *
 * Series of a rank exist for groups that there have been, so their number is the deployment's.
 */
#ifndef COORDINATOR_METERS_H
#define COORDINATOR_METERS_H

#include "common/metrics.h"
#include "coordinator/service.h"

struct meters;

struct meters_config {
    const char *model_name;
    int ranks; /* of a group */
    enum dtype dtype;
    uint32_t max_context;
};

status meters_open(struct meters **out, const struct meters_config *config);
void meters_close(struct meters *meters);
struct metrics *meters_metrics(struct meters *meters);

/* A Generate call is over; exactly once for each. */
void meters_outcome(struct meters *meters, status code);
/* The first token of a request's first sample. */
void meters_first_token(struct meters *meters, uint32_t n_prompt, double ttft_ms);
/* One token; since_last_ms < 0: the first of its sample. */
void meters_token(struct meters *meters, double since_last_ms);
/* A sample ended with a Done. */
void meters_sample(struct meters *meters, const struct request *request,
                   const struct request_done *done);

/* A request is computed again, because its group was lost. */
void meters_rerun(struct meters *meters);

struct meters_queue {
    uint32_t queued, running, ready_groups;
    uint64_t queued_tokens;
    bool draining;
};
void meters_queue(struct meters *meters, const struct meters_queue *queue);

/* All ranks of a group answered a plan. */
void meters_step(struct meters *meters, uint32_t index, const struct step_result *ranks);
/* A group became ready: pages of rank 0. */
void meters_capacity(struct meters *meters, uint32_t index, uint32_t pages, uint32_t page_rows);
/* What the groups are now; `promised`: share of a group's pages that is not to be had any more,
 * per group. */
void meters_groups(struct meters *meters, const struct group_status *groups, uint32_t n_groups,
                   const double *promised);

#endif
