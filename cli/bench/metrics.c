#include "cli/bench/metrics.h"

#include "cli/bench/words.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[METRIC_COUNT] = {
    "ttft",     "tpot",    "itl",        "e2el",   "queue",
    "tokenize", "prefill", "collective", "decode", "client_queue",
};

const char *metric_name(enum metric metric)
{
    return names[metric];
}

static status find(const char *word, size_t bytes, enum metric *out)
{
    for (int m = 0; m < METRIC_CHOICE; m++) {
        if (strlen(names[m]) == bytes && memcmp(names[m], word, bytes) == 0) {
            *out = (enum metric)m;
            return STATUS_OK;
        }
    }
    return status_fail(STATUS_INVALID, "\"%.*s\" is none of ttft, tpot, itl and e2el", (int)bytes,
                       word);
}

status metrics_parse_names(struct metrics_options *out, const char *words)
{
    struct word word;
    enum metric metric = METRIC_TTFT;
    status st = STATUS_OK;

    memset(out->wanted, 0, sizeof(out->wanted));
    while (!st && words_next(&words, &word)) {
        st = find(word.text, word.bytes, &metric);
        if (!st) {
            out->wanted[metric] = true;
        }
    }
    return st;
}

status metrics_parse_percentiles(struct metrics_options *out, const char *words)
{
    struct word word;
    status st = STATUS_OK;

    out->n_percentiles = 0;
    while (!st && words_next(&words, &word)) {
        if (out->n_percentiles == METRICS_MAX_PERCENTILES) {
            return status_fail(STATUS_INVALID, "more than %d percentiles", METRICS_MAX_PERCENTILES);
        }
        st = word_number(&word, 0, 100, &out->percentiles[out->n_percentiles++]);
    }
    return st;
}

status metrics_parse_goodput(struct metrics_options *out, const char *words)
{
    struct word word;
    status st = STATUS_OK;

    while (!st && words_next(&words, &word)) {
        enum metric metric = METRIC_TTFT;
        const char *colon = memchr(word.text, ':', word.bytes);
        if (!colon) {
            return status_fail(STATUS_INVALID, "\"%.*s\" is not metric:milliseconds",
                               (int)word.bytes, word.text);
        }
        size_t bytes = (size_t)(colon - word.text);
        struct word number = {colon + 1, word.bytes - bytes - 1};
        st = find(word.text, bytes, &metric);
        if (!st && metric == METRIC_ITL) {
            st = status_fail(STATUS_INVALID, "goodput is of ttft, tpot and e2el");
        }
        st = st ? st : word_number(&number, 1e-6, 1e12, &out->limit_ms[metric]);
        out->goodput = true;
    }
    return st;
}

/* ---- figures ---- */

static bool is_good(const struct record *record, const struct metrics_options *options)
{
    const double limit = (double)INFINITY;
    const double *l = options->limit_ms;

    return record_ttft_ms(record) <= (l[METRIC_TTFT] > 0 ? l[METRIC_TTFT] : limit) &&
           record_tpot_ms(record) <= (l[METRIC_TPOT] > 0 ? l[METRIC_TPOT] : limit) &&
           record_e2el_ms(record) <= (l[METRIC_E2EL] > 0 ? l[METRIC_E2EL] : limit);
}

static double ratio(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static void add_sums(struct metrics *m, const struct record *r)
{
    m->input_tokens += r->prompt_tokens;
    m->output_tokens += r->n_tokens;
    m->propagated_ratio += ratio(r->propagated_tokens, r->prompt_tokens);
    m->kept_ratio += ratio((double)r->kv_bytes, (double)r->kv_bytes_full);
    m->kv_bytes += (double)r->kv_bytes;
    m->kv_bytes_full += (double)r->kv_bytes_full;
}

static status add_times(struct metrics *m, const struct record *r)
{
    const double values[METRIC_COUNT] = {
        [METRIC_TTFT] = record_ttft_ms(r),
        [METRIC_TPOT] = record_tpot_ms(r),
        [METRIC_E2EL] = record_e2el_ms(r),
        [METRIC_QUEUE] = r->queue_ms,
        [METRIC_TOKENIZE] = r->tokenize_ms,
        [METRIC_PREFILL] = r->prefill_ms,
        [METRIC_COLLECTIVE] = r->collective_ms,
        [METRIC_DECODE] = r->decode_ms,
        [METRIC_CLIENT_QUEUE] = r->sent_ms - r->due_ms,
    };
    status st = STATUS_OK;

    for (int i = 0; !st && i < METRIC_COUNT; i++) {
        bool counts = i != METRIC_ITL && (i != METRIC_TPOT || r->n_tokens > 1);
        st = counts ? series_add(&m->series[i], values[i]) : STATUS_OK;
    }
    for (size_t i = 0; !st && i < r->n_gaps; i++) {
        st = series_add(&m->series[METRIC_ITL], r->gaps[i]);
    }
    return st;
}

/* Tokens that came in each second of the run. */
static status best_second(struct metrics *m, const struct load_outcome *outcome)
{
    size_t n = (size_t)outcome->duration_s + 2;
    double *seconds = calloc(n, sizeof(*seconds));

    if (!seconds) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for %zu seconds", n);
    }
    for (size_t i = 0; i < outcome->n; i++) {
        const struct record *r = &outcome->records[i];
        double at_ms = r->first_ms;
        double each = (double)r->n_tokens / (double)(r->n_gaps + 1);
        for (size_t g = 0; r->n_tokens && g <= r->n_gaps; g++) {
            size_t second = (size_t)(at_ms / 1000);
            seconds[second < n ? second : n - 1] += each;
            at_ms += g < r->n_gaps ? (double)r->gaps[g] : 0;
        }
    }
    for (size_t i = 0; i < n; i++) {
        m->max_output_tokens_per_s = fmax(m->max_output_tokens_per_s, seconds[i]);
    }
    free(seconds);
    return STATUS_OK;
}

static void finish(struct metrics *m)
{
    double n = m->completed ? (double)m->completed : 1;

    m->propagated_ratio /= n;
    m->kept_ratio /= n;
    m->kv_bytes /= n;
    m->kv_bytes_full /= n;
    for (int i = 0; i < METRIC_COUNT; i++) {
        series_sort(&m->series[i]);
    }
}

status metrics_compute(struct metrics *out, const struct load_outcome *outcome,
                       const struct metrics_options *options)
{
    struct metrics m = {
        .duration_s = outcome->duration_s,
        .max_concurrent = outcome->peak_running,
        .cpu_s = outcome->cpu_s,
    };
    status st = STATUS_OK;

    for (size_t i = 0; !st && i < outcome->n; i++) {
        const struct record *r = &outcome->records[i];
        if (record_ok(r)) {
            m.completed++;
            m.good += is_good(r, options) ? 1 : 0;
            add_sums(&m, r);
            st = add_times(&m, r);
        } else if (outcome->interrupted && (!r->over || r->code == STATUS_CANCELLED)) {
            m.interrupted += r->sent ? 1 : 0;
        } else {
            m.failed++;
        }
    }
    st = st ? st : best_second(&m, outcome);
    if (st) {
        metrics_free(&m);
        return st;
    }
    finish(&m);
    *out = m;
    return STATUS_OK;
}

void metrics_free(struct metrics *metrics)
{
    for (int i = 0; i < METRIC_COUNT; i++) {
        series_free(&metrics->series[i]);
    }
}
