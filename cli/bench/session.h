/*
 * session.h - what every measuring command needs: the interrupts, the server's model, and
 * connections that carry the load.
 */
#ifndef CLI_BENCH_SESSION_H
#define CLI_BENCH_SESSION_H

#include "cli/bench/load.h"
#include "cli/service.h"
#include "winnow/v1/inference.pb-c.h"

struct session {
    struct service service;
    Winnow__V1__Model *model;
    struct rpc_client *clients[LOAD_MAX_CONNECTIONS];
    int n_clients;
};

/* Before any other thread: it blocks the signals.  Waits at most ready_s for a server with a
 * ready group of workers; 0: asks once, and only for the model.  STATUS_CANCELLED: interrupted. */
status session_open(struct session *out, const struct service_access *access, double ready_s);
/* More connections, up to n in all. */
status session_connect(struct session *session, const struct service_access *access, int n);
/* Resident memory of the largest of the server's workers, the most so far in bytes; 0: not told. */
double session_worker_memory(const struct session *session);
void session_close(struct session *session);

#endif
