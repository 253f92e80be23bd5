/*
 * ranked.h - attention over a cache whose keys have no position of their own: pos_mode CACHE.
 *
 * Keys are stored before RoPE.  At every step a row's position is its rank among the live rows
 * of its head, so the keys are read, rotated and attended to from a copy in scratch, one head at a
 * time.
 */
#ifndef WORKER_RANKED_H
#define WORKER_RANKED_H

#include "worker/kvcache.h"
#include "worker/member.h"
#include "worker/sequence.h"

/* Whether a sequence with these parameters has such a cache. */
static inline bool ranked_keys(const struct method_params *params)
{
    return params->method == METHOD_STREAMINGLLM && params->pos_mode == POSITION_CACHE;
}

/* The rank of the row that came last. */
int ranked_newest(const struct kvcache *cache, const struct sequence *sequence);

/* op_decode_attention() for one sequence; attention->pages[i] is a table of which only the first
 * entry is read, a zero. */
status ranked_attention(struct member *member, const struct kvcache *cache,
                        const struct sequence *sequence, int layer,
                        const struct decode_attention *attention);

#endif
