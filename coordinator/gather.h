/*
 * gather.h - the results of a plan, until every rank of the group has sent its own.
 *
 * Ranks run at their own pace, so a few plans may be incomplete at a time; they complete in
 * order.
 */
#ifndef COORDINATOR_GATHER_H
#define COORDINATOR_GATHER_H

#include "common/plan.h"

enum { GATHER_MAX_PLANS = 8 }; /* incomplete at a time */

struct gather;

status gather_create(struct gather **out, int ranks);
void gather_destroy(struct gather *gather); /* NULL is fine */
/* A new epoch: the next plan is number 1. */
void gather_reset(struct gather *gather);

/* Takes what the result owns, also when it fails: INTERNAL, the rank answers no open plan. */
status gather_add_take(struct gather *gather, int rank, struct step_result *result);
/* The oldest plan's results by rank, when all are there; else NULL. */
const struct step_result *gather_complete(const struct gather *gather);
void gather_pop(struct gather *gather);

#endif
