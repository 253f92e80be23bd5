#include "cli/bench/sweep.h"

#include "cli/bench/bench.h"
#include "cli/bench/request.h"
#include "cli/bench/session.h"
#include "cli/commands.h"
#include "cli/print.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sweep {
    struct sweep_options options;
    struct session session;
    struct sweep_case *cases; /* [methods * lengths] */
    int n;
    struct sweep_case *current;
    uint32_t *ids; /* of the longest prompt */
    bool interrupted;
};

static status pack(void *context, size_t i, uint8_t **data, size_t *bytes)
{
    const struct sweep *sweep = context;
    const struct request_spec spec = {
        .ids = sweep->ids,
        .n_ids = sweep->current->input_len,
        .max_tokens = (uint32_t)sweep->options.output_len,
        .ignore_eos = true,
        .seed = i,
        .compression = &sweep->options.compression,
        .method = sweep->current->method,
    };

    return request_pack(&spec, data, bytes);
}

/* Tokens a second after the first, over all of the time or over that of decoding. */
static double rate_of(const struct sweep *sweep, const struct record *r)
{
    double ms = sweep->options.kind == SWEEP_E2E ? record_e2el_ms(r) : r->last_ms - r->first_ms;

    return ms > 0 ? (r->n_tokens - 1) * 1000.0 / ms : 0;
}

static status take_record(struct sweep *sweep, struct sweep_case *one, const struct record *r)
{
    const double values[SWEEP_MEASURES] = {
        [SWEEP_TTFT] = record_ttft_ms(r),         [SWEEP_E2EL] = record_e2el_ms(r),
        [SWEEP_PREFILL_MS] = r->prefill_ms,       [SWEEP_DECODE_MS] = r->decode_ms,
        [SWEEP_COLLECTIVE_MS] = r->collective_ms, [SWEEP_RATE] = rate_of(sweep, r),
    };
    status st = STATUS_OK;

    for (int m = 0; !st && m < SWEEP_MEASURES; m++) {
        st = series_add(&one->measures[m], values[m]);
    }
    one->kv_bytes = (double)r->kv_bytes;
    one->kv_bytes_full = (double)r->kv_bytes_full;
    one->kept_ratio = r->kv_bytes_full ? one->kv_bytes / one->kv_bytes_full : 0;
    one->propagated_ratio = r->prompt_tokens ? (double)r->propagated_tokens / r->prompt_tokens : 0;
    return st;
}

static status take_records(struct sweep *sweep, struct sweep_case *one,
                           const struct load_outcome *outcome)
{
    status st = STATUS_OK;

    for (size_t i = 0; !st && i < outcome->n; i++) {
        const struct record *r = &outcome->records[i];
        if (record_ok(r)) {
            bool warm = i >= (size_t)sweep->options.n_warmups;
            st = warm ? take_record(sweep, one, r) : STATUS_OK;
        } else if (r->over && !outcome->interrupted && !one->failure.code) {
            one->failure.code = r->code;
            snprintf(one->failure.text, sizeof(one->failure.text), "%s", r->error ? r->error : "");
        }
    }
    for (int m = 0; m < SWEEP_MEASURES; m++) {
        if (sweep->options.drop_extremes) {
            series_drop_extremes(&one->measures[m]);
        }
        series_sort(&one->measures[m]);
    }
    return st;
}

static status run_case(struct sweep *sweep, struct sweep_case *one)
{
    const struct sweep_options *o = &sweep->options;
    struct load_outcome outcome;
    char title[64];
    const struct load_config config = {
        .clients = sweep->session.clients,
        .n_clients = 1,
        .n = (size_t)(o->n_warmups + o->n_runs),
        .max_running = 1,
        .deadline_ms = (int64_t)(o->deadline_s * 1000),
        .pack = pack,
        .context = sweep,
        .title = o->result.quiet ? NULL : title,
    };

    snprintf(title, sizeof(title), "%s, %u tokens", method_name(one->method), one->input_len);
    sweep->current = one;
    status st = load_run(&outcome, &config);
    if (st) {
        return st;
    }
    sweep->interrupted = outcome.interrupted;
    st = take_records(sweep, one, &outcome);
    load_free(&outcome);
    one->memory_peak_bytes = session_worker_memory(&sweep->session);
    if (one->failure.code && !o->result.quiet) {
        char *text = print_harmless(one->failure.text, strlen(one->failure.text), false);
        print_note("%s: %s: %s\n", title, print_status_name(one->failure.code), text ? text : "");
        free(text);
    }
    return st;
}

