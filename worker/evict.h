/*
 * evict.h - rows that leave the cache while decoding.
 *
 * STREAMINGLLM (rolling) makes room before a token joins; H2O (dynamic) and FASTGEN add up the
 * attention that every row gets, step by step, and afterwards drop those that got least.  What
 * goes is decided by position and mass, never by where a row lies.
 */
#ifndef WORKER_EVICT_H
#define WORKER_EVICT_H

#include "worker/kvcache.h"
#include "worker/member.h"
#include "worker/sequence.h"
#include "worker/trace.h"

enum { EVICT_SPECIAL = 1, EVICT_PUNCT = 2 };

/* The mark of a row that holds this token. */
uint8_t evict_mark(const struct method_params *params, int32_t token);

/* After the prompt's rows of a head were stored. */
struct evict_head {
    int layer, head;
    const float *mass;    /* (n_prompt): attention that each token got */
    const uint8_t *marks; /* (n_prompt) of the tokens */
};
void evict_begin(struct kvcache *cache, const struct sequence *sequence,
                 const struct evict_head *head);

/* *out = the rows of every cache head, for a trace. */
status evict_trace(struct trace **out, struct member *member, struct kvcache *cache,
                   const struct sequence *sequence);

/* Before a row is appended to the head. */
status evict_before(struct kvcache *cache, const struct sequence *sequence, int layer, int head);

/* Whether evict_after() does anything for the sequence. */
bool evict_follows(const struct sequence *sequence);

/* After the attention of a decode step, `attention` being that of this sequence alone. */
status evict_after(struct member *member, struct kvcache *cache, const struct sequence *sequence,
                   int layer, const struct decode_attention *attention);

#endif
