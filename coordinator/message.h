/*
 * message.h - protobuf messages from outside, within a budget of memory.
 *
 * Two bytes on the wire can become a structure of a hundred.  Unpacking counts what it takes and
 * gives up at a limit that no honest message of that size comes near.
 */
#ifndef COORDINATOR_MESSAGE_H
#define COORDINATOR_MESSAGE_H

#include "common/status.h"

#include <protobuf-c/protobuf-c.h>

enum message_limits {
    MESSAGE_FACTOR = 40,          /* bytes of memory for a byte of message, */
    MESSAGE_ALLOWANCE = 64 << 10, /* and these on top, */
    MESSAGE_MAX = 512 << 20,      /* but never more than these */
};

/* STATUS_INVALID: not such a message.  STATUS_EXHAUSTED: over the budget, or out of memory. */
status message_unpack(ProtobufCMessage **out, const ProtobufCMessageDescriptor *type,
                      const uint8_t *data, size_t bytes);
void message_free(ProtobufCMessage *message); /* NULL is fine */

/* A packed message in malloc'd memory. */
status message_pack(uint8_t **out, size_t *out_bytes, const ProtobufCMessage *message);

#endif
