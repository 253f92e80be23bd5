/*
 * frontend_reply.h - what the Inference service answers, packed for the wire.
 *
 * *out is malloc'd, the caller frees it.
 */
#ifndef COORDINATOR_FRONTEND_REPLY_H
#define COORDINATOR_FRONTEND_REPLY_H

#include "coordinator/frontend_request.h"
#include "coordinator/stop.h"

enum { FRONTEND_MAX_REPLY = 256 << 20 }; /* bytes; a larger trace is refused */

struct frontend_packed {
    uint8_t *data;
    size_t bytes;
};

status frontend_reply_progress(struct frontend_packed *out, const struct request_progress *from);

/* A token, which may be NULL, and the text that became whole with it. */
status frontend_reply_token(struct frontend_packed *out, uint32_t sample,
                            const struct result_token *token, const char *text, size_t bytes);

/* `stop` is the stop string that ended the sample, or NULL. */
status frontend_reply_done(struct frontend_packed *out, const struct request_done *from,
                           const struct stop_string *stop);

/* GetModel. */
status frontend_reply_model(struct frontend_packed *out, const struct frontend_rules *rules,
                            enum dtype dtype, int tensor_parallel);

#endif
