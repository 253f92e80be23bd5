/*
 * warmup.h - one small request through the whole engine, before a rank says that it is ready.
 *
 * All ranks of the group run it in step: pages of memory are touched, kernels chosen, threads
 * started and every kind of collective tried, so that the first client does not pay for it and a
 * group that cannot compute never becomes ready.  Nothing of it stays.
 */
#ifndef WORKER_WARMUP_H
#define WORKER_WARMUP_H

#include "worker/engine.h"

enum { WARMUP_PROMPT = 64 }; /* tokens; fewer where the context or the pool is smaller */

status warmup_run(struct engine *engine, const struct model *model, int max_context,
                  uint64_t epoch);

#endif
