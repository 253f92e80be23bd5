/*
 * config.h - winnow-coordinator's options, checked against each other and against the model.
 */
#ifndef COORDINATOR_CONFIG_H
#define COORDINATOR_CONFIG_H

#include "common/log.h"
#include "common/method.h"
#include "common/model_config.h"
#include "common/options.h"
#include "common/rpc.h"

enum config_limits {
    CONFIG_MAX_QUEUE_REQUESTS = 65536,
    CONFIG_MAX_QUEUE_TOKENS = 1 << 30,
    CONFIG_MAX_THREADS = 1024,
    CONFIG_MAX_DRAIN_MS = 86400000,
};

struct config {
    const char *model_dir;
    const char *listen;
    const char *worker_listen;
    const char *device;
    const char *http;          /* metrics and probes; "": not served */
    const char *health_listen; /* grpc.health.v1 in plaintext; likewise */
    const char *head_profiles; /* NULL: none */
    struct rpc_tls tls;        /* of the client plane; without `cert`: plaintext */
    struct rpc_tls worker_tls; /* of the worker plane; likewise */
    const char *token_file;    /* NULL: none; likewise */
    const char *secret_file;   /* of the cluster */
    bool own_workers_only;     /* no others are expected: they may share a secret of their own */
    bool allow_any_worker;     /* on an address that others can reach */
    bool enable_trace;
    bool reflection;
    bool check_selection;
    int local_workers;
    int tensor_parallel;
    int threads;         /* of each local worker */
    int64_t kv_memory;   /* of each local worker; 0: its default */
    const char *weights; /* of local workers: "int8"; NULL: as they are */
    const char *kv;      /* likewise */
    uint32_t max_context;
    uint32_t queue_requests;
    uint64_t queue_tokens;
    double itl_target_ms;
    int64_t send_timeout_ms;
    int64_t drain_window_ms;
    int64_t drain_timeout_ms;
    int heartbeat_timeout_ms;
    int reform_timeout_ms;
    enum method method;
    enum dtype dtype;
    enum log_level log_level;
    bool log_json;
    struct model_config model;
};

/* "127.0.0.1:8600" and its like: nobody outside this machine can connect. */
bool config_is_loopback(const char *listen);

/* A failure is wrong usage: exit status 2. */
status config_parse(struct config *out, int argc, char **argv, enum options_outcome *outcome);

/* Reads the model's configuration and settles what depends on it.  A failure is an error: exit
 * status 1. */
status config_load_model(struct config *config);

#endif
