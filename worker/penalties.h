/*
 * penalties.h - what a sequence has seen, and what that does to its logits.
 *
 * A sequence with penalties owns a table on the device, one number for each of this rank's
 * vocabulary rows (sequence.seen): whether the token is in the prompt, and how often it was
 * generated.  Logits are never changed in place: logprobs and traces show them as they were.
 */
#ifndef WORKER_PENALTIES_H
#define WORKER_PENALTIES_H

#include "worker/member.h"
#include "worker/sequence.h"

struct penalties;

/* Bytes of device memory beside the sequences' own tables. */
uint64_t penalties_bytes(const struct model *model);

status penalties_create(struct penalties **out, struct member *member);
void penalties_destroy(struct penalties *penalties); /* NULL is fine */

/* The sequence's table, made from the `n` tokens of its prompt; without penalties it has none. */
status penalties_begin(struct penalties *penalties, struct sequence *sequence,
                       const int32_t *prompt, int n);

/* *out (n, vocabulary rows), borrowed: what tokens are chosen from, given that the logits are
 * those of `rows`.  The token that a sequence chose last joins its table. */
status penalties_apply(struct penalties *penalties, const float **out, const float *logits,
                       struct sequence *const *rows, int n);

#endif
