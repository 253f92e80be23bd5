/* serve_options.h - the options of winnow bench serve, named as those of `vllm bench serve`. */
#ifndef CLI_BENCH_SERVE_OPTIONS_H
#define CLI_BENCH_SERVE_OPTIONS_H

#include "cli/bench/arrival.h"
#include "cli/bench/dataset.h"
#include "cli/bench/metrics.h"
#include "cli/bench/result.h"
#include "cli/service.h"
#include "common/options.h"

enum serve_limits {
    SERVE_MAX_PAIRS = 64, /* words of --goodput and --metadata */
    SERVE_MAX_WARMUPS = 1 << 16,
};

struct serve_options {
    struct service_access access;
    struct dataset_config dataset; /* what the server knows is filled in later */
    struct arrival arrival;
    bool open_loop;          /* a rate, a ramp or a trace decides when requests are sent */
    int64_t max_concurrency; /* 0: no limit */
    int64_t n_warmups, n_connections;
    double temperature, deadline_s;
    double ready_s; /* how long to wait for a server that starts */
    bool ignore_eos;
    struct compression_options compression;
    struct metrics_options metrics;
    struct result_options result;
};

/* A failure is wrong usage. */
status serve_options_parse(struct serve_options *out, int argc, char **argv,
                           enum options_outcome *outcome);

#endif
