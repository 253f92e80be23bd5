/*
 * jobs.h - a few threads that do what completion threads must not: unpack, tokenize, pack.
 *
 * The queue is bounded by number and by bytes; what does not fit is refused at once.
 */
#ifndef COORDINATOR_JOBS_H
#define COORDINATOR_JOBS_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>

enum jobs_limits {
    JOBS_MAX_THREADS = 16,
    JOBS_MAX_WAITING = 1024,
    JOBS_MAX_BYTES = 256 << 20, /* of all that wait */
};

/* Embedded in what is to be done; one run for each jobs_put(). */
struct job {
    struct job *next;
    size_t bytes;
    void (*run)(struct job *job);
};

struct jobs;

status jobs_open(struct jobs **out, int n_threads);
/* False: the queue is full, or stopped; the job is still the caller's. */
bool jobs_put(struct jobs *jobs, struct job *job);
/* Runs what waits, then ends the threads.  Puts fail from now on. */
void jobs_stop(struct jobs *jobs);
void jobs_close(struct jobs *jobs); /* NULL is fine */

#endif
