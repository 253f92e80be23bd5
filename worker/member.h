/*
 * member.h - what one rank of a group works with.
 *
 * The engine owns it; prefill, decode, the policies and the sampler borrow it.  All tensors lie
 * in device memory: the host sees them through device_upload(), device_download() and the
 * operations only.  Buffers handed to the collectives are device memory too.
 */
#ifndef WORKER_MEMBER_H
#define WORKER_MEMBER_H

#include "worker/comm.h"
#include "worker/model.h"
#include "worker/scratch.h"

struct step_graphs;

struct member {
    struct device *dev;
    const struct model *model;
    struct comm *comm;
    struct scratch *scratch;
    struct step_graphs *graphs; /* NULL: decode steps are not recorded */
    int max_context;
    int prompt_rows; /* of the prompt memory: plan_prompt_rows() */
    bool check_selection;
    uint64_t shared_hash; /* of this step's choices that every rank makes alike */
    double scoring_ms;    /* of this step: what a method needs beyond FULL to choose rows */
    uint64_t head_hash;   /* of those that the ranks sharing a replicated KV head make alike */
};

/* A sequence has a cache for each KV head, or for each query head, of this rank. */
struct cache_heads {
    int n;
    int first;   /* global number of the first */
    int sharing; /* cache heads that read one KV head of this rank */
    bool speaks; /* this rank reports them: of the ranks that hold a KV head, the first alone */
};
struct cache_heads member_cache_heads(const struct member *member,
                                      const struct method_params *params);

/* FNV-1a over the numbers, continuing `hash`. */
uint64_t member_hash(uint64_t hash, const int32_t *values, int n);

/* Fails when ranks hold different hashes: their caches would silently drift apart. */
status member_check_hashes(const struct member *member);

#endif
