/*
 * prefill.h - the prompt phase: layer by layer, all rows through one layer before the next.
 *
 * Only one layer's keys and values exist at a time: when a layer has them all, its policy
 * chooses, the survivors go to the KV cache and the memory serves the next layer.  So the peak is
 * the residual stream plus one layer's K/V, whatever the depth, and nothing is approximated.
 * The work is cut as common/slices.h says.
 *
 * A struct prompt_phase holds what one prompt needs between slices.  Several may exist, each
 * with one prompt at its own layer.
 */
#ifndef WORKER_PREFILL_H
#define WORKER_PREFILL_H

#include "worker/kvcache.h"
#include "worker/member.h"
#include "worker/sequence.h"
#include "worker/trace.h"

struct prompt_phase;

/* Bytes of device memory: the residual stream, one layer's K/V, and the rest. */
void prompt_phase_bytes(const struct model *model, enum dtype dtype, int max_context,
                        uint64_t *hidden, uint64_t *layer_kv, uint64_t *rest);

status prompt_phase_create(struct prompt_phase **out, struct member *member, struct kvcache *cache);
void prompt_phase_destroy(struct prompt_phase *phase); /* NULL is fine */

/* Takes up a sequence, whose slot of the cache is open; it is borrowed until the end or reset. */
status prefill_begin(struct prompt_phase *phase, struct sequence *sequence);

/* Runs one slice.  After the last one the logits of the prompt's last row are in scratch. */
status prefill_slice(struct prompt_phase *phase, bool *done);

/* Forgets the sequence, finished or not. */
void prefill_reset(struct prompt_phase *phase);

const struct sequence *prefill_sequence(const struct prompt_phase *phase); /* NULL: idle */
struct trace *prefill_take_trace(struct prompt_phase *phase); /* NULL when not asked for */

#endif
