/*
 * html.h - a page that grows piece by piece.
 *
 * The first failure sticks: later pieces do nothing, and html_finish() tells it.  Text from files
 * goes through html_text(), which escapes it; formats are our own words.
 */
#ifndef CLI_BENCH_HTML_H
#define CLI_BENCH_HTML_H

#include "common/status.h"

#include <stdbool.h>

enum { HTML_MAX_BYTES = 64 << 20 };

struct html {
    char *data; /* malloc'd, NUL-terminated */
    size_t bytes, capacity;
    bool failed; /* out of memory, or too long */
};

void html_add(struct html *html, const char *format, ...) __attribute__((format(printf, 2, 3)));
void html_text(struct html *html, const char *text);
/* STATUS_EXHAUSTED when a piece is missing. */
status html_finish(const struct html *html);
void html_free(struct html *html);

#endif
