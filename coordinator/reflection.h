/*
 * reflection.h - grpc.reflection.v1 and v1alpha: clients ask what this server offers.
 *
 * The two versions are the same on the wire.  Answers come from the descriptors that the build
 * embeds, a file together with all it imports.
 */
#ifndef COORDINATOR_REFLECTION_H
#define COORDINATOR_REFLECTION_H

#include "common/rpc.h"

enum reflection_limits {
    REFLECTION_MAX_REQUEST = 4096,   /* bytes */
    REFLECTION_MAX_UNSENT = 4 << 20, /* bytes of replies that a client leaves unread */
};

enum { REFLECTION_HANDLERS = 2 };

struct reflection;

status reflection_open(struct reflection **out);
void reflection_close(struct reflection *reflection); /* NULL is fine */

/* Fills REFLECTION_HANDLERS handlers. */
void reflection_handlers(struct reflection *reflection, struct rpc_handler *out);

/* The reply to one request; *out is malloc'd.  STATUS_INVALID: not a request. */
status reflection_answer(const struct reflection *reflection, const uint8_t *data, size_t bytes,
                         uint8_t **out, size_t *out_bytes);

#endif
