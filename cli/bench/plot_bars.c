/* Bars: side by side in groups, or lying and made of parts. */
#include "cli/bench/plot.h"

#include <math.h>
#include <stdio.h>

/* ---- groups ---- */

static double tallest(const struct plot_bars *bars)
{
    double top = bars->reference;

    for (int g = 0; g < bars->n_groups; g++) {
        for (int s = 0; s < bars->n_series; s++) {
            double value = bars->values[g][s];
            top = fmax(top, fmin(value + bars->errors[g][s], value * 1.25));
        }
    }
    return top;
}

static void draw_bar(struct html *html, const struct plot_bars *bars, int g, int s, double x,
                     double width, const struct plot_ticks *ticks)
{
    double value = bars->values[g][s];
    double y = plot_y(ticks, value);
    double half = bars->errors[g][s];
    double top = ticks->step * (ticks->n - 1);
    char number[32];

    if (bars->reference > 0) {
        snprintf(number, sizeof(number), "%.2f", value); /* ratios all alike */
    } else {
        plot_format(number, sizeof(number), value);
    }
    html_add(html, "<g><title>");
    html_text(html, bars->series[s]);
    html_add(html, ", ");
    html_text(html, bars->groups[g]);
    html_add(html, ": %s%s</title>", number, bars->suffix);
    html_add(html, "<path class=\"f%d\" d=\"M%.1f %dV%.1fh%.1fV%dz\"/>", bars->colors[s], x,
             PLOT_BOTTOM, y, width, PLOT_BOTTOM);
    if (half > 0) {
        html_add(html, "<path class=\"whisker\" d=\"M%.1f %.1fh6m-3 0V%.1fm-3 0h6\"/>",
                 x + width / 2 - 3, plot_y(ticks, fmin(value + half, top)),
                 plot_y(ticks, fmax(value - half, 0)));
    }
    if (width >= 34) {
        double above = plot_y(ticks, fmin(value + half, top));
        html_add(html,
                 "<text class=\"value\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s%s</text>",
                 x + width / 2, above - 5, number, bars->suffix);
    }
    html_add(html, "</g>");
}

static void draw_group(struct html *html, const struct plot_bars *bars, int g,
                       const struct plot_ticks *ticks)
{
    double slot = (double)(PLOT_RIGHT - PLOT_LEFT) / bars->n_groups;
    double left = PLOT_LEFT + slot * g;
    double width = fmin(slot * 0.82 / bars->n_series, 64);
    double x = left + (slot - width * bars->n_series) / 2;

    for (int s = 0; s < bars->n_series; s++) {
        if (bars->values[g][s] >= 0) {
            draw_bar(html, bars, g, s, x + width * s + 1, width - 2, ticks);
        }
    }
    html_add(html, "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">",
             left + slot / 2, PLOT_BOTTOM + 20);
    html_text(html, bars->groups[g]);
    html_add(html, "</text>");
}

void plot_draw_bars(struct html *html, const struct plot_bars *bars)
{
    struct plot_ticks ticks = plot_ticks_for(tallest(bars) * 1.06, 5);

    plot_begin(html, bars->title, bars->note);
    html_add(html, "<p class=\"legend\">");
    for (int s = 0; s < bars->n_series; s++) {
        plot_legend(html, bars->series[s], bars->colors[s], true);
    }
    html_add(html, "</p><svg class=\"plot\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"",
             PLOT_WIDTH, PLOT_HEIGHT - 20);
    html_text(html, bars->title);
    html_add(html, "\">");
    plot_y_axis(html, &ticks, bars->y_label);
    if (bars->reference > 0) {
        html_add(html, "<path class=\"reference\" d=\"M%d %.1fH%d\"/>", PLOT_LEFT,
                 plot_y(&ticks, bars->reference), PLOT_RIGHT);
    }
    for (int g = 0; g < bars->n_groups; g++) {
        draw_group(html, bars, g, &ticks);
    }
    plot_end(html);
}

/* ---- stacks ---- */

enum { STACK_LEFT = 170, STACK_ROW = 34, STACK_BAR = 20 };

static double row_sum(const struct plot_stack *stack, int row)
{
    double sum = 0;

    for (int p = 0; p < stack->n_parts; p++) {
        sum += stack->values[row][p];
    }
    return sum;
}

static void draw_row(struct html *html, const struct plot_stack *stack, int row, double scale)
{
    double x = STACK_LEFT;
    double y = 6 + STACK_ROW * row;
    char number[32];

    html_add(html, "<text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">", STACK_LEFT - 8,
             y + STACK_BAR * 0.7);
    html_text(html, stack->rows[row]);
    html_add(html, "</text>");
    for (int p = 0; p < stack->n_parts; p++) {
        double width = stack->values[row][p] * scale;
        plot_format(number, sizeof(number), stack->values[row][p]);
        html_add(html,
                 "<g><title>%s: %s %s</title><rect class=\"p%d\" x=\"%.1f\" y=\"%.1f\" "
                 "width=\"%.1f\" height=\"%d\"/></g>",
                 stack->parts[p], number, stack->unit, p, x, y, width, STACK_BAR);
        x += width;
    }
    plot_format(number, sizeof(number), row_sum(stack, row));
    html_add(html, "<text class=\"value\" x=\"%.1f\" y=\"%.1f\">%s %s</text>", x + 6,
             y + STACK_BAR * 0.7, number, stack->unit);
}

void plot_draw_stack(struct html *html, const struct plot_stack *stack)
{
    double top = 0;

    for (int r = 0; r < stack->n_rows; r++) {
        top = fmax(top, row_sum(stack, r));
    }
    plot_begin(html, stack->title, stack->note);
    html_add(html, "<p class=\"legend\">");
    for (int p = 0; p < stack->n_parts; p++) {
        html_add(html,
                 "<span><svg width=\"14\" height=\"12\" aria-hidden=\"true\"><rect class=\"p%d\" "
                 "width=\"12\" height=\"12\" rx=\"2\"/></svg>%s</span>",
                 p, stack->parts[p]);
    }
    html_add(html, "</p><svg class=\"plot\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"",
             PLOT_WIDTH, STACK_ROW * stack->n_rows + 8);
    html_text(html, stack->title);
    html_add(html, "\">");
    for (int r = 0; r < stack->n_rows; r++) {
        draw_row(html, stack, r, top > 0 ? (PLOT_WIDTH - STACK_LEFT - 90) / top : 0);
    }
    plot_end(html);
}
