#include "coordinator/config.h"

#include "common/machine.h"
#include "coordinator/frontend.h"
#include "coordinator/jobs.h"
#include "coordinator/service.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* Options in the form in which they arrive; numbers are checked by their ranges. */
struct raw {
    const char *dtype, *method, *log_format, *log_level, *config_file;
    const char *worker_client_ca;
    bool worker_tls;
    int64_t local_workers, tp, threads, max_context, queue_requests, queue_tokens, itl_target_ms;
    int64_t heartbeat_timeout_ms, reform_timeout_ms;
};

enum { N_OPTIONS = 48 /* room; the table says how many there are */ };

/* Of the free memory: KV pages of all local workers together. */
static const double local_kv_share = 0.4;

static const char epilog[] =
    "Exit status: 0 after a stop by SIGTERM or SIGINT, 1 on an error, 2 on wrong usage.\n"
    "Limits: a request has at most 32M bytes, a reply 256M (a trace counts); text or ids wait\n"
    "to be read in at most 1024 calls and 256M bytes; a client that leaves 2M bytes of tokens or\n"
    "320M bytes of traces unread is cut off; 16384 calls at a time, 1024 of one connection.";

static int fill_table(struct option *table, struct config *out, struct raw *raw)
{
    const struct option options[] = {
        {"model", OPTION_STRING, &out->model_dir, "DIR", "Hugging Face model directory", 0, 0},
        {"listen", OPTION_STRING, &out->listen, "HOST:PORT", "where clients call; port 0: any", 0,
         0},
        {"worker-listen", OPTION_STRING, &out->worker_listen, "HOST:PORT",
         "where workers dial in (127.0.0.1:8601; with local workers: any port)", 0, 0},
        {"local-workers", OPTION_INT, &raw->local_workers, "N", "children to start on this machine",
         0, SERVICE_MAX_LOCAL},
        {"tp", OPTION_INT, &raw->tp, "N", "tensor-parallel degree; 0: the local workers, or 1", 0,
         MODEL_MAX_HEADS},
        {"device", OPTION_STRING, &out->device, "NAME", "of the workers: cpu or cuda", 0, 0},
        {"dtype", OPTION_STRING, &raw->dtype, "NAME",
         "float32, bfloat16, on GPUs float16: to compute in (the model's)", 0, 0},
        {"threads", OPTION_INT, &raw->threads, "N",
         "of each local worker; 0: the cores, shared out", 0, CONFIG_MAX_THREADS},
        {"kv-memory", OPTION_BYTES, &out->kv_memory, "BYTES",
         "KV pages of each local worker; 0: a share of the free memory", 0, 1e15},
        {"max-context", OPTION_INT, &raw->max_context, "N",
         "prompt + generated tokens; 0: the model's", 0, MODEL_MAX_POSITIONS},
        {"queue-requests", OPTION_INT, &raw->queue_requests, "N", "requests that may wait", 1,
         CONFIG_MAX_QUEUE_REQUESTS},
        {"itl-target-ms", OPTION_INT, &raw->itl_target_ms, "N",
         "time between two tokens of a sequence while prompts are read", 1, 60000},
        {"queue-tokens", OPTION_INT, &raw->queue_tokens, "N", "prompt tokens that may wait", 1,
         CONFIG_MAX_QUEUE_TOKENS},
        {"heartbeat-timeout-ms", OPTION_INT, &raw->heartbeat_timeout_ms, "N",
         "a worker silent for so long is lost", 1000, 600000},
        {"reform-timeout-ms", OPTION_INT, &raw->reform_timeout_ms, "N",
         "requests without a token wait so long for a lost group", 1, 3600000},
        {"method", OPTION_STRING, &raw->method, "NAME", "for requests that name none", 0, 0},
        {"head-profiles", OPTION_STRING, &out->head_profiles, "DIR",
         "tables of head importance that HEADKV requests may name", 0, 0},
        {"enable-trace", OPTION_FLAG, &out->enable_trace, NULL,
         "clients may ask for kept tokens and logits", 0, 0},
        {"reflection", OPTION_FLAG, &out->reflection, NULL, "serve gRPC reflection", 0, 0},
        {"check-selection", OPTION_FLAG, &out->check_selection, NULL,
         "compare every choice of tokens across ranks", 0, 0},
        {"config", OPTION_STRING, &raw->config_file, "FILE", "more options, \"name = value\"", 0,
         0},
        {"drain-window-ms", OPTION_INT, &out->drain_window_ms, "N",
         "after SIGTERM: new requests are accepted still, while health says NOT_SERVING", 0,
         CONFIG_MAX_DRAIN_MS},
        {"drain-timeout-ms", OPTION_INT, &out->drain_timeout_ms, "N",
         "then: for running requests to end; 0: they fail at once", 0, CONFIG_MAX_DRAIN_MS},
        {"send-timeout-ms", OPTION_INT, &out->send_timeout_ms, "N",
         "a call whose client reads nothing for so long is cancelled", 100, CONFIG_MAX_DRAIN_MS},
        {"http", OPTION_STRING, &out->http, "HOST:PORT",
         "serve metrics and health over HTTP; port 0: any; default: not", 0, 0},
        {"health-listen", OPTION_STRING, &out->health_listen, "HOST:PORT",
         "serve grpc.health.v1 on a plaintext port of its own; port 0: any; default: not", 0, 0},
        {"log-format", OPTION_STRING, &raw->log_format, "NAME", "text or json", 0, 0},
        {"log-level", OPTION_STRING, &raw->log_level, "NAME", "debug, info, warn or error", 0, 0},
    };
    int n = (int)(sizeof(options) / sizeof(options[0]));

    _Static_assert(sizeof(options) / sizeof(options[0]) <= N_OPTIONS, "the table is too short");
    memcpy(table, options, sizeof(options));
    return n;
}

