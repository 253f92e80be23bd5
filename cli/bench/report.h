/* report.h - result files as one page: what its parts share. */
#ifndef CLI_BENCH_REPORT_H
#define CLI_BENCH_REPORT_H

#include "cli/bench/html.h"
#include "cli/bench/plot.h"

#include <cjson/cJSON.h>

enum report_limits {
    REPORT_MAX_RUNS = 64, /* files */
    REPORT_MAX_NAMES = 64,
};

struct report {
    cJSON *runs[REPORT_MAX_RUNS];
    int n;
    const char *names[REPORT_MAX_NAMES]; /* borrowed from the runs: each has a colour */
    int n_names;
    struct html html;
};

/* Reads the files; the report is to be freed also after a failure. */
status report_read(struct report *out, const char *const *paths, int n);
void report_free(struct report *report);

double report_number(const cJSON *object, const char *key); /* NAN: it is not there */
const char *report_text(const cJSON *object, const char *key);
bool report_is(const cJSON *run, const char *command);
/* What a run under load is called: its label, or its method. */
const char *report_name(const cJSON *run);
/* FULL has the first colour, the others theirs as they come. */
int report_color(struct report *report, const char *name);

void report_load(struct report *report);  /* runs of serve */
void report_sweep(struct report *report); /* prefill, e2e, throughput */
void report_tables(struct report *report);
/* From <!doctype> to the end; STATUS_EXHAUSTED. */
status report_page(struct report *report, const char *title);

extern const char report_style[];

#endif
