/*
 * stop.h - finds stop strings in text that comes in pieces.
 *
 * The first stop string to be complete counts, whatever the pieces; of several that end there
 * the longest.  Text that may still become the beginning of one is held back, so what is
 * released never has to be taken back.
 */
#ifndef COORDINATOR_STOP_H
#define COORDINATOR_STOP_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>

enum stop_limits {
    STOP_MAX_STRINGS = 16,
    STOP_MAX_BYTES = 256, /* of one */
};

struct stop_string {
    unsigned short bytes;
    char text[STOP_MAX_BYTES];
};

/* Shared by the samples of a request. */
struct stop_set {
    int n;
    struct stop_string strings[STOP_MAX_STRINGS];
};

/* The text of one sample. */
struct stop_text {
    char *data; /* held back, then what the last push added */
    size_t bytes, capacity;
    size_t released; /* of data: given out by the last push */
    int found;       /* index of the stop string, or -1 */
};

void stop_text_init(struct stop_text *text);
void stop_text_fini(struct stop_text *text);

/* *out (borrowed until the next call) is what may be released now; text->found tells whether a
 * stop string ends it.  With `watch` false no string may end within this
 * piece; one that begins in it may end in a later one. */
status stop_text_push(struct stop_text *text, const struct stop_set *set, bool watch,
                      const char *piece, size_t bytes, const char **out, size_t *out_bytes);

/* The text has ended: what was held back is released. */
void stop_text_finish(struct stop_text *text, const char **out, size_t *out_bytes);

#endif
