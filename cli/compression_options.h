/*
 * compression_options.h - --method and its parameters, the same in every command that sends
 * prompts.
 *
 * What is not given is not sent: the server's defaults stand.
 */
#ifndef CLI_COMPRESSION_OPTIONS_H
#define CLI_COMPRESSION_OPTIONS_H

#include "common/options.h"
#include "common/status.h"
#include "winnow/v1/inference.pb-c.h"

enum { COMPRESSION_OPTIONS = 12 }; /* rows of the table */

/* INT64_MIN, NAN and NULL: not given. */
struct compression_options {
    const char *method;
    double retain_rate, tsp_rate;
    int64_t capacity, window, kernel, tsp_layer, tsp_len;
    const char *pooling, *granularity, *group_reduce, *reduce_stage;
};

/* A message and what it points to; not to be moved once filled. */
struct compression_message {
    Winnow__V1__Compression compression;
    Winnow__V1__FastKV fastkv;
};

void compression_options_init(struct compression_options *options);
/* Writes COMPRESSION_OPTIONS rows, which point into `options`. */
void compression_options_rows(struct option *rows, struct compression_options *options);
/* A failure is wrong usage. */
status compression_options_check(const struct compression_options *options);
void compression_options_fill(struct compression_message *out,
                              const struct compression_options *options);

#endif
