/*
 * exchange.h - one call of the Inference service on its way; shared by frontend.c and generate.c.
 *
 * References are held by the call (until its on_done), by the job that works on the bytes, and by
 * the request that the core runs (until sink->ended).  Whoever drops the last one frees it.
 */
#ifndef COORDINATOR_EXCHANGE_H
#define COORDINATOR_EXCHANGE_H

#include "coordinator/account.h"
#include "coordinator/frontend.h"
#include "coordinator/frontend_reply.h"
#include "coordinator/jobs.h"

#include <stdatomic.h>

struct frontend {
    struct frontend_config config;
    struct jobs *jobs;
    struct frontend_packed model; /* GetModel's answer */
};

/* One of n outputs: the service thread's once the request is submitted. */
struct sample {
    struct token_stream *tokens; /* NULL without tokenizer */
    struct stop_text text;
    uint32_t n_tokens;
    double last_ms; /* when its last token came; 0: none yet */
};

struct exchange {
    struct job job;
    atomic_int refs;
    struct frontend *frontend;
    struct rpc_call *call;
    void (*work)(struct exchange *exchange); /* on a thread of the pool */
    atomic_bool gone;                        /* the call is over: nobody waits for an answer */
    uint8_t *data;                           /* the client's message, until it was worked on */
    size_t bytes;
    double arrived_ms;

    /* Generate only. */
    uint64_t handle;
    struct account account;
    struct stop_set stops;
    struct sample *samples;
    uint32_t n_samples;
    struct failure failure; /* our own, which ended the request */
};

void exchange_unref(struct exchange *exchange);

/* Generate only: the account is closed with what the client is told, if it was not before. */
void exchange_close(struct exchange *exchange, status code, const char *why);

/* Ends the call with this thread's last failure. */
void exchange_fail(struct exchange *exchange, status st, int64_t retry_after_ms);

/* Sends and frees; false when the call is over. */
bool exchange_send_take(struct exchange *exchange, struct frontend_packed *packed);

void generate_open_account(struct exchange *exchange);
/* The work of Generate. */
void generate_work(struct exchange *exchange);
/* The client of a Generate went away, maybe before its request was submitted. */
void generate_cancel(struct exchange *exchange);
void generate_free_samples(struct exchange *exchange);

#endif
