/* input.h - what the user gives: documents, prompts, token ids. */
#ifndef CLI_INPUT_H
#define CLI_INPUT_H

#include "common/status.h"

#include <stdint.h>

enum input_limits {
    INPUT_MAX_BYTES = 128 << 20, /* of a document with its prompt */
    INPUT_MAX_IDS = 16 << 20,
};

struct input_text {
    char *data; /* malloc'd; valid UTF-8 without NUL, and a NUL behind it */
    size_t bytes;
};

struct input_ids {
    uint32_t *ids; /* malloc'd */
    size_t n;
};

/* The whole of a file or pipe, "-" for stdin. */
status input_read(struct input_text *out, const char *path);

/* Document, blank line, prompt; either may be NULL, not both.  `path` as above. */
status input_prompt(struct input_text *out, const char *path, const char *prompt);

/* Whole numbers with spaces, newlines, commas or brackets between them. */
status input_ids_parse(struct input_ids *out, const char *what, const char *text);
status input_ids_read(struct input_ids *out, const char *path);

#endif
