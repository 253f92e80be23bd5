/*
 * account.h - what becomes of one Generate call: told to the metrics and, in one line, to the log.
 *
 * It belongs to whoever works on the call: a thread of the pool until the request is submitted,
 * then the service thread.  account_close() may come from any thread and works once.
 */
#ifndef COORDINATOR_ACCOUNT_H
#define COORDINATOR_ACCOUNT_H

#include "coordinator/meters.h"
#include "coordinator/trace_context.h"

#include <stdatomic.h>

struct account {
    struct meters *meters; /* borrowed; NULL: none */
    uint64_t handle;
    char request_id[REQUEST_MAX_ID + 1];
    char caller[REQUEST_MAX_CALLER + 1];
    char trace_id[REQUEST_TRACE_ID + 1]; /* "": none */
    enum method method;
    uint32_t n_samples;
    double arrived_ms, admitted_ms, first_ms; /* 0: not yet */
    double tokenize_ms;
    enum phase phase;
    uint32_t n_prompt, n_tokens; /* tokens of all samples */
    enum finish reason;          /* of the last sample that ended */
    uint32_t n_done;
    struct request_usage usage; /* of the last one, too */
    double collective_ms, scoring_ms, beside_ms;
    atomic_bool closed;
};

/* The request was decoded, and maybe refused: NULL where it could not be read at all. */
void account_request(struct account *account, const struct request *request);
void account_progress(struct account *account, const struct request_progress *progress, double now);
/* `last_ms` is when the sample had its token before, 0: never; it becomes now. */
void account_token(struct account *account, double *last_ms, double now);
void account_sample(struct account *account, const struct request *request,
                    const struct request_done *done);
/* The call is over, as the client is told; `why` matters for failures. */
void account_close(struct account *account, status code, const char *why, double now);

#endif
