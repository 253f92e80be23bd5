/* config.h - the options of winnow-worker. */
#ifndef WORKER_CONFIG_H
#define WORKER_CONFIG_H

#include "common/options.h"
#include "common/rpc.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

struct worker_config {
    const char *coordinator;      /* HOST:PORT */
    struct rpc_identity identity; /* towards the coordinator */
    const char *model;            /* directory */
    const char *backend;          /* "cpu" or "cuda" */
    int device_index;             /* of the first GPU */
    int n_devices;                /* more than one: see devices.h */
    int threads;
    bool int8_weights, int8_kv;
    int64_t kv_memory;         /* bytes; 0: a share of the free memory */
    const char *advertise;     /* address that other ranks reach this one at */
    const char *http;          /* metrics and probes; "": not served */
    const char *health_listen; /* grpc.health.v1; likewise */
    bool tcp_only;             /* no shared memory with ranks on this host */
    bool graphs;               /* --cuda-graphs */
    int fixed_rank;            /* -1: any */
    const char *cohort;        /* of the workers that may be one group with this one; "" */
    bool preload;              /* read the weight files from front to back before they are mapped */
    int64_t parent_pid;        /* the process to die with; 0: none */
    int64_t drain_timeout_ms;  /* from SIGTERM on, for the group's running requests */
    bool log_json;
    bool log_debug;
};

/* Wrong usage is a failed status; see options_parse(). */
status worker_config_parse(struct worker_config *out, int argc, char **argv,
                           enum options_outcome *outcome);

#endif
