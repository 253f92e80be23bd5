/*
 * progress.h - how far the server is, on stderr.
 *
 * On a terminal one line that is drawn over and over; otherwise plain lines, not more than one
 * a second.  Time is an argument.
 */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include "winnow/v1/inference.pb-c.h"

#include <stdbool.h>
#include <stddef.h>

struct progress {
    bool quiet;
    bool terminal;
    bool drawn;         /* a line stands on the terminal */
    double last_line_s; /* plain lines: when the last one was written; < 0: none yet */
    double prefill_s;   /* when the first report of the prompt phase came; < 0: not yet */
    float prefill_from; /* and how far it was */
};

void progress_init(struct progress *progress, bool quiet, bool terminal);
void progress_update(struct progress *progress, const Winnow__V1__Progress *report, double now_s);
void progress_clear(struct progress *progress); /* the line makes room for other output */

/* One line without its end, at most `columns` wide. */
void progress_format(const struct progress *progress, const Winnow__V1__Progress *report,
                     double now_s, int columns, char *out, size_t out_size);

#endif
