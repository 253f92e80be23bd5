/*
 * logprobs.h - log-probabilities of the raw distribution, over vocabulary shards.
 *
 * Raw: before penalties, temperature and filters.  Every rank finds its own largest logits and
 * masses; small all-gathers give every rank the same numbers.  Masses are added up in a fixed
 * order, so a number depends on nothing but the row and, beyond rounding, not on the ranks.
 */
#ifndef WORKER_LOGPROBS_H
#define WORKER_LOGPROBS_H

#include "worker/shards.h"

struct logprobs;

/* Bytes of device memory that it takes. */
uint64_t logprobs_bytes(int ranks);

/* `shards` is borrowed. */
status logprobs_create(struct logprobs **out, struct member *member, struct shards *shards);
void logprobs_destroy(struct logprobs *logprobs); /* NULL is fine */

/* One row that wants them, n_top of the likeliest tokens. */
struct logprobs_row {
    int row;   /* of the logits */
    int n_top; /* 0..PLAN_MAX_LOGPROBS */
};

struct logprobs_found {
    float logprob;
    uint32_t n_top;                      /* less than asked for in a vocabulary that has fewer */
    uint32_t top_ids[PLAN_MAX_LOGPROBS]; /* likeliest first, ties to the lowest id */
    float top_logprobs[PLAN_MAX_LOGPROBS];
};

/* Begins to find those of `wanted` (n) of the rows; logits (rows, vocabulary rows) and chosen
 * (rows) on the device; 0 < n <= rows <= OP_MAX_DECODE_ROWS.  Does not wait. */
struct logprobs_step {
    const float *logits;
    const struct drawn *chosen;
    int rows;
    const struct logprobs_row *wanted;
    int n;
};
status logprobs_begin(struct logprobs *logprobs, const struct logprobs_step *step);

/* out (n), behind a device_sync(); the chosen tokens are ids (rows) now. */
status logprobs_end(const struct logprobs *logprobs, struct logprobs_found *const *out,
                    const struct logprobs_step *step, const int32_t *ids);

#endif