/* What local workers hold numbers as.  Adds to the n rows that are there; how many there are then.
 */
static int add_forms(struct option *table, int n, struct config *out)
{
    const struct option options[] = {
        {"weights", OPTION_STRING, &out->weights, "auto|int8", "how the local workers hold weights",
         0, 0},
        {"kv", OPTION_STRING, &out->kv, "auto|int8", "how they hold keys and values", 0, 0},
    };
    int n_options = (int)(sizeof(options) / sizeof(options[0]));

    assert(n + n_options <= N_OPTIONS);
    memcpy(table + n, options, sizeof(options));
    return n + n_options;
}

/* Likewise. */
static int add_security(struct option *table, int n, struct config *out, struct raw *raw)
{
    const struct option options[] = {
        {"tls-cert", OPTION_STRING, &out->tls.cert, "FILE",
         "certificate chain (PEM): clients connect with TLS", 0, 0},
        {"tls-key", OPTION_STRING, &out->tls.key, "FILE", "its private key (PEM)", 0, 0},
        {"tls-client-ca", OPTION_STRING, &out->tls.ca, "FILE",
         "clients show a certificate that one of these (PEM) signed", 0, 0},
        {"token-file", OPTION_STRING, &out->token_file, "FILE",
         "clients show a bearer token; lines \"NAME TOKEN\" or \"NAME TOKEN admin\"", 0, 0},
        {"cluster-secret-file", OPTION_STRING, &out->secret_file, "FILE",
         "workers show the secret in it", 0, 0},
        {"worker-tls", OPTION_FLAG, &raw->worker_tls, NULL,
         "workers connect with TLS, to the same certificate", 0, 0},
        {"worker-tls-client-ca", OPTION_STRING, &raw->worker_client_ca, "FILE",
         "and show a certificate that one of these (PEM) signed", 0, 0},
        {"allow-any-worker", OPTION_FLAG, &out->allow_any_worker, NULL,
         "workers show nothing, even on an address that other machines reach", 0, 0},
    };
    int n_options = (int)(sizeof(options) / sizeof(options[0]));

    assert(n + n_options <= N_OPTIONS);
    memcpy(table + n, options, sizeof(options));
    return n + n_options;
}

