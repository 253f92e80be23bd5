/*
 * request.h - one Generate request in plain C, and how the core reports what becomes of it.
 *
 * The front end fills a request and hands it to service_submit_take().  From then on the core
 * owns it, until it calls sink->ended(), exactly once and last, which gives it back: the front
 * end then frees it with request_free() and whatever hangs on `context`.  If the submission
 * itself fails, the request stays the caller's and no callback ever comes.
 *
 * All callbacks of all requests run on the one service thread: they hand over and return within
 * microseconds.  They may call service_cancel(), nothing else of service.h that could wait.
 * What they are given is borrowed for the call only.
 */
#ifndef COORDINATOR_REQUEST_H
#define COORDINATOR_REQUEST_H

#include "common/plan.h"

#include <stdbool.h>
#include <stdint.h>

enum request_limits {
    REQUEST_MAX_ID = 128,                   /* bytes of a request_id */
    REQUEST_MAX_CALLER = 255,               /* bytes of a caller's name */
    REQUEST_MAX_SAMPLES = PLAN_MAX_SAMPLES, /* n */
    REQUEST_MAX_STOP_IDS = 64,              /* beside the model's own */
    REQUEST_TRACE_ID = 32,                  /* hexadecimal digits */
};

/* Numbers of winnow.v1. */
enum phase { PHASE_QUEUED = 1, PHASE_PREFILL = 2, PHASE_DECODE = 3 };
enum finish {
    FINISH_NONE = 0,
    FINISH_STOP_TOKEN = 1,
    FINISH_STOP_STRING = 2,
    FINISH_LENGTH = 3,
    FINISH_ABORTED = 4,
};

struct request_progress {
    enum phase phase;
    uint32_t prompt_tokens;
    uint32_t tokens_done; /* of this layer */
    uint32_t layer;
    uint32_t layers;
    uint32_t queue_position; /* 1: next; 0 once it left the queue */
    float fraction;          /* of the prefill's work, by floating-point operations */
};

struct request_usage {
    uint32_t prompt_tokens;
    uint32_t completion_tokens;
    uint32_t propagated_tokens; /* entering the last layer */
    double kv_tokens_kept;      /* mean over layers and cache heads */
    uint64_t kv_bytes;          /* all ranks, a replicated head counted once */
    uint64_t kv_bytes_full;
};

struct request_timing {
    double queue_ms;
    double tokenize_ms;
    double prefill_ms;
    double ttft_ms; /* from arrival to the first token */
    double decode_ms;
    double total_ms;
    double collective_ms; /* of rank 0, in the steps that this request took part in */
    double scoring_ms;    /* of rank 0, in this request's prefill: the share of its method */
    double beside_ms;     /* of rank 0, likewise: decode steps of others between its slices */
};

struct trace_head {
    uint32_t head; /* global number */
    uint32_t n_kept;
    const uint32_t *kept; /* ascending original positions */
    uint32_t n_live;
    const uint32_t *live; /* those left at the end by a method that evicts while decoding */
    const char *policy;   /* FASTGEN's; else NULL */
};

struct trace_layer {
    uint32_t layer;
    uint32_t tokens_in;
    uint32_t n_heads;
    const struct trace_head *heads; /* ascending by head */
};

/* Zero and NULL where the request did not ask for it. */
struct request_trace {
    uint32_t n_layers;
    const struct trace_layer *layers;
    uint32_t n_propagated;
    const uint32_t *propagated;
    uint32_t vocab;
    const float *prompt_logits; /* [vocab] or NULL */
    uint32_t n_steps;
    const float *const *step_logits; /* [n_steps][vocab] */
};

/* The end of one sample. */
struct request_done {
    uint32_t sample;
    enum finish reason;
    uint64_t seed;
    struct request_usage usage;
    struct request_timing timing;
    struct request_trace trace;
};

struct request;

struct request_sink {
    void (*progress)(struct request *request, const struct request_progress *progress);
    /* The next token of a sample.  `stop`: it is a stop token, so the last of the sample and
     * without text.  True ends the sample with FINISH_STOP_STRING. */
    bool (*token)(struct request *request, uint32_t sample, const struct result_token *token,
                  bool stop);
    /* Once for each sample, unless the request fails. */
    void (*done)(struct request *request, const struct request_done *done);
    /* The request goes back to its maker.  NULL: every sample is done.  Otherwise it failed (or
     * was cancelled, or ran out of time), and retry_after_ms > 0 where a later try can help. */
    void (*ended)(struct request *request, const struct failure *failure, int64_t retry_after_ms);
};

struct request {
    uint64_t handle;                     /* of service_next_handle() */
    char request_id[REQUEST_MAX_ID + 1]; /* "": none */
    char caller[REQUEST_MAX_CALLER + 1]; /* whose it is; "": nobody's in particular */
    char trace_id[REQUEST_TRACE_ID + 1]; /* likewise */
    uint32_t *prompt;                    /* owned; every id below the vocabulary size */
    uint32_t n_prompt;
    struct method_params params; /* complete; its lists point to the next three */
    float *head_scores;          /* owned, may be NULL */
    uint32_t *special_ids;       /* owned, may be NULL */
    uint32_t *punct_ids;         /* owned, may be NULL */
    struct sampling sampling;    /* complete; `sample` is the core's */
    uint32_t n_samples;          /* 1..REQUEST_MAX_SAMPLES */
    uint32_t stop_ids[REQUEST_MAX_STOP_IDS];
    uint32_t n_stop_ids;
    bool ignore_eos;     /* the model's eos ids do not stop it; stop_ids still do */
    uint32_t trace;      /* of enum trace_flag */
    int32_t priority;    /* higher first */
    int64_t deadline_ms; /* on the clock of service_now_ms(); INT64_MAX: none */
    double arrived_ms;   /* likewise, with fractions: when the call came in */
    double tokenize_ms;
    const struct request_sink *sink; /* borrowed, all functions set */
    void *context;                   /* the sink's */
};

/* Frees the request and what it owns, not the context.  NULL is fine. */
void request_free(struct request *request);

#endif
