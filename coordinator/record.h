/*
 * record.h - what the ranks reported about one sample: its KV figures and its trace.
 *
 * Ranks report their own heads and their own vocabulary rows; the record puts them together.
 * Memory is taken only for what the request asked for, and never more than a limit.
 */
#ifndef COORDINATOR_RECORD_H
#define COORDINATOR_RECORD_H

#include "common/split.h"
#include "coordinator/request.h"

enum { RECORD_MAX_BYTES = 256 << 20 }; /* of one sample's trace: a reply could not hold more */

struct record;

status record_create(struct record **out, const struct model_config *model);
void record_destroy(struct record *record); /* NULL is fine */

/* EXHAUSTED: the trace grew over its limit; INVALID: numbers that cannot be. */
status record_prompt(struct record *record, const struct result_prompt *prompt);
/* Ranks in order for each step; rank 0 starts the step. */
status record_logits(struct record *record, const struct split *split,
                     const struct result_logits *logits);

/* Fills kv_* of the usage, and the trace, which borrows from the record. */
status record_finish(struct record *record, struct request_done *done);

#endif
