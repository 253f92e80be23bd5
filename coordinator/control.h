/*
 * control.h - the Control service: what operators ask and tell.
 *
 * Its messages are tiny, so they are unpacked where they arrive; answers that need the core's
 * state are packed on the service thread.
 */
#ifndef COORDINATOR_CONTROL_H
#define COORDINATOR_CONTROL_H

#include "common/rpc.h"
#include "coordinator/frontend_reply.h"
#include "coordinator/service.h"

enum control_limits {
    CONTROL_MAX_REQUEST = 4096,  /* bytes */
    CONTROL_MAX_DRAIN_S = 86400, /* of Drain.timeout_s */
};

enum { CONTROL_HANDLERS = 3 };

/* Fills CONTROL_HANDLERS handlers; the service is borrowed. */
void control_handlers(struct service *service, struct rpc_handler *out);

/* A Status message; out->data is malloc'd. */
status control_pack_status(struct frontend_packed *out, const struct service_status *from);

#endif
