/* The figures as JSON under vLLM's names, and as a table for people. */
#include "cli/bench/metrics.h"
#include "cli/json_text.h"
#include "cli/print.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool add_number(cJSON *object, const char *statistic, const char *name, double value)
{
    char key[64];

    snprintf(key, sizeof(key), "%s_%s_ms", statistic, name);
    return cJSON_AddNumberToObject(object, key, value) != NULL;
}

bool metrics_add_series(cJSON *object, const char *name, const struct series *series,
                        const struct metrics_options *options)
{
    bool ok = add_number(object, "mean", name, series_mean(series)) &&
              add_number(object, "median", name, series_percentile(series, 50)) &&
              add_number(object, "std", name, series_std(series));

    for (int i = 0; ok && i < options->n_percentiles; i++) {
        char statistic[32];
        snprintf(statistic, sizeof(statistic), "p%g", options->percentiles[i]);
        ok =
            add_number(object, statistic, name, series_percentile(series, options->percentiles[i]));
    }
    return ok;
}

static double per_second(double amount, const struct metrics *m)
{
    return m->duration_s > 0 ? amount / m->duration_s : 0;
}

static double overhead_us(const struct metrics *m, double amount)
{
    return amount > 0 ? m->cpu_s * 1e6 / amount : 0;
}

static bool add_counts(cJSON *o, const struct metrics *m, const struct metrics_options *options)
{
    double tokens = (double)(m->input_tokens + m->output_tokens);

    return cJSON_AddNumberToObject(o, "duration", m->duration_s) &&
           cJSON_AddNumberToObject(o, "completed", (double)m->completed) &&
           cJSON_AddNumberToObject(o, "failed", (double)m->failed) &&
           cJSON_AddNumberToObject(o, "interrupted", (double)m->interrupted) &&
           json_text_add_whole(o, "total_input_tokens", m->input_tokens) &&
           json_text_add_whole(o, "total_output_tokens", m->output_tokens) &&
           cJSON_AddNumberToObject(o, "request_throughput", per_second((double)m->completed, m)) &&
           (options->goodput
                ? cJSON_AddNumberToObject(o, "request_goodput", per_second((double)m->good, m))
                : cJSON_AddNullToObject(o, "request_goodput")) &&
           cJSON_AddNumberToObject(o, "output_throughput",
                                   per_second((double)m->output_tokens, m)) &&
           cJSON_AddNumberToObject(o, "total_token_throughput", per_second(tokens, m)) &&
           cJSON_AddNumberToObject(o, "max_output_tokens_per_s", m->max_output_tokens_per_s) &&
           cJSON_AddNumberToObject(o, "max_concurrent_requests", (double)m->max_concurrent);
}

static bool add_service(cJSON *o, const struct metrics *m)
{
    double tokens = (double)m->output_tokens;
    double requests = (double)m->completed;

    return cJSON_AddNumberToObject(o, "propagated_ratio", m->propagated_ratio) &&
           cJSON_AddNumberToObject(o, "kept_ratio", m->kept_ratio) &&
           cJSON_AddNumberToObject(o, "kv_bytes", m->kv_bytes) &&
           cJSON_AddNumberToObject(o, "kv_bytes_full", m->kv_bytes_full) &&
           cJSON_AddNumberToObject(o, "client_cpu_s", m->cpu_s) &&
           cJSON_AddNumberToObject(o, "client_cpu_us_per_token", overhead_us(m, tokens)) &&
           cJSON_AddNumberToObject(o, "client_cpu_us_per_request", overhead_us(m, requests));
}

bool metrics_add_json(cJSON *object, const struct metrics *metrics,
                      const struct metrics_options *options)
{
    bool ok = add_counts(object, metrics, options) && add_service(object, metrics);

    for (int i = 0; ok && i < METRIC_COUNT; i++) {
        if (i >= METRIC_CHOICE || options->wanted[i]) {
            ok = metrics_add_series(object, metric_name((enum metric)i), &metrics->series[i],
                                    options);
        }
    }
    return ok;
}

/* ---- one entry a request ---- */

static bool add_gaps(cJSON *lists, const struct record *r)
{
    cJSON *gaps = cJSON_CreateArray();
    bool ok = gaps && cJSON_AddItemToArray(lists, gaps);

    for (size_t i = 0; ok && i < r->n_gaps; i++) {
        cJSON *gap = cJSON_CreateNumber((double)r->gaps[i] / 1000);
        ok = gap && cJSON_AddItemToArray(gaps, gap);
    }
    return ok;
}

enum detail {
    INPUT_LENS,
    OUTPUT_LENS,
    TTFTS,
    START_TIMES,
    QUEUE_MS,
    PREFILL_MS,
    DECODE_MS,
    KV_BYTES
};
enum { N_DETAILS = KV_BYTES + 1 };

static double detail_of(const struct record *r, enum detail which)
{
    switch (which) {
    case INPUT_LENS:
        return r->prompt_tokens;
    case OUTPUT_LENS:
        return r->n_tokens;
    case TTFTS:
        return r->n_tokens ? record_ttft_ms(r) / 1000 : 0;
    case START_TIMES:
        return r->sent_ms / 1000;
    case QUEUE_MS:
        return r->queue_ms;
    case PREFILL_MS:
        return r->prefill_ms;
    case DECODE_MS:
        return r->decode_ms;
    case KV_BYTES:
        return (double)r->kv_bytes;
    }
    return 0;
}

