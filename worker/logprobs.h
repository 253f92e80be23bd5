/*
 * logprobs.h - log-probabilities of the raw distribution, over vocabulary shards.
 *
 * Raw: before penalties, temperature and filters.  Every rank finds its own largest logits and
 * masses; two small all-gathers give every rank the same numbers.  Masses are added up in a fixed
 * order, so a number depends on nothing but the row and, beyond rounding, not on the ranks.
 */
#ifndef WORKER_LOGPROBS_H
#define WORKER_LOGPROBS_H

#include "worker/member.h"

struct logprobs;

/* Bytes of device memory that it takes. */
uint64_t logprobs_bytes(int ranks);

status logprobs_create(struct logprobs **out, struct member *member);
void logprobs_destroy(struct logprobs *logprobs); /* NULL is fine */

/* One row that wants them: `token` is what was chosen, n_top how many of the likeliest tokens. */
struct logprobs_row {
    int row; /* of the logits */
    int32_t token;
    int n_top; /* 0..PLAN_MAX_LOGPROBS */
};

struct logprobs_found {
    float logprob;
    uint32_t n_top;                      /* less than asked for in a vocabulary that has fewer */
    uint32_t top_ids[PLAN_MAX_LOGPROBS]; /* likeliest first, ties to the lowest id */
    float top_logprobs[PLAN_MAX_LOGPROBS];
};

/* out (n) from logits (rows, vocabulary rows) on the device; 0 < n <= OP_MAX_DECODE_ROWS. */
status logprobs_find(struct logprobs *logprobs, struct logprobs_found *const *out,
                     const float *logits, const struct logprobs_row *rows, int n);

#endif
