#include "common/metrics.h"

#include "common/log.h"
#include "common/utf8.h"

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct metric {
    struct metric *next; /* of the same family */
    const struct metric_family *family;
    char *labels; /* "model_name=\"m\",rank=\"0\"", under the registry's lock */
    _Atomic(double) value;
    atomic_uint_fast64_t buckets[]; /* HISTOGRAM: [n_bounds + 1], not cumulative */
};

struct family {
    const struct metric_family *family;
    struct metric *first, **last;
};

struct metrics {
    pthread_mutex_t lock;
    char *model_name;
    struct family families[METRICS_MAX_FAMILIES];
    int n_families, n_series;
};

/* ---- text ---- */

struct text {
    char *data;
    size_t bytes, room;
    bool failed;
};

static void text_put(struct text *text, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void text_put(struct text *text, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (text->bytes + (size_t)n + 1 > text->room) {
        size_t room = 2 * text->room + (size_t)n + 4096;
        char *data = text->failed ? NULL : realloc(text->data, room);
        if (!data) {
            text->failed = true;
            return;
        }
        text->data = data;
        text->room = room;
    }
    va_start(args, format);
    vsnprintf(text->data + text->bytes, text->room - text->bytes, format, args);
    va_end(args);
    text->bytes += (size_t)n;
}

/* A label's value between quotes; bytes that are no text become question marks. */
static void text_put_value(struct text *text, const char *value)
{
    bool valid = utf8_is_valid(value, strlen(value));

    for (; *value; value++) {
        if (*value == '\n') {
            text_put(text, "\\n");
        } else if (*value == '"' || *value == '\\') {
            text_put(text, "\\%c", *value);
        } else {
            text_put(text, "%c", !valid && (unsigned char)*value >= 0x80 ? '?' : *value);
        }
    }
}

/* NULL: no memory, or too long. */
static char *make_labels(const struct metrics *metrics, const struct metric_label *labels, int n)
{
    struct text text = {0};

    text_put(&text, "model_name=\"");
    text_put_value(&text, metrics->model_name);
    for (int i = 0; i < n; i++) {
        text_put(&text, "\",%s=\"", labels[i].name);
        text_put_value(&text, labels[i].value);
    }
    text_put(&text, "\"");
    if (text.failed || text.bytes > METRICS_MAX_LABELS) {
        free(text.data);
        return NULL;
    }
    return text.data;
}

static void put_number(struct text *text, double value)
{
    if (isinf(value)) {
        text_put(text, "%s\n", value > 0 ? "+Inf" : "-Inf");
    } else {
        text_put(text, "%.17g\n", value);
    }
}

static void put_histogram(struct text *text, struct metric *metric)
{
    const struct metric_family *family = metric->family;
    uint64_t below = 0;

    for (int i = 0; i < family->n_bounds; i++) {
        below += atomic_load(&metric->buckets[i]);
        text_put(text, "%s_bucket{%s,le=\"%g\"} %llu\n", family->name, metric->labels,
                 family->bounds[i], (unsigned long long)below);
    }
    below += atomic_load(&metric->buckets[family->n_bounds]);
    text_put(text, "%s_bucket{%s,le=\"+Inf\"} %llu\n", family->name, metric->labels,
             (unsigned long long)below);
    text_put(text, "%s_count{%s} %llu\n", family->name, metric->labels, (unsigned long long)below);
    text_put(text, "%s_sum{%s} ", family->name, metric->labels);
    put_number(text, metric_value(metric));
}

static void put_family(struct text *text, const struct family *entry)
{
    static const char *const types[] = {"counter", "gauge", "histogram"};
    const struct metric_family *family = entry->family;

    text_put(text, "# HELP %s %s\n# TYPE %s %s\n", family->name, family->help, family->name,
             types[family->type]);
    for (struct metric *metric = entry->first; metric; metric = metric->next) {
        if (family->type == METRIC_HISTOGRAM) {
            put_histogram(text, metric);
        } else if (!isnan(metric_value(metric))) {
            text_put(text, "%s{%s} ", family->name, metric->labels);
            put_number(text, metric_value(metric));
        }
    }
}

status metrics_write(struct metrics *metrics, char **out, size_t *bytes)
{
    struct text text = {0};

    pthread_mutex_lock(&metrics->lock);
    for (int i = 0; i < metrics->n_families; i++) {
        put_family(&text, &metrics->families[i]);
    }
    pthread_mutex_unlock(&metrics->lock);
    text_put(&text, "%s", ""); /* so that there is a text even without any series */
    if (text.failed) {
        free(text.data);
        return status_fail(STATUS_EXHAUSTED, "no memory for the text of the metrics");
    }
    *out = text.data;
    *bytes = text.bytes;
    return STATUS_OK;
}

/* ---- the registry ---- */

status metrics_open(struct metrics **out, const char *model_name)
{
    struct metrics *metrics = calloc(1, sizeof(*metrics));
    char *name = strdup(model_name);

    if (!metrics || !name) {
        free(metrics);
        free(name);
        return status_fail(STATUS_EXHAUSTED, "no memory for metrics");
    }
    pthread_mutex_init(&metrics->lock, NULL);
    metrics->model_name = name;
    *out = metrics;
    return STATUS_OK;
}

void metrics_close(struct metrics *metrics)
{
    struct metric *next;

    if (!metrics) {
        return;
    }
    for (int i = 0; i < metrics->n_families; i++) {
        for (struct metric *at = metrics->families[i].first; at; at = next) {
            next = at->next;
            free(at->labels);
            free(at);
        }
    }
    pthread_mutex_destroy(&metrics->lock);
    free(metrics->model_name);
    free(metrics);
}

/* With the lock held; NULL: there are too many. */
static struct family *find_family(struct metrics *metrics, const struct metric_family *family)
{
    for (int i = 0; i < metrics->n_families; i++) {
        if (metrics->families[i].family == family) {
            return &metrics->families[i];
        }
    }
    if (metrics->n_families == METRICS_MAX_FAMILIES) {
        return NULL;
    }
    struct family *entry = &metrics->families[metrics->n_families++];
    *entry = (struct family){.family = family};
    entry->last = &entry->first;
    return entry;
}

/* With the lock held; false: over a limit. */
static bool insert(struct metrics *metrics, struct metric *metric)
{
    struct family *entry =
        metrics->n_series < METRICS_MAX_SERIES ? find_family(metrics, metric->family) : NULL;

    if (!entry) {
        return false;
    }
    *entry->last = metric;
    entry->last = &metric->next;
    metrics->n_series++;
    return true;
}

struct metric *metrics_add(struct metrics *metrics, const struct metric_family *family,
                           const struct metric_label *labels, int n_labels)
{
    bool histogram = family->type == METRIC_HISTOGRAM;
    size_t n_buckets = histogram ? (size_t)family->n_bounds + 1 : 0;
    bool inserted = false;

    assert(family->n_bounds <= METRICS_MAX_BOUNDS);
    struct metric *metric = calloc(1, sizeof(*metric) + n_buckets * sizeof(metric->buckets[0]));
    if (metric) {
        metric->family = family;
        metric->labels = make_labels(metrics, labels, n_labels);
    }
    if (metric && metric->labels) {
        pthread_mutex_lock(&metrics->lock);
        inserted = insert(metrics, metric);
        pthread_mutex_unlock(&metrics->lock);
    }
    if (!inserted) {
        log_error("metrics: one series less name=%s", family->name);
        free(metric ? metric->labels : NULL);
        free(metric);
        return NULL;
    }
    return metric;
}

void metrics_relabel(struct metrics *metrics, struct metric *metric,
                     const struct metric_label *labels, int n_labels)
{
    char *fresh = metric ? make_labels(metrics, labels, n_labels) : NULL;

    if (!fresh) {
        return;
    }
    pthread_mutex_lock(&metrics->lock);
    free(metric->labels);
    metric->labels = fresh;
    pthread_mutex_unlock(&metrics->lock);
}

/* ---- values ---- */

void metric_add(struct metric *metric, double value)
{
    if (!metric) {
        return;
    }
    double old = atomic_load_explicit(&metric->value, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&metric->value, &old, old + value)) {
        /* somebody else added: `old` is the new value */
    }
}

void metric_set(struct metric *metric, double value)
{
    if (metric) {
        atomic_store(&metric->value, value);
    }
}

void metric_observe(struct metric *metric, double value)
{
    int i = 0;

    if (!metric) {
        return;
    }
    while (i < metric->family->n_bounds && !(value <= metric->family->bounds[i])) {
        i++;
    }
    atomic_fetch_add(&metric->buckets[i], 1);
    metric_add(metric, value);
}

double metric_value(const struct metric *metric)
{
    return metric ? atomic_load(&metric->value) : 0;
}
