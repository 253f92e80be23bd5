/* Reading results, and looking things up in them. */
#include "cli/bench/report.h"
#include "cli/bench/result.h"

#include <math.h>
#include <string.h>

status report_read(struct report *out, const char *const *paths, int n)
{
    status st = STATUS_OK;

    if (n > REPORT_MAX_RUNS) {
        return status_fail(STATUS_INVALID, "more than %d files", REPORT_MAX_RUNS);
    }
    for (int i = 0; !st && i < n; i++) {
        st = result_read(&out->runs[i], paths[i]);
        out->n += st ? 0 : 1;
    }
    return st;
}

void report_free(struct report *report)
{
    for (int i = 0; i < report->n; i++) {
        cJSON_Delete(report->runs[i]);
    }
    html_free(&report->html);
}

double report_number(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);

    return cJSON_IsNumber(item) ? item->valuedouble : (double)NAN;
}

const char *report_text(const cJSON *object, const char *key)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));

    return text ? text : "";
}

bool report_is(const cJSON *run, const char *command)
{
    return strcmp(report_text(run, "winnow_bench"), command) == 0;
}

const char *report_name(const cJSON *run)
{
    const char *label = report_text(run, "label");

    return label[0] ? label : report_text(run, "method");
}

int report_color(struct report *report, const char *name)
{
    if (strcmp(name, "FULL") == 0) {
        return 0;
    }
    for (int i = 0; i < report->n_names; i++) {
        if (strcmp(report->names[i], name) == 0) {
            return 1 + i % (PLOT_COLORS - 1);
        }
    }
    if (report->n_names < REPORT_MAX_NAMES) {
        report->names[report->n_names++] = name;
    }
    return 1 + (report->n_names - 1) % (PLOT_COLORS - 1);
}
