/*
 * health.h - grpc.health.v1: what load balancers and orchestrators ask.
 *
 * "", "readiness" and "winnow.v1.Inference" serve while a worker group is ready and nothing is
 * being drained; "liveness" while the service thread makes progress.  A Watch gets the state at
 * once and then every change, in order.
 */
#ifndef COORDINATOR_HEALTH_H
#define COORDINATOR_HEALTH_H

#include "common/rpc.h"

enum health_limits {
    HEALTH_MAX_REQUEST = 4096,  /* bytes */
    HEALTH_MAX_WATCHERS = 1024, /* more are refused */
    HEALTH_LOOK_MS = 500,       /* between two looks at liveness */
};

enum { HEALTH_HANDLERS = 2 };

struct health;

status health_open(struct health **out);
/* Every service stops serving and every Watch ends: the server is about to stop. */
void health_stop(struct health *health);
void health_close(struct health *health); /* after the server has stopped; NULL is fine */

/* Any thread, at any time; `context` is the health, as service_config.on_ready hands it back. */
void health_set_ready(bool ready, void *context);

/* `is_alive` is looked at from now on until health_stop(). */
status health_watch_liveness(struct health *health, bool (*is_alive)(const void *context),
                             const void *context);

/* Fills HEALTH_HANDLERS handlers. */
void health_handlers(struct health *health, struct rpc_handler *out);

#endif
