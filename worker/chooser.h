/*
 * chooser.h - logits in scratch become the next tokens of their sequences, and are reported.
 *
 * Owns what that takes: penalties, the sampler over vocabulary shards, log-probabilities.
 */
#ifndef WORKER_CHOOSER_H
#define WORKER_CHOOSER_H

#include "worker/member.h"
#include "worker/results.h"
#include "worker/sequence.h"

struct chooser;

/* Bytes of device memory that it takes. */
uint64_t chooser_bytes(const struct model *model);

/* Borrows both. */
status chooser_create(struct chooser **out, struct member *member, struct results *results);
void chooser_destroy(struct chooser *chooser); /* NULL is fine */

/* What a sequence needs for its choices, given the `n` tokens of its prompt. */
status chooser_begin(struct chooser *chooser, struct sequence *sequence, const int32_t *prompt,
                     int n);

/* The next token of each of n sequences; `prompt`: the first one, so the logits are the prompt's.
 */
status chooser_next(struct chooser *chooser, struct sequence *const *rows, int n, bool prompt);

#endif
