#include "cli/bench/bench.h"
#include "cli/bench/request.h"
#include "cli/bench/serve_options.h"
#include "cli/bench/session.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "common/method.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROGRAM "winnow bench serve"

enum { WARMUP_KEY = 1 << 30 }; /* warm-ups say something else than what counts */

struct run {
    struct serve_options options;
    struct session session;
    struct dataset dataset;
    double *due_s; /* NULL: nothing is due at a time */
    uint64_t key;  /* of request 0 */
};

static status pack(void *context, size_t i, uint8_t **data, size_t *bytes)
{
    struct run *run = context;
    const struct dataset_item *item = &run->dataset.items[i % run->dataset.n];
    uint32_t *ids = NULL;

    if (!item->text) {
        ids = malloc(item->n_input * sizeof(*ids));
        if (!ids) {
            return status_fail(STATUS_EXHAUSTED, "out of memory for a prompt");
        }
        dataset_ids(&run->dataset, item, run->key + i, ids);
    }
    const struct request_spec spec = {
        .ids = ids,
        .n_ids = item->n_input,
        .text = item->text,
        .bytes = item->bytes,
        .max_tokens = item->n_output,
        .ignore_eos = run->options.ignore_eos,
        .temperature = run->options.temperature,
        .seed = run->options.dataset.seed + i,
        .compression = &run->options.compression,
        .method = item->method,
    };
    status st = request_pack(&spec, data, bytes);
    free(ids);
    return st;
}

static status load_dataset(struct run *run)
{
    struct dataset_config *config = &run->options.dataset;
    const Winnow__V1__Model *model = run->session.model;

    config->vocab = model->vocab_size;
    for (size_t i = 0; i < model->n_eos_ids && config->n_eos < DATASET_MAX_EOS; i++) {
        config->eos[config->n_eos++] = model->eos_ids[i];
    }
    return dataset_load(&run->dataset, config);
}

static status plan_arrivals(struct run *run)
{
    const struct serve_options *o = &run->options;
    size_t n = run->dataset.n;

    if (!o->open_loop) {
        return STATUS_OK;
    }
    run->due_s = malloc((n + 1) * sizeof(*run->due_s));
    if (!run->due_s) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for %zu requests", n);
    }
    if (o->dataset.kind == DATASET_TRACE) {
        for (size_t i = 0; i < n; i++) {
            run->due_s[i] = run->dataset.items[i].due_s;
        }
    } else {
        arrival_times(run->due_s, n, &o->arrival);
    }
    return STATUS_OK;
}

static size_t most_running(const struct run *run)
{
    size_t n = run->dataset.n;
    size_t limit = (size_t)run->options.max_concurrency;

    return limit && limit < n ? limit : n;
}

static status connect(struct run *run)
{
    int64_t n = run->options.n_connections;

    if (n == 0) {
        n = (int64_t)(most_running(run) + LOAD_CALLS_PER_CONNECTION - 1) /
            LOAD_CALLS_PER_CONNECTION;
        n = n < LOAD_MAX_CONNECTIONS ? n : LOAD_MAX_CONNECTIONS;
    }
    return session_connect(&run->session, &run->options.access, (int)n);
}

static void configure(struct load_config *out, struct run *run)
{
    *out = (struct load_config){
        .clients = run->session.clients,
        .n_clients = run->session.n_clients,
        .n = run->dataset.n,
        .due_s = run->due_s,
        .max_running = most_running(run),
        .deadline_ms = (int64_t)(run->options.deadline_s * 1000),
        .pack = pack,
        .context = run,
        .title = run->options.result.quiet ? NULL : "bench serve",
    };
}

/* STATUS_CANCELLED: interrupted. */
static status warm_up(struct run *run)
{
    struct load_config config;
    struct load_outcome outcome;

    if (run->options.n_warmups == 0) {
        return STATUS_OK;
    }
    configure(&config, run);
    config.n = (size_t)run->options.n_warmups;
    config.due_s = NULL;
    config.title = run->options.result.quiet ? NULL : "warm-up";
    run->key = WARMUP_KEY;
    status st = load_run(&outcome, &config);
    run->key = 0;
    if (st) {
        return st;
    }
    for (size_t i = 0; !st && i < outcome.n; i++) {
        const struct record *record = &outcome.records[i];
        if (!outcome.interrupted && !record_ok(record)) {
            st = status_fail(record->code, "warm-up %zu: %s", i + 1,
                             record->error ? record->error : "");
        }
    }
    if (outcome.interrupted) {
        st = status_fail(STATUS_CANCELLED, "interrupted while warming up");
    }
    load_free(&outcome);
    return st;
}

/* ---- the result ---- */

static const char *method_in_use(const struct run *run)
{
    const char *given = run->options.compression.method;
    enum method method =
        given ? method_by_name(given) : (enum method)run->session.model->default_method;
    const char *name = method_name(method);

    return name ? name : "UNKNOWN";
}

static bool add_number_or(cJSON *o, const char *key, double value, const char *otherwise)
{
    return isfinite(value) ? cJSON_AddNumberToObject(o, key, value) != NULL
                           : cJSON_AddStringToObject(o, key, otherwise) != NULL;
}

