/*
 * health.h - grpc.health.v1: what load balancers and orchestrators ask.
 *
 * "", "readiness" and "winnow.v1.Inference" serve while the program says that it is ready;
 * "liveness" while it makes progress.  A Watch gets the state at once and then every change, in
 * order.  One health may be served on several ports.
 */
#ifndef COMMON_HEALTH_H
#define COMMON_HEALTH_H

#include "common/rpc.h"

enum health_limits {
    HEALTH_MAX_REQUEST = 4096,  /* bytes */
    HEALTH_MAX_WATCHERS = 1024, /* more are refused */
    HEALTH_LAST_WORDS_MS = 500, /* for a Watch to hear the end on the port of its own */
    HEALTH_LOOK_MS = 500,       /* between two looks at liveness */
};

enum { HEALTH_HANDLERS = 2 };

struct health;

status health_open(struct health **out);
/* Every service stops serving and every Watch ends: the server is about to stop. */
void health_stop(struct health *health);
void health_close(struct health *health); /* after the server has stopped; NULL is fine */

/* Any thread, at any time; `context` is the health. */
void health_set_ready(bool ready, void *context);
/* Not ready from now on, whatever is set: the program means to stop, but answers still. */
void health_leave(struct health *health);

bool health_is_ready(struct health *health);
bool health_is_alive(struct health *health); /* as it was looked at last */

/* `is_alive` is looked at from now on until health_stop(). */
status health_watch_liveness(struct health *health, bool (*is_alive)(const void *context),
                             const void *context);

/* A plaintext port of its own, for probes that know neither certificates nor tokens. `listen` is
 * HOST:PORT, port 0 picks one; the port is logged. */
struct health_port;

status health_serve(struct health_port **out, struct health *health, const char *listen);
void health_port_close(struct health_port *port); /* after health_stop(); NULL is fine */

/* Fills HEALTH_HANDLERS handlers. */
void health_handlers(struct health *health, struct rpc_handler *out);

#endif
