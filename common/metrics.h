/*
 * metrics.h - counters, gauges and histograms, and their text in the Prometheus format 0.0.4.
 *
 * A series is one name with one set of labels.  Changing a value is a few atomic instructions and
 * never waits; adding a series, changing labels and writing the text take the registry's lock.
 * All functions on a series accept NULL and then do nothing, so who counts need not ask whether
 * anybody looks.
 *
 * Label values are the server's own (ranks, methods, codes): never what a client sent, or the
 * number of series would be the client's to choose.
 */
#ifndef COMMON_METRICS_H
#define COMMON_METRICS_H

#include "common/status.h"

#include <stddef.h>

enum metrics_limits {
    METRICS_MAX_FAMILIES = 128,
    METRICS_MAX_SERIES = 16384,
    METRICS_MAX_BOUNDS = 32,   /* of a histogram */
    METRICS_MAX_LABELS = 2048, /* bytes of one series, escaped */
};

enum metric_type { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };

/* Static: borrowed for ever, and known by its address. */
struct metric_family {
    const char *name; /* counters end in _total */
    const char *help;
    enum metric_type type;
    const double *bounds; /* HISTOGRAM: upper ones, ascending, without the infinite one */
    int n_bounds;
};

struct metric_label {
    const char *name;
    const char *value;
};

struct metrics;
struct metric;

/* `model_name` is a label of every series. */
status metrics_open(struct metrics **out, const char *model_name);
void metrics_close(struct metrics *metrics); /* and all its series; NULL is fine */

/* A new series.  NULL, which is logged: no memory, or over a limit; it is then not counted. */
struct metric *metrics_add(struct metrics *metrics, const struct metric_family *family,
                           const struct metric_label *labels, int n_labels);
/* Replaces the labels of a series: a gauge of 1 whose labels say something that may change. */
void metrics_relabel(struct metrics *metrics, struct metric *metric,
                     const struct metric_label *labels, int n_labels);

void metric_add(struct metric *metric, double value); /* counters: value >= 0 */
void metric_set(struct metric *metric, double value); /* gauges; NaN: not there, not written */
void metric_observe(struct metric *metric, double value);
/* What was added up: of a histogram the sum of what was observed.  0 for NULL. */
double metric_value(const struct metric *metric);

/* *out is malloc'd text, NUL-terminated. */
status metrics_write(struct metrics *metrics, char **out, size_t *bytes);

#endif
