/* What a sweep found, as JSON and as a table. */
#include "cli/bench/sweep.h"
#include "cli/json_text.h"
#include "cli/print.h"

#include <stdio.h>
#include <string.h>

static const char *const names[SWEEP_MEASURES] = {"ttft_ms",   "e2el_ms",       "prefill_ms",
                                                  "decode_ms", "collective_ms", "tokens_per_s"};

const char *sweep_measure_name(enum sweep_measure measure)
{
    return names[measure];
}

static bool add_number(cJSON *o, const char *statistic, const char *name, double value)
{
    char key[64];

    snprintf(key, sizeof(key), "%s_%s", statistic, name);
    return cJSON_AddNumberToObject(o, key, value) != NULL;
}

static bool add_measure(cJSON *o, const char *name, const struct series *series)
{
    bool ok = add_number(o, "mean", name, series_mean(series)) &&
              add_number(o, "median", name, series_percentile(series, 50)) &&
              add_number(o, "std", name, series_std(series)) &&
              add_number(o, "ci95", name, series_ci95(series));
    cJSON *runs = ok ? cJSON_AddArrayToObject(o, name) : NULL;

    ok = runs != NULL;
    for (size_t i = 0; ok && i < series->n; i++) {
        cJSON *value = cJSON_CreateNumber(series->values[i]);
        ok = value && cJSON_AddItemToArray(runs, value);
    }
    return ok;
}

/* A first token is no decoding, and has no speed of its own. */
static bool counts(enum sweep_measure measure, const struct sweep_options *options)
{
    return options->kind != SWEEP_PREFILL || (measure != SWEEP_DECODE_MS && measure != SWEEP_RATE);
}

bool sweep_case_add_json(cJSON *list, const struct sweep_case *one,
                         const struct sweep_options *options)
{
    cJSON *o = cJSON_CreateObject();
    bool ok = o && cJSON_AddItemToArray(list, o) &&
              cJSON_AddStringToObject(o, "method", method_name(one->method)) &&
              cJSON_AddNumberToObject(o, "input_len", one->input_len) &&
              cJSON_AddNumberToObject(o, "output_len", (double)options->output_len) &&
              cJSON_AddNumberToObject(o, "num_runs", (double)one->measures[SWEEP_TTFT].n);

    if (ok && one->failure.code) {
        ok = json_text_add(o, "error", one->failure.text, strlen(one->failure.text));
    }
    if (!ok || one->measures[SWEEP_TTFT].n == 0) {
        return ok;
    }
    for (int m = 0; ok && m < SWEEP_MEASURES; m++) {
        if (counts((enum sweep_measure)m, options)) {
            ok = add_measure(o, names[m], &one->measures[m]);
        }
    }
    return ok && cJSON_AddNumberToObject(o, "propagated_ratio", one->propagated_ratio) &&
           cJSON_AddNumberToObject(o, "kept_ratio", one->kept_ratio) &&
           cJSON_AddNumberToObject(o, "kv_bytes", one->kv_bytes) &&
           cJSON_AddNumberToObject(o, "kv_bytes_full", one->kv_bytes_full) &&
           cJSON_AddNumberToObject(o, "worker_memory_peak_bytes", one->memory_peak_bytes);
}

/* ---- the table ---- */

static enum sweep_measure main_measure(enum sweep_kind kind)
{
    static const enum sweep_measure measures[] = {SWEEP_TTFT, SWEEP_E2EL, SWEEP_RATE};

    return measures[kind];
}

/* How much better than FULL at the same length; 0: FULL was not measured. */
static double speed_up(const struct sweep_case *cases, int n, const struct sweep_case *one,
                       enum sweep_kind kind)
{
    enum sweep_measure measure = main_measure(kind);
    double mine = series_mean(&one->measures[measure]);

    for (int i = 0; i < n; i++) {
        double full = series_mean(&cases[i].measures[measure]);
        if (cases[i].method == METHOD_FULL && cases[i].input_len == one->input_len && full > 0 &&
            mine > 0) {
            return kind == SWEEP_THROUGHPUT ? mine / full : full / mine;
        }
    }
    return 0;
}

static void print_case(const struct sweep_case *cases, int n, const struct sweep_case *one,
                       enum sweep_kind kind)
{
    const struct series *series = &one->measures[main_measure(kind)];
    double ratio = speed_up(cases, n, one, kind);

    print_out("%-14s %9u ", method_name(one->method), one->input_len);
    if (series->n == 0) {
        print_out("%s\n", one->failure.code ? print_status_name(one->failure.code) : "not run");
        return;
    }
    print_out("%5zu %12.2f %10.2f %10.2f ", series->n, series_mean(series), series_std(series),
              series_ci95(series));
    if (ratio > 0) {
        print_out("%8.2fx", ratio);
    } else {
        print_out("%9s", "-");
    }
    print_out(" %9.1f %12.1f\n", 100 * one->kept_ratio, one->kv_bytes / (1 << 20));
}

void sweep_print(const struct sweep_case *cases, int n, const struct sweep_options *options)
{
    static const char *const titles[] = {"TTFT (ms)", "total (ms)", "tokens/s"};

    print_out("%-14s %9s %5s %12s %10s %10s %9s %9s %12s\n", "method", "tokens", "runs",
              titles[options->kind], "std", "+- 95 %", "to FULL", "KV kept %", "KV (MiB)");
    for (int i = 0; i < n; i++) {
        print_case(cases, n, &cases[i], options->kind);
    }
}
