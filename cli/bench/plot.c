#include "cli/bench/plot.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct plot_ticks plot_ticks_for(double max, int wanted)
{
    static const double steps[] = {1, 2, 5, 10};
    double rough = max > 0 ? max / wanted : 1.0 / wanted;
    double base = pow(10, floor(log10(rough)));
    struct plot_ticks ticks = {.step = base * 10};

    for (int i = 0; i < 4; i++) {
        if (base * steps[i] >= rough * 0.999999) {
            ticks.step = base * steps[i];
            break;
        }
    }
    ticks.n = (int)ceil(max / ticks.step - 1e-9) + 1;
    ticks.n = ticks.n < 2 ? 2 : ticks.n;
    return ticks;
}

void plot_format(char *out, size_t out_size, double value)
{
    double size = fabs(value);

    if (size >= 1024 && fmod(value, 1024) == 0) {
        snprintf(out, out_size, "%.0fk", value / 1024);
    } else if (size >= 10000) {
        double whole = round(value);
        snprintf(out, out_size, "%.0f,%03.0f", floor(whole / 1000), fmod(whole, 1000));
    } else if (size >= 100) {
        snprintf(out, out_size, "%.0f", value);
    } else {
        snprintf(out, out_size, "%.3g", value);
    }
}

void plot_begin(struct html *html, const char *title, const char *note)
{
    html_add(html, "<figure><figcaption><b>");
    html_text(html, title);
    html_add(html, "</b>");
    if (note) {
        html_add(html, "<span>");
        html_text(html, note);
        html_add(html, "</span>");
    }
    html_add(html, "</figcaption>\n");
}

void plot_end(struct html *html)
{
    html_add(html, "</svg></figure>\n");
}

/* ---- marks ---- */

static void draw_mark(struct html *html, int color, double x, double y)
{
    double r = 4;

    html_add(html, "<path class=\"f%d\" d=\"", color);
    switch (color % 4) {
    case 0:
        html_add(html, "M%.1f %.1fh%.1fv%.1fh%.1fz", x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8,
                 -r * 1.8);
        break;
    case 1:
        html_add(html, "M%.1f %.1fa%g %g 0 1 0 %g 0a%g %g 0 1 0 %g 0z", x - r, y, r, r, 2 * r, r, r,
                 -2 * r);
        break;
    case 2:
        html_add(html, "M%.1f %.1fl%.1f %.1fh%.1fz", x, y - r * 1.2, r * 1.2, r * 2, -r * 2.4);
        break;
    default:
        html_add(html, "M%.1f %.1fl%.1f %.1fl%.1f %.1fl%.1f %.1fz", x, y - r * 1.3, r * 1.3,
                 r * 1.3, -r * 1.3, r * 1.3, -r * 1.3, -r * 1.3);
    }
    html_add(html, "\"/>");
}

void plot_legend(struct html *html, const char *name, int color, bool bar)
{
    int width = bar ? 12 : 26;

    html_add(html,
             "<span><svg width=\"%d\" height=\"12\" viewBox=\"0 0 %d 12\" aria-hidden=\"true\">",
             width, width);
    if (bar) {
        html_add(html, "<rect class=\"f%d\" width=\"12\" height=\"12\" rx=\"2\"/>", color);
    } else {
        html_add(html, "<path class=\"s%d\" d=\"M0 6h26\"/>", color);
        draw_mark(html, color, 13, 6);
    }
    html_add(html, "</svg>");
    html_text(html, name);
    html_add(html, "</span>");
}

/* ---- axes ---- */

double plot_y(const struct plot_ticks *ticks, double value)
{
    double top = ticks->step * (ticks->n - 1);

    return PLOT_BOTTOM - value / top * (PLOT_BOTTOM - PLOT_TOP);
}

void plot_y_axis(struct html *html, const struct plot_ticks *ticks, const char *label)
{
    char number[32];

    html_add(html, "<text class=\"axis\" x=\"0\" y=\"14\">");
    html_text(html, label);
    html_add(html, "</text>");
    for (int i = 0; i < ticks->n; i++) {
        double y = plot_y(ticks, i * ticks->step);
        plot_format(number, sizeof(number), i * ticks->step);
        html_add(html,
                 "<path class=\"%s\" d=\"M%d %.1fH%d\"/>"
                 "<text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>",
                 i ? "grid" : "base", PLOT_LEFT, y, PLOT_RIGHT, PLOT_LEFT - 8, y + 4, number);
    }
}

struct x_scale {
    bool lengths;
    double low, high;
    struct plot_ticks ticks;
};

static double scale_x(const struct x_scale *scale, double x)
{
    double left = PLOT_LEFT + 20;
    double right = PLOT_RIGHT - 20;
    double part = 0.5;

    if (scale->lengths) {
        if (scale->high > scale->low) {
            part = log(x / scale->low) / log(scale->high / scale->low);
        }
        return left + part * (right - left);
    }
    return PLOT_LEFT + x / (scale->ticks.step * (scale->ticks.n - 1)) * (right - PLOT_LEFT);
}

