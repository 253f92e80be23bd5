/*
 * chat_fingerprint.h - what a chat template says, as one number.
 *
 * Two templates have the same fingerprint when a Jinja engine would render the same text for
 * conversations without tools: spaces inside tags, the kind of quotes, comments, the wording of
 * exceptions and branches that only tools reach do not count; everything else does.
 */
#ifndef COORDINATOR_TOKENIZER_CHAT_FINGERPRINT_H
#define COORDINATOR_TOKENIZER_CHAT_FINGERPRINT_H

#include "common/status.h"

#include <stddef.h>
#include <stdint.h>

enum chat_fingerprint_limits {
    CHAT_MAX_NESTING = 32, /* blocks in blocks */
};

/* STATUS_INVALID: tags or blocks that do not end. */
status chat_fingerprint(uint64_t *out, const char *text, size_t bytes);

#endif
