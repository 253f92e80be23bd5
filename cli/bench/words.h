/* words.h - lists on the command line: words with commas or blanks between them. */
#ifndef CLI_BENCH_WORDS_H
#define CLI_BENCH_WORDS_H

#include "common/status.h"

#include <stdbool.h>

struct word {
    const char *text; /* borrowed, not terminated */
    size_t bytes;
};

/* Moves *list behind the next word; false: there is none. */
bool words_next(const char **list, struct word *out);
/* STATUS_INVALID: not a number within min..max. */
status word_number(const struct word *word, double min, double max, double *out);

#endif