static void draw_x_tick(struct html *html, double at, double value)
{
    char number[32];

    plot_format(number, sizeof(number), value);
    html_add(html,
             "<path class=\"base\" d=\"M%.1f %dv5\"/>"
             "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>",
             at, PLOT_BOTTOM, at, PLOT_BOTTOM + 20, number);
}

/* The smallest x of any point that is larger; infinity behind the last. */
static double next_x(const struct plot *plot, double x)
{
    double next = (double)INFINITY;

    for (int s = 0; s < plot->n; s++) {
        for (int i = 0; i < plot->series[s].n; i++) {
            double other = plot->series[s].x[i];
            next = other > x && other < next ? other : next;
        }
    }
    return next;
}

/* A length is marked where there is room beside the one before. */
static void draw_lengths(struct html *html, const struct plot *plot, const struct x_scale *scale)
{
    double last = -1e9;
    double x = next_x(plot, 0);

    while (isfinite(x)) {
        double at = scale_x(scale, x);
        if (at - last > 34) {
            draw_x_tick(html, at, x);
            last = at;
        }
        x = next_x(plot, x);
    }
}

static void draw_x_axis(struct html *html, const struct plot *plot, const struct x_scale *scale)
{
    if (scale->lengths) {
        draw_lengths(html, plot, scale);
    } else {
        for (int i = 0; i < scale->ticks.n; i++) {
            double x = i * scale->ticks.step;
            draw_x_tick(html, scale_x(scale, x), x);
        }
    }
    html_add(html, "<text class=\"axis\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">",
             (PLOT_LEFT + PLOT_RIGHT) / 2, PLOT_HEIGHT - 8);
    html_text(html, plot->x_label);
    html_add(html, "</text>");
}

/* ---- lines ---- */

static void draw_error(struct html *html, const struct plot_series *s, int i, double x,
                       const struct plot_ticks *y)
{
    double low = fmax(s->y[i] - s->error[i], 0);
    double high = fmin(s->y[i] + s->error[i], y->step * (y->n - 1));

    if (s->error[i] > 0) {
        html_add(html, "<path class=\"s%d thin\" d=\"M%.1f %.1fh8m-4 0V%.1fm-4 0h8\"/>", s->color,
                 x - 4, plot_y(y, high), plot_y(y, low));
    }
}

/* Points at the same length stand a little apart, or their intervals would hide each other. */
static void draw_series(struct html *html, const struct plot_series *s, const struct x_scale *scale,
                        const struct plot_ticks *y, double aside)
{
    char x_text[32];
    char y_text[32];

    html_add(html, "<path class=\"s%d%s\" d=\"", s->color, s->dashed ? " dash" : "");
    for (int i = 0; i < s->n; i++) {
        html_add(html, "%s%.1f %.1f", i ? "L" : "M", scale_x(scale, s->x[i]) + aside,
                 plot_y(y, s->y[i]));
    }
    html_add(html, "\"/>");
    for (int i = 0; i < s->n; i++) {
        double x = scale_x(scale, s->x[i]) + aside;
        plot_format(x_text, sizeof(x_text), s->x[i]);
        plot_format(y_text, sizeof(y_text), s->y[i]);
        html_add(html, "<g><title>");
        html_text(html, s->name);
        html_add(html, "%s, %s: %s</title>", s->dashed ? " (dashed)" : "", x_text, y_text);
        draw_error(html, s, i, x, y);
        draw_mark(html, s->color, x, plot_y(y, s->y[i]));
        html_add(html, "</g>");
    }
}

static void measure(const struct plot *plot, struct x_scale *scale, struct plot_ticks *y)
{
    double top = 0;

    *scale = (struct x_scale){.lengths = plot->lengths, .low = (double)INFINITY};
    for (int s = 0; s < plot->n; s++) {
        const struct plot_series *series = &plot->series[s];
        for (int i = 0; i < series->n; i++) {
            /* An interval that would dwarf the values is cut off at the top. */
            top = fmax(top, fmin(series->y[i] + series->error[i], series->y[i] * 1.25));
            scale->low = fmin(scale->low, series->x[i]);
            scale->high = fmax(scale->high, series->x[i]);
        }
    }
    scale->ticks = plot_ticks_for(scale->high, 8);
    *y = plot_ticks_for(top, 5);
}

void plot_draw(struct html *html, const struct plot *plot)
{
    struct x_scale scale;
    struct plot_ticks y;

    plot_begin(html, plot->title, plot->note);
    html_add(html, "<p class=\"legend\">");
    for (int s = 0; s < plot->n; s++) {
        if (!plot->series[s].dashed) {
            plot_legend(html, plot->series[s].name, plot->series[s].color, false);
        }
    }
    html_add(html, "</p><svg class=\"plot\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"",
             PLOT_WIDTH, PLOT_HEIGHT);
    html_text(html, plot->title);
    html_add(html, "\">");
    measure(plot, &scale, &y);
    plot_y_axis(html, &y, plot->y_label);
    draw_x_axis(html, plot, &scale);
    for (int s = 0; s < plot->n; s++) {
        double aside = plot->lengths ? 4 * (s - (plot->n - 1) / 2.0) : 0;
        draw_series(html, &plot->series[s], &scale, &y, aside);
    }
    plot_end(html);
}
