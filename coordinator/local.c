#include "coordinator/local.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ARGUMENTS = 32, MAX_PATH = 4096 };

/* The worker's options; the strings are borrowed. */
struct arguments {
    const char *list[MAX_ARGUMENTS];
    size_t n;
    char numbers[3][32];
};

static void add(struct arguments *arguments, const char *name, const char *value)
{
    assert(arguments->n + 2 <= MAX_ARGUMENTS);
    arguments->list[arguments->n++] = name;
    arguments->list[arguments->n++] = value;
}

static void add_number(struct arguments *arguments, int place, const char *name, int64_t value)
{
    char *text = arguments->numbers[place];

    snprintf(text, sizeof(arguments->numbers[place]), "%lld", (long long)value);
    add(arguments, name, text);
}

static void make_arguments(struct arguments *out, const struct service_local *config,
                           const char *coordinator)
{
    bool is_cuda = config->device && strcmp(config->device, "cuda") == 0;

    add_number(out, 0, "--parent-pid", getpid());
    add(out, "--coordinator", coordinator);
    add(out, "--model", config->model);
    if (config->device) {
        add(out, "--device", is_cuda ? "cuda:{n}" : config->device); /* each has its own GPU */
    }
    if (config->secret_file) {
        add(out, "--cluster-secret-file", config->secret_file);
    }
    if (config->threads > 0) {
        add_number(out, 1, "--threads", config->threads);
    }
    add(out, "--drain-timeout-ms", "0"); /* we drain, they do as they are told */
    add(out, "--log-format", config->log_json ? "json" : "text");
    /* The environment may set these for the coordinator: its ports are taken. */
    add(out, "--http", "");
    add(out, "--health-listen", "");
    if (config->weights) {
        add(out, "--weights", config->weights);
    }
    if (config->kv) {
        add(out, "--kv", config->kv);
    }
    if (config->kv_memory > 0) {
        add_number(out, 2, "--kv-memory", config->kv_memory);
    }
}

/* These variables are options of both programs and mean this one's side. */
static bool is_ours_alone(const char *variable)
{
    static const char *const beginnings[] = {"WINNOW_TLS_", "WINNOW_CONFIG="};

    for (size_t i = 0; i < sizeof(beginnings) / sizeof(beginnings[0]); i++) {
        if (strncmp(variable, beginnings[i], strlen(beginnings[i])) == 0) {
            return true;
        }
    }
    return false;
}

/* The array is the caller's to free, not the strings; NULL: no memory. */
static const char **make_environment(void)
{
    size_t n = 0;
    size_t used = 0;

    while (environ[n]) {
        n++;
    }
    const char **out = calloc(n + 1, sizeof(*out));
    for (size_t i = 0; out && i < n; i++) {
        if (!is_ours_alone(environ[i])) {
            out[used++] = environ[i];
        }
    }
    return out;
}

status local_open(struct children **out, const struct service_local *config,
                  const char *coordinator)
{
    struct arguments arguments = {.n = 0};
    char beside[MAX_PATH];
    const char *executable = config->executable;

    if (!executable) {
        status st = children_find_program(beside, sizeof(beside), "winnow-worker");
        if (st) {
            return status_note(st, "local workers");
        }
        executable = beside;
    }
    const char **environment = make_environment();
    if (!environment) {
        return status_fail(STATUS_EXHAUSTED, "no memory for local workers");
    }
    make_arguments(&arguments, config, coordinator);
    status st = children_open(out, &(struct children_config){.executable = executable,
                                                             .n = config->n,
                                                             .arguments = arguments.list,
                                                             .n_arguments = arguments.n,
                                                             .environment = environment});
    free(environment);
    return st;
}
