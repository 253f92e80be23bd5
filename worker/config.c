#include "worker/config.h"

#include "common/children.h"
#include "common/machine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_THREADS = 1024 };

static int default_threads(void)
{
    int n = machine_look().cores;

    return n > MAX_THREADS ? MAX_THREADS : n;
}

/* A number of at most four digits at *at, which moves behind it; -1: there is none. */
static int take_number(const char **at)
{
    size_t digits = strspn(*at, "0123456789");
    const char *begin = *at;

    if (digits == 0 || digits > 4) {
        return -1;
    }
    *at += digits;
    return (int)strtol(begin, NULL, 10);
}

/* "cpu", "cuda", "cuda:N" or "cuda:N-M". */
static status parse_device(struct worker_config *out, const char *device)
{
    const char *at = "";
    int first = -1;
    int last = -1;

    out->n_devices = 1;
    if (strcmp(device, "cpu") == 0 || strcmp(device, "cuda") == 0) {
        out->backend = device;
        return STATUS_OK;
    }
    if (strncmp(device, "cuda:", 5) == 0) {
        at = device + 5;
        first = take_number(&at);
        last = first;
        if (*at == '-') {
            at++;
            last = take_number(&at);
        }
    }
    if (first < 0 || *at || last < first || last - first >= CHILDREN_MAX) {
        return status_fail(STATUS_INVALID,
                           "--device %s: it must be cpu, cuda:N, or cuda:N-M with at most %d GPUs",
                           device, CHILDREN_MAX);
    }
    out->backend = "cuda";
    out->device_index = first;
    out->n_devices = last - first + 1;
    return STATUS_OK;
}

/* Options in the form in which they arrive. */
struct raw {
    const char *device, *weights, *kv, *collectives, *cuda_graphs, *log_format, *log_level,
        *config_file;
    int64_t threads, rank;
};

enum { MAX_ROWS = 32 };

static int add_rows(struct option *table, int n, const struct option *rows, size_t n_rows)
{
    assert((size_t)n + n_rows <= MAX_ROWS);
    memcpy(table + n, rows, n_rows * sizeof(*rows));
    return n + (int)n_rows;
}

static int own_rows(struct option *table, int n, struct worker_config *out, struct raw *raw)
{
    const struct option rows[] = {
        {"coordinator", OPTION_STRING, &out->coordinator, "HOST:PORT",
         "the coordinator's --worker-listen address", 0, 0},
        {"model", OPTION_STRING, &out->model, "DIR", "Hugging Face model directory", 0, 0},
        {"device", OPTION_STRING, &raw->device, "cpu|cuda:N|cuda:N-M",
         "where to compute; a range: a process for each GPU", 0, 0},
        {"threads", OPTION_INT, &raw->threads, "N", "threads of the cpu device", 1, MAX_THREADS},
        {"weights", OPTION_STRING, &raw->weights, "auto|int8",
         "int8: weights rounded to a byte each, but for the embedding; cpu only", 0, 0},
        {"kv", OPTION_STRING, &raw->kv, "auto|int8",
         "int8: keys and values in the cache rounded to a byte each; cpu only", 0, 0},
        {"kv-memory", OPTION_BYTES, &out->kv_memory, "BYTES",
         "KV cache pages; default: 40 % of the free memory", 0, 1e15},
        {"advertise", OPTION_STRING, &out->advertise, "HOST",
         "address at which the other ranks reach this one", 0, 0},
        {"collectives", OPTION_STRING, &raw->collectives, "auto|tcp",
         "auto: by NCCL between GPUs, through shared memory on one host", 0, 0},
        {"cuda-graphs", OPTION_STRING, &raw->cuda_graphs, "on|off",
         "on: decode steps of a GPU are recorded and launched as a whole", 0, 0},
        {"rank", OPTION_INT, &raw->rank, "N", "ask for this rank; default: any", -1, 65535},
        {"cohort", OPTION_STRING, &out->cohort, "NAME",
         "be one group only with workers of this name (a rack, a switch)", 0, 0},
        {"preload", OPTION_FLAG, &out->preload, NULL,
         "read the weight files from front to back first, for disks behind a network", 0, 0},
        {"drain-timeout-ms", OPTION_INT, &out->drain_timeout_ms, "N",
         "after SIGTERM, wait so long for the group's running requests", 0, 86400000},
        {"parent-pid", OPTION_INT, &out->parent_pid, "PID", "exit when this parent is gone", 0,
         1e9},
        {"log-format", OPTION_STRING, &raw->log_format, "text|json", "form of the log lines", 0, 0},
        {"log-level", OPTION_STRING, &raw->log_level, "info|debug", "least level that is logged", 0,
         0},
        {"config", OPTION_STRING, &raw->config_file, "FILE", "read options from a file", 0, 0},
    };

    return add_rows(table, n, rows, sizeof(rows) / sizeof(rows[0]));
}

