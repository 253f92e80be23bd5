/*
 * generate_options.h - the options of winnow generate, and the request they make.
 *
 * What is not given is not sent: the server's defaults stand.
 */
#ifndef CLI_GENERATE_OPTIONS_H
#define CLI_GENERATE_OPTIONS_H

#include "cli/compression_options.h"
#include "cli/input.h"
#include "cli/service.h"
#include "common/options.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum generate_limits {
    GENERATE_MAX_SAMPLES = 64,
};

/* INT64_MIN and NAN: not given. */
struct generate_options {
    struct service_access access;
    const char *file, *prompt, *tokens_file;
    bool special;       /* add_special_tokens */
    bool chat;          /* the prompt is what a user says */
    const char *system; /* what a chat begins with; NULL: nothing */
    const char *request_id;
    int64_t priority;
    double deadline_s;
    bool json, quiet;
    const char *json_file; /* NULL: none */
    int64_t max_tokens, min_tokens, top_k, seed, samples, logprobs;
    double temperature, top_p, min_p;
    double repetition_penalty, frequency_penalty, presence_penalty;
    struct option_list stop, stop_ids;
    bool ignore_eos;
    struct compression_options compression;
};

/* A failure is wrong usage. */
status generate_options_parse(struct generate_options *out, int argc, char **argv,
                              enum options_outcome *outcome);

/* The packed GenerateRequest; *bytes is malloc'd. */
status generate_options_pack(const struct generate_options *options, uint8_t **data, size_t *bytes);

#endif
