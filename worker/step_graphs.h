/*
 * step_graphs.h - decode steps of a GPU that were recorded once and are launched as a whole.
 *
 * There is a graph for each number of rows of a short list, for caches by KV head and by query
 * head, and with or without choosing what leaves these; a step of fewer rows is filled up.  The
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

/* The rows of the step that is recorded for n; n <= SCRATCH_DECODE_ROWS. */
int step_graphs_rows(int n);

/* Runs the step that `enqueue` enqueues; it must depend on the others alone. */
struct step_work {
    status (*enqueue)(const void *context);
    const void *context;
    int rows; /* of step_graphs_rows() */
    bool by_query, evicts;
};
status step_graphs_run(struct step_graphs *graphs, const struct step_work *work);

#endif
