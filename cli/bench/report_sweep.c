/* Sweeps over methods and lengths: times with their intervals, speed-up over FULL, memory. */
#include "cli/bench/report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct view {
    const char *command, *heading;
    const char *measure; /* as in the JSON */
    const char *title, *label, *speed_title;
    double scale; /* of the figures */
    bool larger_is_better;
};

static const struct view views[] = {
    {"prefill", "Reading a prompt", "ttft_ms", "Time to first token", "seconds",
     "First token sooner than with FULL", 1e-3, false},
    {"e2e", "A whole answer", "e2el_ms", "End-to-end time", "seconds",
     "Whole answer sooner than with FULL", 1e-3, false},
    {"throughput", "Decoding", "tokens_per_s", "Decoding speed", "tokens/s",
     "Decoding faster than with FULL", 1, true},
};

/* The cases of all runs of a command, one after the other: NULL at the end. */
static const cJSON *next_case(const struct report *report, const char *command, int *run,
                              const cJSON *before)
{
    const cJSON *item = before ? before->next : NULL;

    while (!item && *run + 1 < report->n) {
        const cJSON *candidate = report->runs[++*run];
        if (report_is(candidate, command)) {
            const cJSON *list = cJSON_GetObjectItemCaseSensitive(candidate, "results");
            item = cJSON_IsArray(list) ? list->child : NULL;
        }
    }
    return item;
}

static const cJSON *first_case(const struct report *report, const char *command, int *run)
{
    *run = -1;
    return next_case(report, command, run, NULL);
}

static double mean_of(const cJSON *one, const struct view *view, const char *statistic)
{
    char key[64];

    snprintf(key, sizeof(key), "%s_%s", statistic, view->measure);
    return report_number(one, key) * view->scale;
}

static double full_at(const struct report *report, const struct view *view, double length)
{
    int run;

    for (const cJSON *one = first_case(report, view->command, &run); one;
         one = next_case(report, view->command, &run, one)) {
        if (strcmp(report_text(one, "method"), "FULL") == 0 &&
            report_number(one, "input_len") == length) {
            return mean_of(one, view, "mean");
        }
    }
    return (double)NAN;
}

/* ---- lines ---- */

static struct plot_series *line_of(struct report *report, struct plot *plot, const char *method)
{
    for (int s = 0; s < plot->n; s++) {
        if (strcmp(plot->series[s].name, method) == 0) {
            return &plot->series[s];
        }
    }
    if (plot->n == PLOT_MAX_SERIES) {
        return NULL;
    }
    struct plot_series *series = &plot->series[plot->n++];
    memset(series, 0, sizeof(*series));
    snprintf(series->name, sizeof(series->name), "%s", method);
    series->color = report_color(report, method);
    return series;
}

static void insert(struct plot_series *series, double x, double y, double error)
{
    int at = series->n;

    if (series->n == PLOT_MAX_POINTS) {
        return;
    }
    for (; at > 0 && series->x[at - 1] > x; at--) {
        series->x[at] = series->x[at - 1];
        series->y[at] = series->y[at - 1];
        series->error[at] = series->error[at - 1];
    }
    series->x[at] = x;
    series->y[at] = y;
    series->error[at] = error;
    series->n++;
}

static void draw_lines(struct report *report, struct plot *plot, const struct view *view)
{
    int run;

    *plot = (struct plot){.title = view->title,
                          .note = "mean and 95 % interval of the runs",
                          .x_label = "tokens of the prompt",
                          .y_label = view->label,
                          .lengths = true};
    for (const cJSON *one = first_case(report, view->command, &run); one;
         one = next_case(report, view->command, &run, one)) {
        double mean = mean_of(one, view, "mean");
        double length = report_number(one, "input_len");
        struct plot_series *series = line_of(report, plot, report_text(one, "method"));
        if (series && isfinite(mean) && length >= 1) {
            double half = mean_of(one, view, "ci95");
            insert(series, length, mean, isfinite(half) ? half : 0);
        }
    }
    plot_draw(&report->html, plot);
}

/* ---- bars ---- */

