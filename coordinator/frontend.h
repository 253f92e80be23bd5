/*
 * frontend.h - the Inference service: protobuf outside, struct request inside.
 *
 * A call's bytes go from the completion thread to a pool of threads, which unpack, check and
 * tokenize them; the core's callbacks become messages on the call's stream.  A client that goes
 * away cancels its request; one that does not read is cut off at a limit.
 */
#ifndef COORDINATOR_FRONTEND_H
#define COORDINATOR_FRONTEND_H

#include "common/rpc.h"
#include "coordinator/frontend_request.h"
#include "coordinator/service.h"

enum frontend_limits {
    FRONTEND_MAX_MESSAGE = 32 << 20, /* bytes of a request */
    FRONTEND_MAX_BEHIND = 2 << 20,   /* bytes that a client leaves unread while tokens come */
    FRONTEND_MAX_UNSENT = 64 << 20,  /* with the ends of its samples, beside one reply */
    FRONTEND_THREADS = 4,
    FRONTEND_LATE_MS = 250,  /* a cancel so shortly before the deadline is the deadline */
    FRONTEND_RETRY_MS = 500, /* told to a client that met a full queue of the pool */
};

enum { FRONTEND_HANDLERS = 4 };

struct frontend_config {
    struct frontend_rules rules;
    struct service *service; /* borrowed */
    struct meters *meters;   /* borrowed; NULL: nothing is counted */
    enum dtype dtype;
    int tensor_parallel;
};

struct frontend;

status frontend_open(struct frontend **out, const struct frontend_config *config);

/* After the server has stopped: nothing reaches the service any more when it returns. */
void frontend_stop(struct frontend *frontend);
/* After service_close().  NULL is fine. */
void frontend_close(struct frontend *frontend);

/* Fills FRONTEND_HANDLERS handlers. */
void frontend_handlers(struct frontend *frontend, struct rpc_handler *out);

#endif
