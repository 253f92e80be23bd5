/*
 * load.h - many Generate calls at once, sent when they are due, each with its record.
 *
 * The main thread sends; the completion thread of each connection stamps and counts what comes.
 * Calls are dealt to the connections in turn.
 */
#ifndef CLI_BENCH_LOAD_H
#define CLI_BENCH_LOAD_H

#include "cli/bench/record.h"
#include "common/rpc.h"

enum load_limits {
    LOAD_CALLS_PER_CONNECTION = 250, /* what one is given unless the user says otherwise */
    LOAD_MAX_CONNECTIONS = 64,
};

/* The packed GenerateRequest of request i; *data is malloc'd. */
typedef status load_pack(void *context, size_t i, uint8_t **data, size_t *bytes);

struct load_config {
    struct rpc_client *const *clients;
    int n_clients;
    size_t n;            /* requests */
    const double *due_s; /* [n] since the start, ascending; NULL: all at once */
    size_t max_running;  /* more wait */
    int64_t deadline_ms; /* of each; 0: none */
    load_pack *pack;
    void *context;
    const char *title; /* of the progress line; NULL: none */
};

struct load_outcome {
    struct record *records; /* [n] */
    size_t n;
    double duration_s;
    size_t peak_running;
    double cpu_s; /* of this process, all threads */
    bool interrupted;
};

/*
 * Returns when every call is over, or after an interrupt, for which what runs is cancelled: the
 * clients cannot be used afterwards.  A failure is this side's; what servers say is in the records.
 */
status load_run(struct load_outcome *out, const struct load_config *config);
void load_free(struct load_outcome *outcome);

#endif
