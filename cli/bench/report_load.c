/* Runs under load: latency and throughput against what was asked for, and where time goes. */
#include "cli/bench/report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What the load of the runs is measured by. */
struct axis {
    const char *key, *label;
};

static struct axis choose_axis(const struct report *report)
{
    static const struct axis axes[] = {
        {"request_rate", "requests sent a second"},
        {"max_concurrency", "requests at once"},
        {"max_concurrent_requests", "most requests at once"},
    };

    for (int a = 0; a < 2; a++) {
        bool all = true;
        for (int i = 0; i < report->n; i++) {
            const cJSON *run = report->runs[i];
            all = all && (!report_is(run, "serve") || report_number(run, axes[a].key) > 0);
        }
        if (all) {
            return axes[a];
        }
    }
    return axes[2];
}

static struct plot_series *series_named(struct plot *plot, const char *name, bool dashed)
{
    for (int s = 0; s < plot->n; s++) {
        if (plot->series[s].dashed == dashed &&
            strncmp(plot->series[s].name, name, PLOT_NAME - 1) == 0) {
            return &plot->series[s];
        }
    }
    if (plot->n == PLOT_MAX_SERIES) {
        return NULL;
    }
    struct plot_series *series = &plot->series[plot->n++];
    memset(series, 0, sizeof(*series));
    snprintf(series->name, sizeof(series->name), "%s", name);
    series->dashed = dashed;
    return series;
}

/* In the order of x. */
static void add_point(struct plot_series *series, double x, double y)
{
    int at = series->n;

    if (!isfinite(x) || !isfinite(y) || series->n == PLOT_MAX_POINTS) {
        return;
    }
    while (at > 0 && series->x[at - 1] > x) {
        series->x[at] = series->x[at - 1];
        series->y[at] = series->y[at - 1];
        at--;
    }
    series->x[at] = x;
    series->y[at] = y;
    series->n++;
}

static void collect(struct report *report, struct plot *plot, const char *key, bool dashed,
                    const struct axis *axis)
{
    for (int i = 0; i < report->n; i++) {
        const cJSON *run = report->runs[i];
        double y = report_number(run, key);
        if (!report_is(run, "serve") || !isfinite(y)) {
            continue;
        }
        const char *name = report_name(run);
        struct plot_series *series = series_named(plot, name, dashed);
        if (series) {
            series->color = report_color(report, name);
            add_point(series, report_number(run, axis->key), y);
        }
    }
}

static bool has(const struct report *report, const char *key)
{
    for (int i = 0; i < report->n; i++) {
        if (report_is(report->runs[i], "serve") && isfinite(report_number(report->runs[i], key))) {
            return true;
        }
    }
    return false;
}

/* The tail that the runs were asked for: the one nearest to the 99th. */
static const char *tail_of(const struct report *report, char *key, size_t key_size,
                           const char *metric)
{
    static const char *const tails[] = {"99", "99.9", "95", "90", "75"};

    for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
        snprintf(key, key_size, "p%s_%s_ms", tails[i], metric);
        if (has(report, key)) {
            return tails[i];
        }
    }
    return NULL;
}

static void draw_latency(struct report *report, struct plot *plot, const char *title,
                         const char *metric, const struct axis *axis)
{
    char median[64];
    char tail[64];
    char note[64];

    snprintf(median, sizeof(median), "median_%s_ms", metric);
    if (!has(report, median)) {
        return;
    }
    const char *percent = tail_of(report, tail, sizeof(tail), metric);
    snprintf(note, sizeof(note), percent ? "median solid, P%s dashed" : "median", percent);
    *plot = (struct plot){.title = title, .note = note, .x_label = axis->label, .y_label = "ms"};
    collect(report, plot, median, false, axis);
    if (percent) {
        collect(report, plot, tail, true, axis);
    }
    plot_draw(&report->html, plot);
}

static void draw_throughput(struct report *report, struct plot *plot, const struct axis *axis)
{
    *plot = (struct plot){.title = "Output throughput",
                          .note = "tokens of all answers together",
                          .x_label = axis->label,
                          .y_label = "tokens/s"};
    collect(report, plot, "output_throughput", false, axis);
    plot_draw(&report->html, plot);
    if (has(report, "request_goodput")) {
        *plot = (struct plot){.title = "Goodput",
                              .note = "requests that kept every limit",
                              .x_label = axis->label,
                              .y_label = "requests/s"};
        collect(report, plot, "request_goodput", false, axis);
        plot_draw(&report->html, plot);
    }
}

/* By name, then by load. */
static bool comes_before(const cJSON *a, const cJSON *b, const struct axis *axis)
{
    int order = strcmp(report_name(a), report_name(b));

    return order < 0 || (order == 0 && report_number(a, axis->key) < report_number(b, axis->key));
}

static int sort_runs(const struct report *report, const cJSON **runs, const struct axis *axis)
{
    int n = 0;

    for (int i = 0; i < report->n; i++) {
        if (!report_is(report->runs[i], "serve")) {
            continue;
        }
        int at = n++;
        for (; at > 0 && comes_before(report->runs[i], runs[at - 1], axis); at--) {
            runs[at] = runs[at - 1];
        }
        runs[at] = report->runs[i];
    }
    return n;
}

static void draw_phases(struct report *report, const struct axis *axis)
{
    static const char *const parts[] = {"queue", "tokenize", "prefill", "decode"};
    struct plot_stack stack;
    const cJSON *runs[REPORT_MAX_RUNS];
    char note[128];
    int n = sort_runs(report, runs, axis);

    snprintf(note, sizeof(note), "means, as the service counts them; the number is %s",
             axis->label);
    stack = (struct plot_stack){.title = "Where a request's time goes",
                                .note = note,
                                .unit = "ms",
                                .parts = parts,
                                .n_parts = 4};
    for (int i = 0; i < n && stack.n_rows < PLOT_MAX_GROUPS; i++) {
        int row = stack.n_rows++;
        char load[32];
        plot_format(load, sizeof(load), report_number(runs[i], axis->key));
        snprintf(stack.rows[row], PLOT_NAME, "%.16s, %s", report_name(runs[i]), load);
        for (int p = 0; p < 4; p++) {
            char key[64];
            snprintf(key, sizeof(key), "mean_%s_ms", parts[p]);
            double value = report_number(runs[i], key);
            stack.values[row][p] = value > 0 ? value : 0;
        }
    }
    plot_draw_stack(&report->html, &stack);
}

void report_load(struct report *report)
{
    struct plot plot;
    struct axis axis = choose_axis(report);

    if (!has(report, "completed")) {
        return;
    }
    html_add(&report->html, "<section><h2>Under load</h2><div class=\"grid\">\n");
    draw_latency(report, &plot, "Time to first token", "ttft", &axis);
    draw_latency(report, &plot, "Time per output token", "tpot", &axis);
    draw_latency(report, &plot, "Inter-token latency", "itl", &axis);
    draw_latency(report, &plot, "End-to-end latency", "e2el", &axis);
    draw_throughput(report, &plot, &axis);
    draw_phases(report, &axis);
    html_add(&report->html, "</div></section>\n");
}
