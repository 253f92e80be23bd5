#include "cli/progress.h"

#include "cli/print.h"

#include <stdio.h>
#include <string.h>

enum { BAR_WIDTH = 16, LINE_SIZE = 256 };

void progress_init(struct progress *progress, bool quiet, bool terminal)
{
    *progress =
        (struct progress){.quiet = quiet, .terminal = terminal, .last_line_s = -1, .prefill_s = -1};
}

static void draw_bar(char out[BAR_WIDTH + 3], float fraction)
{
    int full = (int)(fraction * BAR_WIDTH);

    out[0] = '[';
    for (int i = 0; i < BAR_WIDTH; i++) {
        out[i + 1] = i < full ? '#' : '.';
    }
    memcpy(out + BAR_WIDTH + 1, "]", 2);
}

/* "12 s left", from the pace since the first report; empty while there is no pace yet. */
static void time_left(const struct progress *progress, float fraction, double now_s, char *out,
                      size_t out_size)
{
    double done = fraction - progress->prefill_from;
    double elapsed = now_s - progress->prefill_s;

    out[0] = '\0';
    if (progress->prefill_s < 0 || done <= 0.01 || elapsed <= 0) {
        return;
    }
    double left = elapsed / done * (1 - fraction);
    if (left < 120) {
        snprintf(out, out_size, ", %.0f s left", left);
    } else {
        snprintf(out, out_size, ", %.0f min left", left / 60);
    }
}

static float clamp(float fraction)
{
    return fraction >= 0 && fraction <= 1 ? fraction : 0;
}

void progress_format(const struct progress *progress, const Winnow__V1__Progress *report,
                     double now_s, int columns, char *out, size_t out_size)
{
    char bar[BAR_WIDTH + 3];
    char left[48];
    char line[LINE_SIZE];
    float fraction = clamp(report->fraction);

    switch (report->phase) {
    case WINNOW__V1__PHASE__PHASE_QUEUED:
        snprintf(line, sizeof(line), "queued, %u tokens, position %u", report->prompt_tokens,
                 report->queue_position);
        break;
    case WINNOW__V1__PHASE__PHASE_PREFILL:
        draw_bar(bar, fraction);
        time_left(progress, fraction, now_s, left, sizeof(left));
        snprintf(line, sizeof(line), "reading %s%3.0f%%, layer %u/%u, token %u/%u%s",
                 progress->terminal ? bar : "", (double)fraction * 100, report->layer + 1,
                 report->layers, report->tokens_done, report->prompt_tokens, left);
        break;
    default:
        snprintf(line, sizeof(line), "answering");
        break;
    }
    size_t room = columns > 0 && (size_t)columns < out_size ? (size_t)columns + 1 : out_size;
    snprintf(out, room, "%s", line);
}

void progress_update(struct progress *progress, const Winnow__V1__Progress *report, double now_s)
{
    char line[LINE_SIZE];

    if (report->phase == WINNOW__V1__PHASE__PHASE_PREFILL && progress->prefill_s < 0) {
        progress->prefill_s = now_s;
        progress->prefill_from = clamp(report->fraction);
    }
    if (progress->quiet) {
        return;
    }
    if (progress->terminal) {
        progress_format(progress, report, now_s, print_stderr_columns() - 1, line, sizeof(line));
        print_note("\r%s\x1b[K", line);
        progress->drawn = true;
    } else if (progress->last_line_s < 0 || now_s - progress->last_line_s >= 1) {
        progress_format(progress, report, now_s, 0, line, sizeof(line));
        print_note("%s\n", line);
        progress->last_line_s = now_s;
    }
}

void progress_clear(struct progress *progress)
{
    if (progress->drawn) {
        print_note("\r\x1b[K");
        progress->drawn = false;
    }
}
