#include "cli/bench/report.h"

#include "cli/bench/bench.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "common/options.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PROGRAM "winnow bench report"

/* ---- the head of the page ---- */

static void tile(struct html *html, const char *value, const char *name, const char *what)
{
    html_add(html, "<li><b>");
    html_text(html, value);
    html_add(html, "</b><span>");
    html_text(html, name);
    html_add(html, "%s</span></li>\n", what);
}

/* The best of a figure over the runs under load. */
static void load_tile(struct report *report, const char *key, const char *unit, const char *what)
{
    const cJSON *best = NULL;
    char number[32];
    char value[64];

    for (int i = 0; i < report->n; i++) {
        double mine = report_number(report->runs[i], key);
        if (isfinite(mine) && (!best || mine > report_number(best, key))) {
            best = report->runs[i];
        }
    }
    if (best) {
        plot_format(number, sizeof(number), report_number(best, key));
        snprintf(value, sizeof(value), "%s %s", number, unit);
        tile(&report->html, value, report_name(best), what);
    }
}

/* The longest prompt's speed-up of a method over FULL in one sweep. */
static void sweep_tile(struct report *report, const cJSON *run, const char *key, const char *what)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(run, "results");
    const cJSON *one;
    const cJSON *full;
    double best = 0;
    double length = 0;
    const char *name = "";
    bool rate = strcmp(key, "mean_tokens_per_s") == 0;

    cJSON_ArrayForEach(full, list)
    {
        cJSON_ArrayForEach(one, list)
        {
            double n = report_number(one, "input_len");
            double ratio = report_number(full, key) / report_number(one, key);
            ratio = rate ? 1 / ratio : ratio;
            if (strcmp(report_text(full, "method"), "FULL") == 0 && one != full &&
                n == report_number(full, "input_len") && isfinite(ratio) &&
                (n > length || (n == length && ratio > best))) {
                best = ratio;
                length = n;
                name = report_text(one, "method");
            }
        }
    }
    if (best > 0) {
        char tokens[32];
        char value[64];
        char text[128];
        plot_format(tokens, sizeof(tokens), length);
        snprintf(value, sizeof(value), "%.2f×", best);
        snprintf(text, sizeof(text), " at %s tokens: %s", tokens, what);
        tile(&report->html, value, name, text);
    }
}

static void tiles(struct report *report)
{
    html_add(&report->html, "<ul class=\"tiles\">\n");
    for (int i = 0; i < report->n; i++) {
        const cJSON *run = report->runs[i];
        if (report_is(run, "prefill")) {
            sweep_tile(report, run, "mean_ttft_ms", "first token sooner");
        } else if (report_is(run, "e2e")) {
            sweep_tile(report, run, "mean_e2el_ms", "whole answer sooner");
        } else if (report_is(run, "throughput")) {
            sweep_tile(report, run, "mean_tokens_per_s", "faster decoding");
        }
    }
    load_tile(report, "output_throughput", "tokens/s", ": most output under load");
    load_tile(report, "request_goodput", "requests/s", ": best goodput");
    html_add(&report->html, "</ul>\n");
}

static bool told_before(const struct report *report, int i, const char *key)
{
    for (int k = 0; k < i; k++) {
        if (strcmp(report_text(report->runs[k], key), report_text(report->runs[i], key)) == 0) {
            return true;
        }
    }
    return false;
}

/* "model (8 layers, float32, tensor parallel 2)", once each. */
static void facts(struct report *report)
{
    struct html *html = &report->html;

    html_add(html, "<p class=\"facts\">");
    for (int i = 0; i < report->n; i++) {
        const cJSON *model = cJSON_GetObjectItemCaseSensitive(report->runs[i], "model");
        if (told_before(report, i, "model_id")) {
            continue;
        }
        html_add(html, "%s", i ? "; " : "");
        html_text(html, report_text(report->runs[i], "model_id"));
        html_add(html, " (%.0f layers, ", fmax(report_number(model, "layers"), 0));
        html_text(html, report_text(model, "dtype"));
        html_add(html, ", tensor parallel %.0f)", fmax(report_number(model, "tensor_parallel"), 0));
    }
    html_add(html, " · winnow ");
    html_text(html, report_text(report->runs[0], "winnow_version"));
    html_add(html, " · %d %s</p>\n", report->n, report->n == 1 ? "result" : "results");
}

status report_page(struct report *report, const char *title)
{
    struct html *html = &report->html;

    report_color(report, "FULL");
    html_add(html, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                   "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
                   "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
                   "style-src 'unsafe-inline'\">\n<title>");
    html_text(html, title);
    html_add(html, "</title>\n<style>%s</style></head>\n<body><main>\n<header><h1>", report_style);
    html_text(html, title);
    html_add(html, "</h1>\n");
    facts(report);
    tiles(report);
    html_add(html, "</header>\n");
    report_sweep(report);
    report_load(report);
    report_tables(report);
    html_add(html, "<footer>TTFT: time to first token. TPOT: time per output token after the "
                   "first. ITL: inter-token latency. E2EL: end-to-end latency. coll.: time in "
                   "collectives between ranks. Times are the "
                   "client's unless a figure says otherwise. Made by winnow bench report; the "
                   "result files hold the rest.</footer>\n</main></body></html>\n");
    return html_finish(html);
}

/* ---- the command ---- */

static status make(const char *const *paths, int n, const char *title, const char *output)
{
    struct report report = {.n = 0};
    status st = report_read(&report, paths, n);

    st = st ? st : report_page(&report, title);
    if (!st && strcmp(output, "-") == 0) {
        print_out("%s", report.html.data);
    } else if (!st) {
        st = print_file(output, report.html.data);
        if (!st) {
            print_note("written: %s\n", output);
        }
    }
    report_free(&report);
    return st;
}

int report_main(int argc, char **argv)
{
    const char *paths[REPORT_MAX_RUNS];
    const char *output = "winnow-report.html";
    const char *title = "winnow bench";
    enum options_outcome outcome;
    const struct option table[] = {
        {"output", OPTION_STRING, &output, "FILE", "the page; - is stdout", 0, 0},
        {"title", OPTION_STRING, &title, "TEXT", "of the page", 0, 0},
    };
    struct options options = {
        .program = PROGRAM,
        .synopsis = "Make one page with plots of result files (JSON) of winnow bench.",
        .table = table,
        .n = sizeof(table) / sizeof(table[0]),
        .positional = paths,
        .max_positional = REPORT_MAX_RUNS,
    };

    status st = options_parse(&options, argc, argv, &outcome);
    if (!st && outcome == OPTIONS_RUN && options.n_positional == 0) {
        st = status_fail(STATUS_INVALID, "give result files");
    }
    if (st) {
        print_usage_failure(PROGRAM);
        return EXIT_USAGE;
    }
    if (outcome != OPTIONS_RUN) {
        return print_finish();
    }
    st = make(paths, options.n_positional, title, output);
    if (st) {
        print_failure(PROGRAM, st);
        return EXIT_ERROR;
    }
    return print_finish();
}
