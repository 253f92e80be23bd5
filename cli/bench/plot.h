/*
 * plot.h - figures as SVG inside a page: lines with intervals, grouped bars, stacked bars.
 *
 * Colours are classes (c0 to c7) that the page's style defines for light, dark and paper; each
 * series has a mark of its own as well.  Names come from files and are escaped here.
 */
#ifndef CLI_BENCH_PLOT_H
#define CLI_BENCH_PLOT_H

#include "cli/bench/html.h"

enum plot_limits {
    PLOT_COLORS = 8,
    PLOT_MAX_SERIES = 24,
    PLOT_MAX_POINTS = 64,
    PLOT_MAX_GROUPS = 16,
    PLOT_NAME = 64,
};

struct plot_series {
    char name[PLOT_NAME];
    int color;
    bool dashed;
    double x[PLOT_MAX_POINTS], y[PLOT_MAX_POINTS];
    double error[PLOT_MAX_POINTS]; /* half of an interval; 0: none */
    int n;
};

struct plot {
    const char *title, *note; /* note: what the figure says, one line */
    const char *x_label, *y_label;
    bool lengths; /* x are powers of two and the like: logarithmic, marked where the points are */
    struct plot_series series[PLOT_MAX_SERIES];
    int n;
};

/* Groups of bars that stand side by side, one colour a series. */
struct plot_bars {
    const char *title, *note;
    const char *y_label;
    char groups[PLOT_MAX_GROUPS][PLOT_NAME];
    double keys[PLOT_MAX_GROUPS]; /* what the groups are in the order of */
    int n_groups;
    char series[PLOT_MAX_SERIES][PLOT_NAME];
    int colors[PLOT_MAX_SERIES];
    int n_series;
    double values[PLOT_MAX_GROUPS][PLOT_MAX_SERIES]; /* below 0: none */
    double errors[PLOT_MAX_GROUPS][PLOT_MAX_SERIES];
    const char *suffix; /* of the numbers above the bars, such as "x" */
    double reference;   /* a line across; 0: none */
};

/* Bars that lie, each a sum of parts; parts are the series. */
struct plot_stack {
    const char *title, *note;
    const char *unit;
    char rows[PLOT_MAX_GROUPS][PLOT_NAME];
    int n_rows;
    const char *const *parts;
    int n_parts;
    double values[PLOT_MAX_GROUPS][PLOT_COLORS];
};

void plot_draw(struct html *html, const struct plot *plot);
void plot_draw_bars(struct html *html, const struct plot_bars *bars);
void plot_draw_stack(struct html *html, const struct plot_stack *stack);

/* ---- what the kinds share ---- */

/* Round steps that cover 0..max, at most about `wanted` of them. */
struct plot_ticks {
    double step;
    int n; /* ticks at 0, step, ... (n - 1) step >= max */
};
struct plot_ticks plot_ticks_for(double max, int wanted);
/* "8k", "1.5", "12,000" */
void plot_format(char *out, size_t out_size, double value);
void plot_begin(struct html *html, const char *title, const char *note);
void plot_end(struct html *html);
/* One entry of the legend between <p class="legend"> and </p>. */
void plot_legend(struct html *html, const char *name, int color, bool bar);
/* The horizontal lines and their numbers. */
void plot_y_axis(struct html *html, const struct plot_ticks *ticks, const char *label);
double plot_y(const struct plot_ticks *ticks, double value);

enum plot_box { /* of the drawing, in user units */
                PLOT_WIDTH = 640,
                PLOT_HEIGHT = 340,
                PLOT_LEFT = 62,
                PLOT_RIGHT = 624,
                PLOT_TOP = 30,
                PLOT_BOTTOM = 290,
};

#endif
