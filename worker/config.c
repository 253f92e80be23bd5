#include "worker/config.h"

#include "common/children.h"
#include "common/machine.h"

#include <stdio.h>
#include <string.h>

enum { MAX_THREADS = 1024 };

static int default_threads(void)
{
    int n = machine_look().cores;

    return n > MAX_THREADS ? MAX_THREADS : n;
}

/* "cpu", "cuda", "cuda:N" or "cuda:N-M". */
static status parse_device(struct worker_config *out, const char *device)
{
    int first = 0;
    int last = 0;
    int n = 0;

    out->n_devices = 1;
    if (strcmp(device, "cpu") == 0 || strcmp(device, "cuda") == 0) {
        out->backend = device;
        return STATUS_OK;
    }
    if (sscanf(device, "cuda:%4d%n", &first, &n) == 1 && !device[n]) {
        last = first;
    } else if (sscanf(device, "cuda:%4d-%4d%n", &first, &last, &n) != 2 || device[n]) {
        last = -1;
    }
    if (first < 0 || last < first || last - first >= CHILDREN_MAX) {
        return status_fail(STATUS_INVALID,
                           "--device %s: it must be cpu, cuda:N, or cuda:N-M with at most %d GPUs",
                           device, CHILDREN_MAX);
    }
    out->backend = "cuda";
    out->device_index = first;
    out->n_devices = last - first + 1;
    return STATUS_OK;
}

static status check(struct worker_config *out, const char *device, const char *log_format,
                    const char *log_level)
{
    if (!out->model) {
        return status_fail(STATUS_INVALID, "--model DIR is needed");
    }
    out->log_json = strcmp(log_format, "json") == 0;
    if (!out->log_json && strcmp(log_format, "text") != 0) {
        return status_fail(STATUS_INVALID, "--log-format %s: it must be text or json", log_format);
    }
    out->log_debug = strcmp(log_level, "debug") == 0;
    if (!out->log_debug && strcmp(log_level, "info") != 0) {
        return status_fail(STATUS_INVALID, "--log-level %s: it must be info or debug", log_level);
    }
    return parse_device(out, device);
}

status worker_config_parse(struct worker_config *out, int argc, char **argv,
                           enum options_outcome *outcome)
{
    const char *device = "cpu";
    const char *collectives = "auto";
    const char *log_format = "text";
    const char *log_level = "info";
    const char *config_file = NULL;
    int64_t threads = default_threads();
    int64_t rank = -1;

    *out = (struct worker_config){.coordinator = "127.0.0.1:8601",
                                  .advertise = "127.0.0.1",
                                  .cohort = "",
                                  .http = "",
                                  .health_listen = ""};
    const struct option table[] = {
        {"coordinator", OPTION_STRING, &out->coordinator, "HOST:PORT",
         "the coordinator's --worker-listen address", 0, 0},
        {"model", OPTION_STRING, &out->model, "DIR", "Hugging Face model directory", 0, 0},
        {"device", OPTION_STRING, &device, "cpu|cuda:N|cuda:N-M",
         "where to compute; a range: a process for each GPU", 0, 0},
        {"threads", OPTION_INT, &threads, "N", "threads of the cpu device", 1, MAX_THREADS},
        {"kv-memory", OPTION_BYTES, &out->kv_memory, "BYTES",
         "KV cache pages; default: 40 % of the free memory", 0, 1e15},
        {"advertise", OPTION_STRING, &out->advertise, "HOST",
         "address at which the other ranks reach this one", 0, 0},
        {"collectives", OPTION_STRING, &collectives, "auto|tcp",
         "auto: by NCCL between GPUs, through shared memory on one host", 0, 0},
        {"cluster-secret-file", OPTION_STRING, &out->identity.secret_file, "FILE",
         "the secret that the coordinator asks for", 0, 0},
        {"tls-ca", OPTION_STRING, &out->identity.tls.ca, "FILE",
         "connect with TLS; one of these (PEM) signed the coordinator's certificate", 0, 0},
        {"tls-client-ca", OPTION_STRING, &out->identity.tls.ca, "FILE", "the same", 0, 0},
        {"tls-cert", OPTION_STRING, &out->identity.tls.cert, "FILE",
         "this worker's certificate chain (PEM)", 0, 0},
        {"tls-key", OPTION_STRING, &out->identity.tls.key, "FILE", "its private key (PEM)", 0, 0},
        {"rank", OPTION_INT, &rank, "N", "ask for this rank; default: any", -1, 65535},
        {"cohort", OPTION_STRING, &out->cohort, "NAME",
         "be one group only with workers of this name (a rack, a switch)", 0, 0},
        {"preload", OPTION_FLAG, &out->preload, NULL,
         "read the weight files from front to back first, for disks behind a network", 0, 0},
        {"http", OPTION_STRING, &out->http, "HOST:PORT",
         "serve metrics and health over HTTP; port 0: any; default: not", 0, 0},
        {"health-listen", OPTION_STRING, &out->health_listen, "HOST:PORT",
         "serve grpc.health.v1; port 0: any; default: not", 0, 0},
        {"parent-pid", OPTION_INT, &out->parent_pid, "PID", "exit when this parent is gone", 0,
         1e9},
        {"log-format", OPTION_STRING, &log_format, "text|json", "form of the log lines", 0, 0},
        {"log-level", OPTION_STRING, &log_level, "info|debug", "least level that is logged", 0, 0},
        {"config", OPTION_STRING, &config_file, "FILE", "read options from a file", 0, 0},
    };
    struct options options = {
        .program = "winnow-worker",
        .synopsis = "one tensor-parallel rank: dials in to a coordinator and executes its plans",
        .epilog = "Exit status: 0 on SIGTERM, 1 on an error, 2 on wrong usage.",
        .table = table,
        .n = sizeof(table) / sizeof(table[0]),
    };

    status st = options_parse(&options, argc, argv, outcome);
    if (st || *outcome != OPTIONS_RUN) {
        return st;
    }
    out->threads = (int)threads;
    out->fixed_rank = (int)rank;
    out->tcp_only = strcmp(collectives, "tcp") == 0;
    if (!out->tcp_only && strcmp(collectives, "auto") != 0) {
        return status_fail(STATUS_INVALID, "--collectives %s: it must be auto or tcp", collectives);
    }
    return check(out, device, log_format, log_level);
}
