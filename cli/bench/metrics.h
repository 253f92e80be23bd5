/*
 * metrics.h - the records of a run as the figures that people compare: vLLM's, under vLLM's names,
 * and where a request's time and memory went in the service.
 */
#ifndef CLI_BENCH_METRICS_H
#define CLI_BENCH_METRICS_H

#include "cli/bench/load.h"
#include "cli/bench/stats.h"

#include <cjson/cJSON.h>

enum metric {
    METRIC_TTFT,                  /* time to first token */
    METRIC_TPOT,                  /* time per output token after the first */
    METRIC_ITL,                   /* inter-token latency: between two messages that bring tokens */
    METRIC_E2EL,                  /* end-to-end latency */
    METRIC_CHOICE,                /* those before can be left out */
    METRIC_QUEUE = METRIC_CHOICE, /* as the server says, from here on */
    METRIC_TOKENIZE,
    METRIC_PREFILL,
    METRIC_COLLECTIVE,
    METRIC_DECODE,
    METRIC_CLIENT_QUEUE, /* from when it was due until it was sent */
    METRIC_COUNT,
};

enum { METRICS_MAX_PERCENTILES = 16 };

struct metrics_options {
    bool wanted[METRIC_CHOICE];
    double percentiles[METRICS_MAX_PERCENTILES];
    int n_percentiles;
    double limit_ms[METRIC_CHOICE]; /* goodput: a good request keeps all; 0: no limit */
    bool goodput;
};

struct metrics {
    struct series series[METRIC_COUNT]; /* sorted, ms */
    size_t completed, failed, interrupted, good;
    uint64_t input_tokens, output_tokens;
    double duration_s;
    double max_output_tokens_per_s; /* in the best whole second */
    size_t max_concurrent;
    double cpu_s;
    /* Means over completed requests. */
    double propagated_ratio, kept_ratio, kv_bytes, kv_bytes_full;
};

const char *metric_name(enum metric metric); /* "ttft" */
/* "ttft,tpot": STATUS_INVALID for an unknown word. */
status metrics_parse_names(struct metrics_options *out, const char *words);
status metrics_parse_percentiles(struct metrics_options *out, const char *words);
/* "ttft:200" or several with commas. */
status metrics_parse_goodput(struct metrics_options *out, const char *words);

status metrics_compute(struct metrics *out, const struct load_outcome *outcome,
                       const struct metrics_options *options);
void metrics_free(struct metrics *metrics);

/* False: no memory. */
bool metrics_add_json(cJSON *object, const struct metrics *metrics,
                      const struct metrics_options *options);
/* mean_, median_, std_ and the percentiles of one series. */
bool metrics_add_series(cJSON *object, const char *name, const struct series *series,
                        const struct metrics_options *options);
/* One list a quantity, one entry a request, as --save-detailed of vLLM writes them. */
bool metrics_add_details(cJSON *object, const struct load_outcome *outcome);
void metrics_print(const struct metrics *metrics, const struct metrics_options *options);

#endif
