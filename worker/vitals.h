/*
 * vitals.h - what a worker shows of itself: grpc.health.v1, and HTTP with metrics and probes.
 *
 * "liveness" serves while the engine is idle or gets on: a plan that takes longer than the limit
 * is a rank that hangs.  "readiness", "" and winnow.v1.Inference serve while this rank is part of
 * a group whose ranks have all joined, with its weights loaded and warmed up.
 */
#ifndef WORKER_VITALS_H
#define WORKER_VITALS_H

#include "common/plan.h"

#include <stdbool.h>

enum vitals_limits { VITALS_STALL_MS = 60000 }; /* of one plan */

struct vitals_config {
    const char *http;          /* HOST:PORT; "": not served */
    const char *health_listen; /* likewise */
    const char *model_name;
};

struct vitals;

status vitals_open(struct vitals **out, const struct vitals_config *config);
void vitals_close(struct vitals *vitals); /* NULL is fine */

/* The engine thread's.  In a group, at its rank, or in none. */
void vitals_ready(struct vitals *vitals, uint32_t group, uint32_t rank, uint64_t kv_bytes_total);
void vitals_not_ready(struct vitals *vitals);
/* Around every plan; `result` NULL: it failed. */
void vitals_begin_step(struct vitals *vitals, double now);
void vitals_end_step(struct vitals *vitals, const struct step_result *result);

/* No progress is expected, or there was some within `limit_ms`. */
bool vitals_is_alive(const struct vitals *vitals, double now, double limit_ms);

#endif
