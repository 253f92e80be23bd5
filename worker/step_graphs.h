/*
 * step_graphs.h - decode steps of a GPU that were recorded once and are launched as a whole.
 *
 * There is a graph for each number of rows of a short list, for caches by KV head, by query head
 * and some numbers of both, and for each variant of the step; one of fewer rows is filled up.  The
 * first step of its size runs as it is, so that all its kernels are loaded; the second one is
 * recorded, and if a rank has no memory for that graph the steps of this size go on as they are.
 * Every rank does the same at the same step.
 */
#ifndef WORKER_STEP_GRAPHS_H
#define WORKER_STEP_GRAPHS_H

#include "worker/member.h"

struct step_graphs;

/* *out is NULL where steps cannot be recorded: on the host, or with collectives that pass it. */
status step_graphs_create(struct step_graphs **out, struct member *member);
void step_graphs_destroy(struct step_graphs *graphs); /* NULL is fine */

/* By what a row has a cache for. */
enum { STEP_BY_KV_HEAD, STEP_BY_QUERY_HEAD, STEP_KINDS };

/* The rows of the step that is recorded for so many of each kind, SCRATCH_DECODE_ROWS at most;
 * false: none is, there are too many of both. */
bool step_graphs_fill(const int live[STEP_KINDS], int rows[STEP_KINDS]);

/* What a step does for some of its rows, and so for all: rows that leave the caches are chosen;
 * sinks have queries of their own.  Sums of these. */
enum { STEP_EVICTS = 1, STEP_HAS_SINKS = 2, STEP_VARIANTS = 4 };

/* Runs the step that `enqueue` enqueues; it must depend on the others alone. */
struct step_work {
    status (*enqueue)(const void *context);
    const void *context;
    int rows[STEP_KINDS]; /* of step_graphs_fill() */
    int variant;
};
status step_graphs_run(struct step_graphs *graphs, const struct step_work *work);

#endif
