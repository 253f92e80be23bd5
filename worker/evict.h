/*
 * evict.h - rows that leave the cache while decoding.
 *
 * STREAMINGLLM (rolling) makes room before a token joins; H2O (dynamic) and FASTGEN add up the
 * attention that every row gets, step by step, and afterwards drop the one that got least, so that
 * as many stay as before.  What goes is decided by position and mass, never by where a row lies; by
 * the device, of which the host hears when the step is over.
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
    const int32_t *positions; /* (n) of the rows */
    int n;
    const float *mass;    /* (n_prompt): attention that each token got */
    const uint8_t *marks; /* (n_prompt) of the tokens */
};
status evict_begin(struct member *member, struct kvcache *cache, const struct sequence *sequence,
                   const struct evict_head *head);

/* *out = the rows of every cache head, for a trace. */
status evict_trace(struct trace **out, struct member *member, struct kvcache *cache,
                   const struct sequence *sequence);

/* Before a row is appended to the head. */
status evict_before(struct kvcache *cache, const struct sequence *sequence, int layer, int head);

/* Whether rows leave by attention, as follows. */
bool evict_follows(const struct sequence *sequence);

/* rules (heads) = those of a layer whose new rows were appended. */
void evict_rules(struct evict_rule *rules, const struct kvcache *cache,
                 const struct sequence *sequence, int layer, int heads);

/* After the attention of a layer the device chooses what leaves.  `attention` is that of any
 * sequences, with the queries of whole groups, whose heads' rules are those of scratch from `cell`
 * on; they are none where nothing evicts. */
status evict_after(struct member *member, const struct decode_attention *attention, size_t cell);

/* What was chosen leaves the heads of a layer, once it is in scratch->host_evicted. */
status evict_end(struct member *member, struct kvcache *cache, const struct sequence *sequence,
                 int layer, int heads, size_t cell);

#endif