/* How it is connected: towards the coordinator, and what it serves. */
static int connection_rows(struct option *table, int n, struct worker_config *out)
{
    const struct option rows[] = {
        {"cluster-secret-file", OPTION_STRING, &out->identity.secret_file, "FILE",
         "the secret that the coordinator asks for", 0, 0},
        {"tls-ca", OPTION_STRING, &out->identity.tls.ca, "FILE",
         "connect with TLS; one of these (PEM) signed the coordinator's certificate", 0, 0},
        {"tls-client-ca", OPTION_STRING, &out->identity.tls.ca, "FILE", "the same", 0, 0},
        {"tls-cert", OPTION_STRING, &out->identity.tls.cert, "FILE",
         "this worker's certificate chain (PEM)", 0, 0},
        {"tls-key", OPTION_STRING, &out->identity.tls.key, "FILE", "its private key (PEM)", 0, 0},
        {"http", OPTION_STRING, &out->http, "HOST:PORT",
         "serve metrics and health over HTTP; port 0: any; default: not", 0, 0},
        {"health-listen", OPTION_STRING, &out->health_listen, "HOST:PORT",
         "serve grpc.health.v1; port 0: any; default: not", 0, 0},
    };

    return add_rows(table, n, rows, sizeof(rows) / sizeof(rows[0]));
}

static status parse_int8(bool *out, const char *option, const char *value)
{
    *out = strcmp(value, "int8") == 0;
    return *out || strcmp(value, "auto") == 0
               ? STATUS_OK
               : status_fail(STATUS_INVALID, "--%s %s: it must be auto or int8", option, value);
}

static status check_int8(const struct worker_config *config)
{
    if ((config->int8_weights || config->int8_kv) && strcmp(config->backend, "cpu") != 0) {
        return status_fail(STATUS_INVALID, "--%s int8 needs --device cpu",
                           config->int8_weights ? "weights" : "kv");
    }
    return STATUS_OK;
}

static status check(struct worker_config *out, const struct raw *raw)
{
    status st;

    if (!out->model) {
        return status_fail(STATUS_INVALID, "--model DIR is needed");
    }
    out->tcp_only = strcmp(raw->collectives, "tcp") == 0;
    if (!out->tcp_only && strcmp(raw->collectives, "auto") != 0) {
        return status_fail(STATUS_INVALID, "--collectives %s: it must be auto or tcp",
                           raw->collectives);
    }
    st = parse_int8(&out->int8_weights, "weights", raw->weights);
    if (!st) {
        st = parse_int8(&out->int8_kv, "kv", raw->kv);
    }
    if (st) {
        return st;
    }
    out->graphs = strcmp(raw->cuda_graphs, "on") == 0;
    if (!out->graphs && strcmp(raw->cuda_graphs, "off") != 0) {
        return status_fail(STATUS_INVALID, "--cuda-graphs %s: it must be on or off",
                           raw->cuda_graphs);
    }
    out->log_json = strcmp(raw->log_format, "json") == 0;
    if (!out->log_json && strcmp(raw->log_format, "text") != 0) {
        return status_fail(STATUS_INVALID, "--log-format %s: it must be text or json",
                           raw->log_format);
    }
    out->log_debug = strcmp(raw->log_level, "debug") == 0;
    if (!out->log_debug && strcmp(raw->log_level, "info") != 0) {
        return status_fail(STATUS_INVALID, "--log-level %s: it must be info or debug",
                           raw->log_level);
    }
    st = parse_device(out, raw->device);
    return st ? st : check_int8(out);
}

status worker_config_parse(struct worker_config *out, int argc, char **argv,
                           enum options_outcome *outcome)
{
    struct raw raw = {.device = "cpu",
                      .weights = "auto",
                      .kv = "auto",
                      .collectives = "auto",
                      .cuda_graphs = "on",
                      .log_format = "text",
                      .log_level = "info",
                      .threads = default_threads(),
                      .rank = -1};
    struct option table[MAX_ROWS];

    *out = (struct worker_config){.coordinator = "127.0.0.1:8601",
                                  .advertise = "127.0.0.1",
                                  .cohort = "",
                                  .drain_timeout_ms = 25000,
                                  .http = "",
                                  .health_listen = ""};
    int n = own_rows(table, 0, out, &raw);
    struct options options = {
        .program = "winnow-worker",
        .synopsis = "one tensor-parallel rank: dials in to a coordinator and executes its plans",
        .epilog = "SIGTERM lets the group finish its running requests, a second one does not.\n"
                  "Exit status: 0 on SIGTERM, 1 on an error, 2 on wrong usage.",
        .table = table,
        .n = connection_rows(table, n, out),
    };

    status st = options_parse(&options, argc, argv, outcome);
    if (st || *outcome != OPTIONS_RUN) {
        return st;
    }
    out->threads = (int)raw.threads;
    out->fixed_rank = (int)raw.rank;
    return check(out, &raw);
}