static status find_word(int *out, const char *option, const char *word, const char *const *words,
                        int n)
{
    for (int i = 0; i < n; i++) {
        if (strcmp(word, words[i]) == 0) {
            *out = i;
            return STATUS_OK;
        }
    }
    return status_fail(STATUS_INVALID, "--%s %s: not known; see --help", option, word);
}

/* What local workers hold numbers as; NULL is fine. */
static status check_form(const char *option, const char *form, const char *device)
{
    static const char *const forms[] = {"auto", "int8"};
    int word = 0;
    status st = form ? find_word(&word, option, form, forms, 2) : STATUS_OK;

    if (!st && word == 1 && strcmp(device, "cpu") != 0) {
        st = status_fail(STATUS_INVALID, "--%s int8 needs --device cpu", option);
    }
    return st;
}

static status check_names(struct config *out, const struct raw *raw)
{
    static const char *const formats[] = {"text", "json"};
    static const char *const levels[] = {"debug", "info", "warn", "error"};
    static const char *const devices[] = {"cpu", "cuda"};
    static const char *const dtypes[] = {"float32", "bfloat16", "float16", ""};
    int word = 0;
    status st = find_word(&word, "log-format", raw->log_format, formats, 2);

    out->log_json = word == 1;
    if (!st) {
        st = find_word(&word, "log-level", raw->log_level, levels, 4);
        out->log_level = (enum log_level)word;
    }
    if (!st) {
        st = find_word(&word, "device", out->device, devices, 2);
    }
    if (!st) {
        st = check_form("weights", out->weights, out->device);
    }
    if (!st) {
        st = check_form("kv", out->kv, out->device);
    }
    if (!st) {
        st = find_word(&word, "dtype", raw->dtype, dtypes, 4);
        out->dtype = (enum dtype)word; /* the order of enum dtype; 3: the model's */
    }
    out->method = method_by_name(raw->method);
    if (!st && out->method == METHOD_UNSPECIFIED) {
        st = status_fail(STATUS_INVALID, "--method %s: not a method", raw->method);
    }
    return st;
}

bool config_is_loopback(const char *listen)
{
    size_t digits = strspn(listen, "0123456789.");

    return strncmp(listen, "localhost:", 10) == 0 || strncmp(listen, "[::1]:", 6) == 0 ||
           (strncmp(listen, "127.", 4) == 0 && listen[digits] == ':');
}

/* What protects the two planes must be whole, and workers must show something. */
static status settle_security(struct config *out, const struct raw *raw)
{
    if (!out->tls.cert != !out->tls.key) {
        return status_fail(STATUS_INVALID, "--tls-cert and --tls-key go together");
    }
    if (!out->tls.cert && (out->tls.ca || raw->worker_tls || raw->worker_client_ca)) {
        return status_fail(STATUS_INVALID, "--%s needs --tls-cert and --tls-key",
                           out->tls.ca ? "tls-client-ca" : "worker-tls");
    }
    if (raw->worker_client_ca && !raw->worker_tls) {
        return status_fail(STATUS_INVALID, "--worker-tls-client-ca goes with --worker-tls");
    }
    if (raw->worker_tls && out->local_workers > 0) {
        return status_fail(STATUS_INVALID, "--worker-tls goes without --local-workers, which "
                                           "reach this program over loopback");
    }
    if (raw->worker_tls) {
        out->worker_tls = (struct rpc_tls){out->tls.cert, out->tls.key, raw->worker_client_ca};
    }
    if (!config_is_loopback(out->worker_listen) && !out->secret_file && !raw->worker_client_ca &&
        !out->allow_any_worker) {
        return status_fail(STATUS_INVALID,
                           "--worker-listen %s would let anybody join: give --cluster-secret-file "
                           "or --worker-tls-client-ca (or --allow-any-worker inside a fence)",
                           out->worker_listen);
    }
    return STATUS_OK;
}

