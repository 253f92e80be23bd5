/*
 * chat.h - a conversation becomes the text that its model was trained on.
 *
 * A model directory brings a template in the Jinja language.  It is not executed: it is
 * recognised, by a fingerprint of what it says, and the same text is put together here in C.
 * A template that is not known is refused, never guessed.  Immutable once loaded.
 */
#ifndef COORDINATOR_TOKENIZER_CHAT_H
#define COORDINATOR_TOKENIZER_CHAT_H

#include "common/status.h"

#include <stddef.h>
#include <stdint.h>

enum chat_limits {
    CHAT_MAX_CONFIG = 16 << 20,   /* bytes of tokenizer_config.json */
    CHAT_MAX_TEMPLATE = 1 << 20,  /* bytes of a template */
    CHAT_MAX_RENDERED = 64 << 20, /* bytes of a rendered conversation */
};

struct chat;

/* Valid UTF-8 without NUL; borrowed. */
struct chat_message {
    const char *role, *content;
    size_t role_bytes, content_bytes;
};

/* From chat_template.jinja of the directory, if it is there, else from chat_template in
 * tokenizer_config.json.  What is missing, broken or unknown is no failure here: chat_render()
 * tells it to whoever asks. */
status chat_load(struct chat **out, const char *model_dir);

/* The same from texts; either may be NULL. */
status chat_parse(struct chat **out, const char *config, size_t config_bytes, const char *jinja,
                  size_t jinja_bytes);
/* The same for a template whose text is not at hand. */
status chat_open(struct chat **out, uint64_t fingerprint, const char *bos, const char *eos);
void chat_free(struct chat *chat); /* NULL is fine */

/* The family of templates, or NULL when none can be used; then chat_refusal() says why. */
const char *chat_name(const struct chat *chat);
const char *chat_refusal(const struct chat *chat);

/* The text up to where the assistant speaks next, with every special token that it needs.
 * *out is malloc'd, not NUL-terminated.  Roles that the template refuses are STATUS_INVALID. */
status chat_render(const struct chat *chat, const struct chat_message *messages, size_t n,
                   char **out, size_t *out_bytes);

#endif