static bool add_errors(cJSON *object, const struct load_outcome *outcome)
{
    cJSON *errors = cJSON_AddArrayToObject(object, "errors");
    bool ok = errors != NULL;

    for (size_t i = 0; ok && i < outcome->n; i++) {
        const struct record *r = &outcome->records[i];
        char *raw = r->error ? json_text_quoted(r->error, strlen(r->error)) : NULL;
        cJSON *error = raw ? cJSON_CreateRaw(raw) : cJSON_CreateString("");
        ok = error && cJSON_AddItemToArray(errors, error);
        free(raw);
    }
    return ok;
}

bool metrics_add_details(cJSON *object, const struct load_outcome *outcome)
{
    static const char *const keys[N_DETAILS] = {"input_lens",  "output_lens",  "ttfts",
                                                "start_times", "queue_ms",     "prefill_ms",
                                                "decode_ms",   "kv_bytes_each"};
    bool ok = true;

    for (int k = 0; ok && k < N_DETAILS; k++) {
        cJSON *list = cJSON_AddArrayToObject(object, keys[k]);
        ok = list != NULL;
        for (size_t i = 0; ok && i < outcome->n; i++) {
            cJSON *value = cJSON_CreateNumber(detail_of(&outcome->records[i], (enum detail)k));
            ok = value && cJSON_AddItemToArray(list, value);
        }
    }
    cJSON *itls = ok ? cJSON_AddArrayToObject(object, "itls") : NULL;
    ok = itls != NULL;
    for (size_t i = 0; ok && i < outcome->n; i++) {
        ok = add_gaps(itls, &outcome->records[i]);
    }
    return ok && add_errors(object, outcome);
}

/* ---- the table ---- */

static void print_row(const char *what, double value)
{
    print_out("%-40s %14.2f\n", what, value);
}

static void print_series(enum metric metric, const struct metrics *m,
                         const struct metrics_options *options)
{
    static const char *const titles[METRIC_CHOICE] = {"Time to first token",
                                                      "Time per output token (without the first)",
                                                      "Inter-token latency", "End-to-end latency"};
    static const char *const shorts[METRIC_CHOICE] = {"TTFT", "TPOT", "ITL", "E2EL"};
    const struct series *series = &m->series[metric];
    char what[64];

    print_out("-- %s\n", titles[metric]);
    snprintf(what, sizeof(what), "Mean %s (ms)", shorts[metric]);
    print_row(what, series_mean(series));
    snprintf(what, sizeof(what), "Median %s (ms)", shorts[metric]);
    print_row(what, series_percentile(series, 50));
    for (int i = 0; i < options->n_percentiles; i++) {
        snprintf(what, sizeof(what), "P%g %s (ms)", options->percentiles[i], shorts[metric]);
        print_row(what, series_percentile(series, options->percentiles[i]));
    }
}

static void print_service(const struct metrics *m)
{
    const double mib = 1 << 20;

    print_out("-- Inside the service, means of a request\n");
    for (int i = METRIC_QUEUE; i < METRIC_COUNT; i++) {
        char what[64];
        snprintf(what, sizeof(what), "%s (ms)", metric_name((enum metric)i));
        print_row(i == METRIC_CLIENT_QUEUE ? "waited before it was sent (ms)" : what,
                  series_mean(&m->series[i]));
    }
    print_row("tokens propagated to the last layer (%)", 100 * m->propagated_ratio);
    print_row("KV kept (%)", 100 * m->kept_ratio);
    print_row("KV kept (MiB)", m->kv_bytes / mib);
    print_row("KV of the full context (MiB)", m->kv_bytes_full / mib);
    print_out("-- This program\n");
    print_row("CPU time (s)", m->cpu_s);
    print_row("CPU time of an output token (us)", overhead_us(m, (double)m->output_tokens));
    print_row("CPU time of a request (us)", overhead_us(m, (double)m->completed));
}

void metrics_print(const struct metrics *metrics, const struct metrics_options *options)
{
    const struct metrics *m = metrics;

    print_out("%-40s %14zu\n", "Successful requests", m->completed);
    print_out("%-40s %14zu\n", "Failed requests", m->failed);
    if (m->interrupted) {
        print_out("%-40s %14zu\n", "Interrupted requests", m->interrupted);
    }
    print_row("Duration (s)", m->duration_s);
    print_out("%-40s %14llu\n", "Input tokens", (unsigned long long)m->input_tokens);
    print_out("%-40s %14llu\n", "Output tokens", (unsigned long long)m->output_tokens);
    print_row("Request throughput (1/s)", per_second((double)m->completed, m));
    if (options->goodput) {
        print_row("Request goodput (1/s)", per_second((double)m->good, m));
    }
    print_row("Output throughput (tokens/s)", per_second((double)m->output_tokens, m));
    print_row("Output throughput, best second", m->max_output_tokens_per_s);
    print_row("Total throughput (tokens/s)",
              per_second((double)(m->input_tokens + m->output_tokens), m));
    print_out("%-40s %14zu\n", "Most requests at once", m->max_concurrent);
    for (int i = 0; i < METRIC_CHOICE; i++) {
        if (options->wanted[i]) {
            print_series((enum metric)i, m, options);
        }
    }
    print_service(m);
}
