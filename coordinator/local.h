/*
 * local.h - --local-workers: children of this process that run winnow-worker.
 *
 * A child that dies is started again, at first at once and then with backoff.  Children die
 * with the thread that started them (PR_SET_PDEATHSIG, asked for by the worker itself), so one
 * thread, which lives as long as the process serves, calls everything here.
 */
#ifndef COORDINATOR_LOCAL_H
#define COORDINATOR_LOCAL_H

#include "coordinator/service.h"

enum local_limits {
    LOCAL_MIN_BACKOFF_MS = 100,
    LOCAL_MAX_BACKOFF_MS = 5000,
    LOCAL_SETTLED_MS = 10000, /* a child that lived so long starts from the minimum */
    LOCAL_GRACE_MS = 2000,    /* from SIGTERM to SIGKILL at the end */
    LOCAL_EXIT_MS = 50,       /* from the end of a child's connections to its own */
};

struct local;

/* `coordinator` is HOST:PORT of the worker plane; all is copied.  Nothing is started yet. */
status local_open(struct local **out, const struct service_local *config, const char *coordinator);
/* Starts, collects the dead, starts again. */
void local_tick(struct local *local, double now);
/* Why this child, whose stream ended, is dead, as the end of a sentence: "was killed by signal 9".
 * False: it is not one of these children, or it lives.  Waits LOCAL_EXIT_MS for it. */
bool local_cause(struct local *local, int64_t pid, char *out, size_t out_size, double now);
/* Ends this child, which says nothing any more: it may be stopped.  It is then started again. */
void local_kill(const struct local *local, int64_t pid);
/* A child ended itself with a failure: *child is its number.  Then nothing can mend it. */
bool local_gave_up(const struct local *local, int *child);
/* Ends all children and waits for them.  NULL is fine. */
void local_close(struct local *local);

#endif
