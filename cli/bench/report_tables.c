/* The figures behind the plots, and what was run. */
#include "cli/bench/report.h"

#include <math.h>
#include <stdio.h>

struct column {
    const char *title, *key;
    double scale;
    int digits;
};

static void cell(struct html *html, const cJSON *object, const struct column *column)
{
    double value = report_number(object, column->key) * column->scale;

    if (isfinite(value)) {
        html_add(html, "<td>%.*f</td>", column->digits, value);
    } else {
        html_add(html, "<td>–</td>");
    }
}

static void text_cell(struct html *html, const char *text)
{
    html_add(html, "<td class=\"text\">");
    html_text(html, text);
    html_add(html, "</td>");
}

/* "FASTKV", or "night run (FASTKV)" where there is a label. */
static void run_cell(struct html *html, const cJSON *run)
{
    html_add(html, "<td class=\"text\">");
    html_text(html, report_name(run));
    if (report_text(run, "label")[0]) {
        html_add(html, " (");
        html_text(html, report_text(run, "method"));
        html_add(html, ")");
    }
    html_add(html, "</td>");
}

static void head(struct html *html, const char *const *texts, int n_texts,
                 const struct column *columns, int n)
{
    html_add(html, "<div class=\"scroll\"><table><thead><tr>");
    for (int i = 0; i < n_texts; i++) {
        html_add(html, "<th class=\"text\">%s</th>", texts[i]);
    }
    for (int i = 0; i < n; i++) {
        html_add(html, "<th>%s</th>", columns[i].title);
    }
    html_add(html, "</tr></thead><tbody>\n");
}

static void load_table(struct report *report)
{
    static const struct column columns[] = {
        {"rate", "request_rate", 1, 2},
        {"at once", "max_concurrent_requests", 1, 0},
        {"done", "completed", 1, 0},
        {"failed", "failed", 1, 0},
        {"requests/s", "request_throughput", 1, 2},
        {"tokens/s", "output_throughput", 1, 1},
        {"TTFT ms", "median_ttft_ms", 1, 1},
        {"TTFT P99", "p99_ttft_ms", 1, 1},
        {"TPOT ms", "median_tpot_ms", 1, 2},
        {"TPOT P99", "p99_tpot_ms", 1, 2},
        {"E2EL ms", "median_e2el_ms", 1, 1},
        {"coll. ms", "mean_collective_ms", 1, 1},
        {"KV kept %", "kept_ratio", 100, 1},
        {"KV MiB", "kv_bytes", 1.0 / (1 << 20), 1},
        {"worker MiB", "worker_memory_peak_bytes", 1.0 / (1 << 20), 0},
    };
    static const char *const texts[] = {"run"};
    const int n = sizeof(columns) / sizeof(columns[0]);
    bool any = false;

    for (int i = 0; i < report->n; i++) {
        const cJSON *run = report->runs[i];
        if (!report_is(run, "serve")) {
            continue;
        }
        if (!any) {
            head(&report->html, texts, 1, columns, n);
            any = true;
        }
        html_add(&report->html, "<tr>");
        run_cell(&report->html, run);
        for (int c = 0; c < n; c++) {
            cell(&report->html, run, &columns[c]);
        }
        html_add(&report->html, "</tr>\n");
    }
    if (any) {
        html_add(&report->html, "</tbody></table></div>\n");
    }
}

static const char *const sweep_texts[] = {"protocol", "method"};
static const struct column sweep_columns[] = {
    {"tokens", "input_len", 1, 0},
    {"runs", "num_runs", 1, 0},
    {"TTFT ms", "mean_ttft_ms", 1, 1},
    {"± 95 %", "ci95_ttft_ms", 1, 1},
    {"E2EL ms", "mean_e2el_ms", 1, 1},
    {"± 95 %", "ci95_e2el_ms", 1, 1},
    {"tokens/s", "mean_tokens_per_s", 1, 1},
    {"± 95 %", "ci95_tokens_per_s", 1, 1},
    {"coll. ms", "mean_collective_ms", 1, 1},
    {"propagated %", "propagated_ratio", 100, 1},
    {"KV kept %", "kept_ratio", 100, 1},
    {"KV MiB", "kv_bytes", 1.0 / (1 << 20), 1},
    {"worker MiB", "worker_memory_peak_bytes", 1.0 / (1 << 20), 0},
};
enum { N_SWEEP_COLUMNS = sizeof(sweep_columns) / sizeof(sweep_columns[0]) };

static void sweep_row(struct report *report, const cJSON *run, const cJSON *one)
{
    html_add(&report->html, "<tr>");
    text_cell(&report->html, report_text(run, "winnow_bench"));
    text_cell(&report->html, report_text(one, "method"));
    for (int c = 0; c < N_SWEEP_COLUMNS; c++) {
        cell(&report->html, one, &sweep_columns[c]);
    }
    html_add(&report->html, "</tr>\n");
}

static void sweep_table(struct report *report)
{
    bool any = false;

    for (int i = 0; i < report->n; i++) {
        const cJSON *list = cJSON_GetObjectItemCaseSensitive(report->runs[i], "results");
        const cJSON *one;
        cJSON_ArrayForEach(one, list)
        {
            if (!any) {
                head(&report->html, sweep_texts, 2, sweep_columns, N_SWEEP_COLUMNS);
                any = true;
            }
            sweep_row(report, report->runs[i], one);
        }
    }
    if (any) {
        html_add(&report->html, "</tbody></table></div>\n");
    }
}

void report_tables(struct report *report)
{
    html_add(&report->html, "<section class=\"figures\"><h2>All figures</h2>\n");
    load_table(report);
    sweep_table(report);
    html_add(&report->html, "</section>\n");
}
