/*
 * envelope.h - WorkerMessage and CoordinatorMessage without unpacking what is inside.
 *
 * Both are a oneof of messages: one tag, one length, then the packed inner message.  Plans and
 * results are large and have their own codec (plan.h), so the envelope is opened by hand: the
 * payload is borrowed, and each side unpacks only what it was sent.
 */
#ifndef COMMON_ENVELOPE_H
#define COMMON_ENVELOPE_H

#include "common/status.h"

#include <stdint.h>

/* Fields of WorkerMessage and CoordinatorMessage in worker.proto. */
enum worker_field {
    WORKER_HELLO = 1,
    WORKER_READY = 2,
    WORKER_STORE = 3,
    WORKER_RESULT = 4,
    WORKER_BEAT = 5,
    WORKER_FAULT = 6,
    WORKER_BYE = 7,
    WORKER_DRAIN = 8,
};
enum coordinator_field {
    COORDINATOR_ASSIGN = 1,
    COORDINATOR_STORE = 2,
    COORDINATOR_PLAN = 3,
    COORDINATOR_LEAVE = 4,
};

/* *out is malloc'd, the caller frees it. */
status envelope_wrap(uint8_t **out, size_t *out_bytes, int field, const uint8_t *payload,
                     size_t bytes);

/* *payload points into data.  STATUS_INVALID unless data is exactly one length-delimited field. */
status envelope_open(int *field, const uint8_t **payload, size_t *payload_bytes,
                     const uint8_t *data, size_t bytes);

#endif
