/*
 * frontend_request.h - the bytes of a GenerateRequest become a checked struct request.
 *
 * Every rule of the public contract about what a request may say is enforced here, before
 * anything else sees it; what a server cannot know from the request alone (a full queue, a
 * request_id that is alive) is left to the core.  Sentences name field, value and limit.
 */
#ifndef COORDINATOR_FRONTEND_REQUEST_H
#define COORDINATOR_FRONTEND_REQUEST_H

#include "coordinator/profiles.h"
#include "coordinator/request.h"
#include "coordinator/stop.h"
#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "winnow/v1/inference.pb-c.h"

#include <protobuf-c/protobuf-c.h>

enum frontend_request_limits {
    FRONTEND_MAX_TEMPERATURE = 100,
    FRONTEND_MAX_CHAT = 4096, /* messages */
};

/* What requests are checked against; borrowed. */
struct frontend_rules {
    const struct model_config *model;
    const struct tokenizer *tokenizer; /* NULL: only `tokens` prompts are served */
    const struct chat *chat;           /* NULL: chats are refused */
    uint32_t max_context;              /* prompt + generated; at most the model's */
    enum method default_method;
    bool enable_trace;
    const struct profiles *profiles; /* NULL: none */
    struct token_ids special_ids;    /* what FASTGEN keeps by default; below the vocabulary size */
    struct token_ids punct_ids;
};

/* The lists of ids that are unset in the message, which may be NULL; borrowed from the rules. */
void frontend_request_token_classes(struct method_params *params,
                                    const struct frontend_rules *rules,
                                    const Winnow__V1__FastGen *message);

/* *out is complete but for handle, deadline_ms, arrived_ms, sink and context.  After a refusal it
 * holds what was read until then.  It is the caller's to free either way; NULL: no memory. */
status frontend_request_decode(const struct frontend_rules *rules, const uint8_t *data,
                               size_t bytes, struct request **out, struct stop_set *stops);

/* Valid UTF-8 without NUL, or STATUS_INVALID naming the field. */
status frontend_request_text(const ProtobufCBinaryData *text, const char *field);

/* A request_id, also that of Control.Abort: at most 128 printable ASCII bytes. */
status frontend_request_id(const ProtobufCBinaryData *id);

/* Every id below the vocabulary size, or STATUS_INVALID naming the field. */
status frontend_request_ids(const struct frontend_rules *rules, const uint32_t *ids, size_t n,
                            const char *field);

/* STATUS_INVALID when the model has no tokenizer. */
status frontend_request_needs_text(const struct frontend_rules *rules, const char *field);

#endif
