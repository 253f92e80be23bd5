/*
 * options.h - one table for the command line, WINNOW_* environment variables and a file.
 *
 * Precedence: command line, environment, file, default.  "--kv-memory 2G" is
 * WINNOW_KV_MEMORY=2G and "kv-memory = 2G" in the file ('#' starts a comment).
 * Unknown options are an error in all but the environment.
 */
#ifndef COMMON_OPTIONS_H
#define COMMON_OPTIONS_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum option_type {
    OPTION_STRING, /* const char ** */
    OPTION_INT,    /* int64_t *, checked against min and max */
    OPTION_BYTES,  /* int64_t *, suffixes K, M, G; likewise */
    OPTION_DOUBLE, /* double *, likewise */
    OPTION_FLAG,   /* bool *; "--name" or "--name=false" */
    OPTION_LIST,   /* struct option_list *: may be given again and again */
};

enum { OPTION_LIST_MAX = 16 };

struct option_list {
    const char *values[OPTION_LIST_MAX];
    int n;
};

struct option {
    const char *name; /* without dashes */
    enum option_type type;
    void *value;          /* holds the default before, the result after */
    const char *argument; /* "DIR", for --help; NULL for flags */
    const char *help;
    double min, max; /* numbers only; a default outside stands for "not given" */
};

struct options {
    const char *program;
    const char *synopsis; /* one line of --help */
    const char *epilog;   /* limits and exit status, for --help; may be NULL */
    const struct option *table;
    int n;
    const char **positional; /* filled with what is no option; NULL: none are allowed */
    int max_positional;
    int n_positional;
};

enum options_outcome { OPTIONS_RUN, OPTIONS_HELP, OPTIONS_VERSION };

/* --help prints to stdout, --version likewise, and the caller exits 0; a failure is wrong
 * usage: the caller prints status_text() and exits 2.  --config FILE is understood when the
 * table has "config". Strings live as long as the process. */
status options_parse(struct options *options, int argc, char **argv, enum options_outcome *outcome);

#endif
