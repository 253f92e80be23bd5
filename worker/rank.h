/*
 * rank.h - one rank's life: join a group, execute its plans, leave, join the next.
 *
 * Owns device, model, collectives and engine.  Weights outlive an epoch and are read again only
 * when the rank's share of the model or the dtype changes.
 */
#ifndef WORKER_RANK_H
#define WORKER_RANK_H

#include "worker/config.h"
#include "worker/link.h"
#include "worker/vitals.h"

/* Returns when the link is stopped (STATUS_OK), or when this worker can never serve. */
status rank_run(struct link *link, const struct worker_config *config, struct vitals *vitals);

#endif
