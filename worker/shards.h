/*
 * shards.h - what sampling and log-probabilities ask of a step's logits, of which each rank has its
 * vocabulary rows.  Every rank gets the same answers, on its device; nothing waits for them, but
 * where collectives pass through the host.
 */
#ifndef WORKER_SHARDS_H
#define WORKER_SHARDS_H

#include "worker/member.h"

enum { SHARDS_MAX_ROWS = OP_MAX_DECODE_ROWS };

struct shards;

/* Bytes of device memory that it takes. */
uint64_t shards_bytes(int ranks);

status shards_create(struct shards **out, struct member *member);
void shards_destroy(struct shards *shards); /* NULL is fine */

/* best (n) = the largest perturbed value of each row; draws (n), or NULL: of its logits themselves.
 * All on the device; logits (n, vocabulary rows). */
status shards_draw(struct shards *shards, struct drawn *best, const float *logits,
                   const struct draw *draws, int n);

/* A round of op_narrow() for n filters; filters, peaks and logits on the device. */
struct shards_round {
    struct logit_filter *filters; /* (n) */
    const struct drawn *peaks;    /* of the rows of the logits */
    const float *logits;
    int n;
    int shift;
    bool by_mass;
};
status shards_narrow(struct shards *shards, const struct shards_round *round);

#endif