/* An empty group before the one at g. */
static void open_group(struct plot_bars *bars, int g, double length)
{
    for (int i = bars->n_groups++; i > g; i--) {
        memcpy(bars->groups[i], bars->groups[i - 1], sizeof(bars->groups[i]));
        memcpy(bars->values[i], bars->values[i - 1], sizeof(bars->values[i]));
        bars->keys[i] = bars->keys[i - 1];
    }
    bars->keys[g] = length;
    plot_format(bars->groups[g], PLOT_NAME, length);
    for (int s = 0; s < PLOT_MAX_SERIES; s++) {
        bars->values[g][s] = -1;
    }
}

/* The place of a length among the bars; -1: no room. */
static int group_at(struct plot_bars *bars, double length)
{
    int g = 0;

    while (g < bars->n_groups && bars->keys[g] < length) {
        g++;
    }
    if (g < bars->n_groups && bars->keys[g] == length) {
        return g;
    }
    if (bars->n_groups == PLOT_MAX_GROUPS) {
        return -1;
    }
    open_group(bars, g, length);
    return g;
}

static int method_at(struct report *report, struct plot_bars *bars, const char *method)
{
    int s = 0;

    while (s < bars->n_series && strcmp(bars->series[s], method) != 0) {
        s++;
    }
    if (s == PLOT_MAX_SERIES) {
        return -1;
    }
    if (s == bars->n_series) {
        bars->n_series++;
        snprintf(bars->series[s], PLOT_NAME, "%s", method);
        bars->colors[s] = report_color(report, method);
    }
    return s;
}

static void add_bar(struct report *report, struct plot_bars *bars, const cJSON *one, double value)
{
    double length = report_number(one, "input_len");

    if (!isfinite(value) || !(length >= 1)) {
        return;
    }
    int g = group_at(bars, length);
    int s = method_at(report, bars, report_text(one, "method"));
    if (g >= 0 && s >= 0) {
        bars->values[g][s] = value;
    }
}

static void draw_speed_up(struct report *report, struct plot_bars *bars, const struct view *view)
{
    int run;

    *bars = (struct plot_bars){.title = view->speed_title,
                               .note = "how many times; FULL is the line at 1",
                               .y_label = "times",
                               .suffix = "×",
                               .reference = 1};
    for (const cJSON *one = first_case(report, view->command, &run); one;
         one = next_case(report, view->command, &run, one)) {
        double full = full_at(report, view, report_number(one, "input_len"));
        double mine = mean_of(one, view, "mean");
        if (strcmp(report_text(one, "method"), "FULL") != 0) {
            add_bar(report, bars, one, view->larger_is_better ? mine / full : full / mine);
        }
    }
    if (bars->n_series) {
        plot_draw_bars(&report->html, bars);
    }
}

static void draw_memory(struct report *report, struct plot_bars *bars)
{
    const size_t n = sizeof(views) / sizeof(views[0]);
    int run;

    *bars = (struct plot_bars){.title = "KV cache after the prompt",
                               .note = "of one request, on all ranks together",
                               .y_label = "MiB",
                               .suffix = ""};
    for (size_t v = 0; v < n; v++) {
        for (const cJSON *one = first_case(report, views[v].command, &run); one;
             one = next_case(report, views[v].command, &run, one)) {
            add_bar(report, bars, one, report_number(one, "kv_bytes") / (1 << 20));
        }
    }
    if (bars->n_series) {
        html_add(&report->html, "<section><h2>Memory</h2><div class=\"grid\">\n");
        plot_draw_bars(&report->html, bars);
        html_add(&report->html, "</div></section>\n");
    }
}

void report_sweep(struct report *report)
{
    struct plot plot;
    struct plot_bars bars;
    int run;

    for (size_t v = 0; v < sizeof(views) / sizeof(views[0]); v++) {
        if (!first_case(report, views[v].command, &run)) {
            continue;
        }
        html_add(&report->html, "<section><h2>%s</h2><div class=\"grid\">\n", views[v].heading);
        draw_lines(report, &plot, &views[v]);
        draw_speed_up(report, &bars, &views[v]);
        html_add(&report->html, "</div></section>\n");
    }
    draw_memory(report, &bars);
}
