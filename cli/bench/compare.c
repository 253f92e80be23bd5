/* Two results side by side. */
#include "cli/bench/bench.h"
#include "cli/bench/result.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "common/options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PROGRAM "winnow bench compare"

/* What differs between two runs is what was measured; these say what was run. */
static bool is_setup(const char *key)
{
    static const char *const keys[] = {
        "num_prompts", "random_input_len", "random_output_len", "random_range_ratio",
        "seed",        "request_rate",     "burstiness",        "max_concurrency",
        "num_warmups", "connections",      "ramp_up_start_rps", "ramp_up_end_rps",
        "input_len",   "output_len",       "num_runs",          "token_id",
    };

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (strcmp(key, keys[i]) == 0) {
            return true;
        }
    }
    return false;
}

static void print_values(const char *key, double a, double b)
{
    char *harmless = print_harmless(key, strlen(key), false);

    print_out("%-32.60s %14.6g %14.6g", harmless ? harmless : "?", a, b);
    free(harmless);
    if (a != 0) {
        print_out(" %+9.1f %%", 100 * (b - a) / fabs(a));
    }
    print_out("\n");
}

/* Same text or number; absent in both counts as the same. */
static bool same(const cJSON *a, const cJSON *b, const char *key)
{
    return cJSON_Compare(cJSON_GetObjectItemCaseSensitive(a, key),
                         cJSON_GetObjectItemCaseSensitive(b, key), true) ||
           (!cJSON_HasObjectItem(a, key) && !cJSON_HasObjectItem(b, key));
}

static void print_figures(const cJSON *a, const cJSON *b)
{
    const cJSON *item;

    cJSON_ArrayForEach(item, a)
    {
        const cJSON *other = cJSON_GetObjectItemCaseSensitive(b, item->string);
        if (cJSON_IsNumber(item) && cJSON_IsNumber(other) && !is_setup(item->string)) {
            print_values(item->string, item->valuedouble, other->valuedouble);
        }
    }
}

static const cJSON *find_case(const cJSON *cases, const cJSON *wanted)
{
    const cJSON *item;

    cJSON_ArrayForEach(item, cases)
    {
        if (same(item, wanted, "method") && same(item, wanted, "input_len")) {
            return item;
        }
    }
    return NULL;
}

/* "method FASTKV, input_len 8192" of two sweeps. */
static int print_cases(const cJSON *a, const cJSON *b)
{
    const cJSON *item;
    int found = 0;

    cJSON_ArrayForEach(item, a)
    {
        const cJSON *other = find_case(b, item);
        const cJSON *length = cJSON_GetObjectItemCaseSensitive(item, "input_len");
        const char *method = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "method"));
        if (!other || !method || !cJSON_IsNumber(length)) {
            continue;
        }
        char *harmless = print_harmless(method, strlen(method), false);
        print_out("\n%.40s, %.0f tokens\n", harmless ? harmless : "?", length->valuedouble);
        free(harmless);
        print_figures(item, other);
        found++;
    }
    return found;
}

static void warn_of_setup(const cJSON *a, const cJSON *b)
{
    static const char *const keys[] = {"model_id",     "model",           "method",
                                       "dataset_name", "compression",     "num_prompts",
                                       "request_rate", "max_concurrency", "random_input_len",
                                       "seed",         "winnow_version",  "random_output_len"};

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (!same(a, b, keys[i])) {
            print_note("%s: the runs differ in %s\n", PROGRAM, keys[i]);
        }
    }
}

static status compare(const char *const *paths)
{
    cJSON *a = NULL;
    cJSON *b = NULL;
    status st = result_read(&a, paths[0]);

    st = st ? st : result_read(&b, paths[1]);
    if (!st && !same(a, b, "winnow_bench")) {
        st = status_fail(STATUS_INVALID, "%s and %s are of different commands", paths[0], paths[1]);
    }
    if (!st) {
        warn_of_setup(a, b);
        print_out("%-32s %14s %14s %11s\n", "", "A", "B", "B against A");
        const cJSON *cases = cJSON_GetObjectItemCaseSensitive(a, "results");
        if (!cases) {
            print_figures(a, b);
        } else if (!print_cases(cases, cJSON_GetObjectItemCaseSensitive(b, "results"))) {
            st = status_fail(STATUS_INVALID, "no method and length is in both results");
        }
    }
    cJSON_Delete(a);
    cJSON_Delete(b);
    return st;
}

int compare_main(int argc, char **argv)
{
    const char *paths[2];
    enum options_outcome outcome;
    struct options options = {
        .program = PROGRAM,
        .synopsis = "Compare two result files, A and B, figure by figure.",
        .positional = paths,
        .max_positional = 2,
    };

    status st = options_parse(&options, argc, argv, &outcome);
    if (!st && outcome == OPTIONS_RUN && options.n_positional != 2) {
        st = status_fail(STATUS_INVALID, "give two result files");
    }
    if (st) {
        print_usage_failure(PROGRAM);
        return EXIT_USAGE;
    }
    if (outcome != OPTIONS_RUN) {
        return print_finish();
    }
    st = compare(paths);
    if (st) {
        print_failure(PROGRAM, st);
        return EXIT_ERROR;
    }
    return print_finish();
}