static status prepare(struct sweep *sweep)
{
    const struct sweep_options *o = &sweep->options;
    uint32_t longest = 0;

    if (o->token_id >= sweep->session.model->vocab_size) {
        return status_fail(STATUS_INVALID, "--token-id: the vocabulary has %u tokens",
                           sweep->session.model->vocab_size);
    }
    for (int i = 0; i < o->n_lengths; i++) {
        longest = o->lengths[i] > longest ? o->lengths[i] : longest;
    }
    sweep->n = o->n_methods * o->n_lengths;
    sweep->cases = calloc((size_t)sweep->n, sizeof(*sweep->cases));
    sweep->ids = malloc((longest + (size_t)1) * sizeof(*sweep->ids));
    if (!sweep->cases || !sweep->ids) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the sweep");
    }
    for (uint32_t i = 0; i < longest; i++) {
        sweep->ids[i] = (uint32_t)o->token_id;
    }
    for (int i = 0; i < sweep->n; i++) {
        sweep->cases[i].input_len = o->lengths[i / o->n_methods];
        sweep->cases[i].method = o->methods[i % o->n_methods];
    }
    return STATUS_OK;
}

static status deliver(const struct sweep *sweep)
{
    const struct sweep_options *o = &sweep->options;
    char stem[64];
    cJSON *object = result_create(sweep_name(o->kind), &o->result, sweep->session.model);
    bool ok = object && result_add_compression(object, &o->compression) &&
              cJSON_AddNumberToObject(object, "num_warmups", (double)o->n_warmups) &&
              cJSON_AddNumberToObject(object, "num_runs", (double)o->n_runs) &&
              cJSON_AddBoolToObject(object, "drop_extremes", o->drop_extremes) &&
              cJSON_AddNumberToObject(object, "token_id", (double)o->token_id) &&
              cJSON_AddBoolToObject(object, "complete", !sweep->interrupted);
    cJSON *list = ok ? cJSON_AddArrayToObject(object, "results") : NULL;

    ok = list != NULL;
    for (int i = 0; ok && i < sweep->n; i++) {
        ok = sweep_case_add_json(list, &sweep->cases[i], o);
    }
    ok = ok && result_add_metadata(object, &o->result);
    snprintf(stem, sizeof(stem), "winnow-%s", sweep_name(o->kind));
    status st = ok ? result_deliver(object, &o->result, stem)
                   : status_fail(STATUS_EXHAUSTED, "out of memory for the result");
    cJSON_Delete(object);
    return st;
}

static status conclude(const struct sweep *sweep)
{
    const struct failure *failure = &sweep->cases[0].failure;
    bool any = false;

    for (int i = 0; i < sweep->n; i++) {
        any = any || sweep->cases[i].measures[SWEEP_TTFT].n > 0;
    }
    if (!sweep->options.result.json) {
        sweep_print(sweep->cases, sweep->n, &sweep->options);
    }
    status st = deliver(sweep);
    if (!st && !any && failure->code) {
        st = status_fail(failure->code, "nothing could be measured: %s", failure->text);
    }
    return st;
}

static status measure(struct sweep *sweep)
{
    status st = prepare(sweep);

    for (int i = 0; !st && !sweep->interrupted && i < sweep->n; i++) {
        st = run_case(sweep, &sweep->cases[i]);
    }
    st = st ? st : conclude(sweep);
    for (int i = 0; sweep->cases && i < sweep->n; i++) {
        for (int m = 0; m < SWEEP_MEASURES; m++) {
            series_free(&sweep->cases[i].measures[m]);
        }
    }
    free(sweep->cases);
    free(sweep->ids);
    return st;
}

static int sweep_main(enum sweep_kind kind, int argc, char **argv)
{
    struct sweep sweep = {.options.kind = kind};
    enum options_outcome outcome;
    char program[64];

    snprintf(program, sizeof(program), "winnow bench %s", sweep_name(kind));
    if (sweep_options_parse(&sweep.options, argc, argv, &outcome)) {
        print_usage_failure(program);
        return EXIT_USAGE;
    }
    if (outcome != OPTIONS_RUN) {
        return print_finish();
    }
    status st = session_open(&sweep.session, &sweep.options.access, sweep.options.ready_s);
    if (!st) {
        st = measure(&sweep);
        session_close(&sweep.session);
    }
    int code = print_finish();
    if (sweep.interrupted || st == STATUS_CANCELLED) {
        print_note("%s: interrupted\n", program);
        return EXIT_INTERRUPT;
    }
    if (st) {
        print_failure(program, st);
        return EXIT_ERROR;
    }
    return code;
}

int sweep_prefill_main(int argc, char **argv)
{
    return sweep_main(SWEEP_PREFILL, argc, argv);
}

int sweep_e2e_main(int argc, char **argv)
{
    return sweep_main(SWEEP_E2E, argc, argv);
}

int sweep_throughput_main(int argc, char **argv)
{
    return sweep_main(SWEEP_THROUGHPUT, argc, argv);
}