static void settle_numbers(struct config *out, const struct raw *raw)
{
    const struct machine machine = machine_look();
    int n = (int)raw->local_workers;

    out->local_workers = n;
    out->tensor_parallel = raw->tp ? (int)raw->tp : n > 0 ? n : 1;
    out->threads = (int)raw->threads;
    if (!out->threads && n > 0) {
        out->threads = machine.cores > n ? machine.cores / n : 1;
    }
    if (!out->kv_memory && n > 1 && strcmp(out->device, "cpu") == 0) {
        /* A worker alone on its machine takes a share of the free memory; these have siblings. */
        out->kv_memory = (int64_t)((double)machine.free_bytes * local_kv_share / n);
    }
    out->max_context = (uint32_t)raw->max_context;
    out->queue_requests = (uint32_t)raw->queue_requests;
    out->queue_tokens = (uint64_t)raw->queue_tokens;
    out->itl_target_ms = (double)raw->itl_target_ms;
    out->heartbeat_timeout_ms = (int)raw->heartbeat_timeout_ms;
    out->reform_timeout_ms = (int)raw->reform_timeout_ms;
    out->own_workers_only = n > 0 && !out->worker_listen && !out->secret_file;
    if (!out->worker_listen) {
        out->worker_listen = n > 0 ? "127.0.0.1:0" : "127.0.0.1:8601";
    }
}

status config_parse(struct config *out, int argc, char **argv, enum options_outcome *outcome)
{
    struct raw raw = {
        .dtype = "",
        .method = "FASTKV",
        .log_format = "text",
        .log_level = "info",
        .queue_requests = 256,
        .queue_tokens = 4 << 20,
        .itl_target_ms = 100,
        .heartbeat_timeout_ms = 5000,
        .reform_timeout_ms = 30000,
    };
    struct option table[N_OPTIONS];

    *out = (struct config){.listen = "127.0.0.1:8600",
                           .device = "cpu",
                           .http = "",
                           .health_listen = "",
                           .drain_window_ms = 1000,
                           .send_timeout_ms = RPC_SEND_TIMEOUT_MS,
                           .drain_timeout_ms = 25000,
                           .reflection = true};
    int n = add_forms(table, fill_table(table, out, &raw), out);
    struct options options = {
        .program = "winnow-coordinator",
        .synopsis = "Serves a language model for very long documents over gRPC; workers compute.",
        .epilog = epilog,
        .table = table,
        .n = add_security(table, n, out, &raw),
    };
    status st = options_parse(&options, argc, argv, outcome);
    if (st || *outcome != OPTIONS_RUN) {
        return st;
    }
    if (!out->model_dir || !*out->model_dir) {
        return status_fail(STATUS_INVALID, "--model DIR is needed; see --help");
    }
    st = check_names(out, &raw);
    if (!st) {
        settle_numbers(out, &raw);
        st = settle_security(out, &raw);
    }
    return st;
}

static status settle_dtype(struct config *config)
{
    bool given = config->dtype <= DTYPE_F16;
    bool cpu = strcmp(config->device, "cpu") == 0;

    if (given && config->dtype == DTYPE_F16 && cpu) {
        return status_fail(STATUS_UNIMPLEMENTED,
                           "--dtype float16: a CPU computes in float32 and bfloat16; GPUs are "
                           "--device cuda");
    }
    if (!given) {
        /* float32 holds every float16 value. */
        config->dtype = config->model.dtype == DTYPE_F16 && cpu ? DTYPE_F32 : config->model.dtype;
    }
    return STATUS_OK;
}

status config_load_model(struct config *config)
{
    status st = model_config_load(&config->model, config->model_dir);

    if (st) {
        return st;
    }
    if (config->tensor_parallel > config->model.query_heads) {
        return status_fail(STATUS_INVALID, "--tp %d: the model %s has %d query heads",
                           config->tensor_parallel, config->model.name, config->model.query_heads);
    }
    if (config->max_context > (uint32_t)config->model.max_positions) {
        return status_fail(STATUS_INVALID, "--max-context %u: the model %s has %d positions",
                           config->max_context, config->model.name, config->model.max_positions);
    }
    if (!config->max_context) {
        config->max_context = (uint32_t)config->model.max_positions;
    }
    if (!method_supported(config->method)) {
        return status_fail(STATUS_UNIMPLEMENTED, "--method %s is not built into this server",
                           method_name(config->method));
    }
    return settle_dtype(config);
}
