/*
 * sweep.h - methods x lengths, one request at a time: the protocols by which FastKV and the
 * methods it is compared with were published.
 *
 * prefill measures the time to the first token, e2e a whole answer, throughput the decoding alone.
 */
#ifndef CLI_BENCH_SWEEP_H
#define CLI_BENCH_SWEEP_H

#include "cli/bench/result.h"
#include "cli/bench/stats.h"
#include "cli/service.h"
#include "common/method.h"

enum sweep_kind { SWEEP_PREFILL, SWEEP_E2E, SWEEP_THROUGHPUT };

enum sweep_limits {
    SWEEP_MAX_LENGTHS = 64,
    SWEEP_MAX_LENGTH = 16 << 20, /* tokens of a prompt */
    SWEEP_MAX_RUNS = 10000,
};

struct sweep_options {
    enum sweep_kind kind;
    struct service_access access;
    enum method methods[METHOD_COUNT];
    int n_methods;
    uint32_t lengths[SWEEP_MAX_LENGTHS];
    int n_lengths;
    int64_t output_len, n_warmups, n_runs, token_id;
    bool drop_extremes; /* the smallest and the largest of the runs */
    double deadline_s;
    double ready_s; /* how long to wait for a server that starts */
    struct compression_options compression;
    struct result_options result;
};

const char *sweep_name(enum sweep_kind kind); /* "prefill" */
/* out->kind is set.  A failure is wrong usage. */
status sweep_options_parse(struct sweep_options *out, int argc, char **argv,
                           enum options_outcome *outcome);

/* What is measured of every run. */
enum sweep_measure {
    SWEEP_TTFT,       /* ms until the first token, here */
    SWEEP_E2EL,       /* ms until the answer is whole, here */
    SWEEP_PREFILL_MS, /* as the server says */
    SWEEP_DECODE_MS,
    SWEEP_COLLECTIVE_MS,
    SWEEP_RATE, /* tokens a second: e2e over the whole time, throughput over decoding */
    SWEEP_MEASURES,
};

/* One method at one length. */
struct sweep_case {
    enum method method;
    uint32_t input_len;
    struct series measures[SWEEP_MEASURES];
    double kept_ratio, propagated_ratio, kv_bytes, kv_bytes_full; /* of the last run */
    double memory_peak_bytes; /* of the largest worker, up to the last run */
    struct failure failure;   /* code 0: none */
};

/* "ttft_ms": what mean_, median_, std_ and ci95_ stand before. */
const char *sweep_measure_name(enum sweep_measure measure);
/* False: no memory. */
bool sweep_case_add_json(cJSON *list, const struct sweep_case *one,
                         const struct sweep_options *options);
void sweep_print(const struct sweep_case *cases, int n, const struct sweep_options *options);

#endif