static bool add_setup(cJSON *o, const struct run *run)
{
    static const char *const kinds[] = {"random", "file", "trace"};
    static const char *const ramps[] = {"", "linear", "exponential"};
    const struct serve_options *s = &run->options;
    const struct arrival *a = &s->arrival;
    bool ramp = a->ramp != ARRIVAL_STEADY;
    bool trace = s->dataset.kind == DATASET_TRACE;

    return cJSON_AddStringToObject(o, "method", method_in_use(run)) &&
           result_add_compression(o, &s->compression) &&
           cJSON_AddStringToObject(o, "dataset_name", kinds[s->dataset.kind]) &&
           cJSON_AddNumberToObject(o, "num_prompts", (double)run->dataset.n) &&
           cJSON_AddNumberToObject(o, "random_input_len", (double)s->dataset.input_len) &&
           cJSON_AddNumberToObject(o, "random_output_len", (double)s->dataset.output_len) &&
           cJSON_AddNumberToObject(o, "random_range_ratio", s->dataset.range_ratio) &&
           cJSON_AddNumberToObject(o, "seed", (double)s->dataset.seed) &&
           add_number_or(o, "request_rate", a->rate,
                         trace  ? "trace"
                         : ramp ? "ramp"
                                : "inf") &&
           cJSON_AddNumberToObject(o, "burstiness", a->burstiness) &&
           (!ramp || (cJSON_AddStringToObject(o, "ramp_up_strategy", ramps[a->ramp]) &&
                      cJSON_AddNumberToObject(o, "ramp_up_start_rps", a->start_rate) &&
                      cJSON_AddNumberToObject(o, "ramp_up_end_rps", a->end_rate))) &&
           (s->max_concurrency
                ? cJSON_AddNumberToObject(o, "max_concurrency", (double)s->max_concurrency)
                : cJSON_AddNullToObject(o, "max_concurrency")) &&
           cJSON_AddNumberToObject(o, "num_warmups", (double)s->n_warmups) &&
           cJSON_AddNumberToObject(o, "connections", run->session.n_clients) &&
           cJSON_AddBoolToObject(o, "ignore_eos", s->ignore_eos);
}

static status deliver(const struct run *run, const struct load_outcome *outcome,
                      const struct metrics *metrics)
{
    const struct serve_options *o = &run->options;
    cJSON *object = result_create("serve", &o->result, run->session.model);
    bool ok = object && add_setup(object, run) && metrics_add_json(object, metrics, &o->metrics) &&
              (!o->result.detailed || metrics_add_details(object, outcome)) &&
              cJSON_AddNumberToObject(object, "worker_memory_peak_bytes",
                                      session_worker_memory(&run->session)) &&
              result_add_metadata(object, &o->result);
    status st = ok ? result_deliver(object, &o->result, "winnow-serve")
                   : status_fail(STATUS_EXHAUSTED, "out of memory for the result");

    cJSON_Delete(object);
    return st;
}

/* Why requests failed: the first reason stands for all. */
static void tell_failures(const struct load_outcome *outcome, const struct metrics *metrics)
{
    for (size_t i = 0; metrics->failed && i < outcome->n; i++) {
        const struct record *record = &outcome->records[i];
        if (record->over && record->error && !record_ok(record)) {
            char *text = print_harmless(record->error, strlen(record->error), false);
            print_note("%s: %zu of %zu requests failed; request %zu: %s: %s\n", PROGRAM,
                       metrics->failed, outcome->n, i + 1, print_status_name(record->code),
                       text ? text : "");
            free(text);
            return;
        }
    }
}

static status conclude(const struct run *run, const struct load_outcome *outcome)
{
    struct metrics metrics;
    status st = metrics_compute(&metrics, outcome, &run->options.metrics);

    if (st) {
        return st;
    }
    if (!run->options.result.json) {
        metrics_print(&metrics, &run->options.metrics);
    }
    print_flush();
    tell_failures(outcome, &metrics);
    st = deliver(run, outcome, &metrics);
    if (!st && metrics.completed == 0 && metrics.failed) {
        st = status_fail(STATUS_UNAVAILABLE, "every request failed");
    }
    metrics_free(&metrics);
    return st;
}

static status measure(struct run *run, bool *interrupted)
{
    struct load_config config;
    struct load_outcome outcome;
    status st = load_dataset(run);

    st = st ? st : plan_arrivals(run);
    st = st ? st : connect(run);
    st = st ? st : warm_up(run);
    if (!st) {
        configure(&config, run);
        st = load_run(&outcome, &config);
    }
    if (!st) {
        *interrupted = outcome.interrupted;
        st = conclude(run, &outcome);
        load_free(&outcome);
    }
    free(run->due_s);
    dataset_free(&run->dataset);
    return st;
}

int serve_main(int argc, char **argv)
{
    struct run run = {.due_s = NULL};
    enum options_outcome outcome;
    bool interrupted = false;

    if (serve_options_parse(&run.options, argc, argv, &outcome)) {
        print_usage_failure(PROGRAM);
        return EXIT_USAGE;
    }
    if (outcome != OPTIONS_RUN) {
        return print_finish();
    }
    status st = session_open(&run.session, &run.options.access, run.options.ready_s);
    if (!st) {
        st = measure(&run, &interrupted);
        session_close(&run.session);
    }
    int code = print_finish();
    if (interrupted || st == STATUS_CANCELLED) {
        print_note("%s: interrupted\n", PROGRAM);
        return EXIT_INTERRUPT;
    }
    if (st) {
        print_failure(PROGRAM, st);
        return EXIT_ERROR;
    }
    return code;
}
