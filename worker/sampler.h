/*
 * sampler.h - logits to tokens, over vocabulary shards, by all ranks together.
 *
 * Each rank has the logits of its own vocabulary rows.  Greedy: the largest, ties to the lowest
 * id.  With a temperature: temperature, then top_k, top_p and min_p in this order leave a set of
 * ids, from which a Gumbel maximum draws.  The noise is a function of (seed, sample, step, id)
 * and the set is exact, so a token depends neither on the number of ranks nor on the batch.
 */
#ifndef WORKER_SAMPLER_H
#define WORKER_SAMPLER_H

#include "worker/sequence.h"
#include "worker/shards.h"

struct sampler;

/* Bytes of device memory that it takes. */
uint64_t sampler_bytes(void);

/* `shards` is borrowed. */
status sampler_create(struct sampler **out, struct member *member, struct shards *shards);
void sampler_destroy(struct sampler *sampler); /* NULL is fine */

/* What one row is drawn with. */
struct sampler_row {
    const struct sampling *sampling;
    uint32_t step; /* tokens chosen before */
};

/* Begins to choose from logits (n, vocabulary rows) on the device; n <= 64.  Does not wait. */
status sampler_begin(struct sampler *sampler, const float *logits, const struct sampler_row *rows,
                     int n);

/* What is chosen, (n) on the device. */
const struct drawn *sampler_chosen(const struct sampler *sampler);

/* ids (n) on the host, behind a device_sync() after sampler_begin(). */
status sampler_end(const struct sampler *sampler, int32_t *ids, int n);

#endif
