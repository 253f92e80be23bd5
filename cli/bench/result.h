/*
 * result.h - the JSON that a run leaves behind: what was run on what, and where it is written.
 *
 * All commands begin alike, so that compare and report can read any of them.
 */
#ifndef CLI_BENCH_RESULT_H
#define CLI_BENCH_RESULT_H

#include "cli/compression_options.h"
#include "winnow/v1/inference.pb-c.h"

#include <cjson/cJSON.h>
#include <stdbool.h>

enum result_limits {
    RESULT_OPTIONS = 7, /* rows of the table */
    RESULT_MAX_METADATA = 32,
    RESULT_MAX_FILE = 1 << 30, /* bytes of one that is read */
};

/* Options that all measuring commands share. */
struct result_options {
    bool save, detailed, json, quiet;
    const char *dir, *filename, *label;
    struct option_list metadata_words;         /* as given */
    const char *metadata[RESULT_MAX_METADATA]; /* "KEY=VALUE" */
    int n_metadata;
};

/* Writes RESULT_OPTIONS rows, which point into `options`. */
void result_options_rows(struct option *rows, struct result_options *options);
/* Of the words of --metadata, or of one more.  A failure is wrong usage. */
status result_options_check(struct result_options *options);
status result_options_add_metadata(struct result_options *options, const char *word);

/* Command, version, date, label, model; the object is malloc'd.  NULL: no memory. */
cJSON *result_create(const char *command, const struct result_options *options,
                     const Winnow__V1__Model *model);
/* The compression parameters that were given. */
bool result_add_compression(cJSON *object, const struct compression_options *compression);
/* The metadata goes last; a key that is taken becomes metadata_KEY. */
bool result_add_metadata(cJSON *object, const struct result_options *options);
/* Prints to stdout, writes a file, or both, as the options say; `stem` names a file without
 * --result-filename. */
status result_deliver(const cJSON *object, const struct result_options *options, const char *stem);

/* Reads one that was written before.  STATUS_INVALID: no result of these commands. */
status result_read(cJSON **out, const char *path);

#endif
