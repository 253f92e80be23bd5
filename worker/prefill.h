/*
 * prefill.h - the prompt phase: layer by layer, all rows through one layer before the next.
 *
 * Only one layer's keys and values exist at a time: when a layer has them all, its policy
 * chooses, the survivors go to the KV cache and the memory serves the next layer.  So the peak is
 * the residual stream plus one layer's K/V, whatever the depth, and nothing is approximated.
 * The work is cut as common/slices.h says.
 *
 * Several prompts may be in their prompt phase, each at its own layer.  They share the memory
 * by rows: the coordinator says at which row a prompt begins (plan_begin.first_row).
 */
#ifndef WORKER_PREFILL_H
#define WORKER_PREFILL_H

#include "worker/kvcache.h"
#include "worker/member.h"
#include "worker/sequence.h"
#include "worker/trace.h"

struct prompt_phases; /* the memory, and the prompts in it */
struct prompt_phase;  /* one of these */

/* Bytes of device memory: the residual stream, one layer's K/V, and the rest. */
void prefill_bytes(const struct model *model, enum dtype dtype, int prompt_rows, uint64_t *hidden,
                   uint64_t *layer_kv, uint64_t *rest);

status prefill_create(struct prompt_phases **out, struct member *member, struct kvcache *cache);
void prefill_destroy(struct prompt_phases *all); /* NULL is fine */

/* Takes up a sequence, whose slot of the cache is open; it is borrowed until prefill_end(). */
status prefill_begin(struct prompt_phases *all, struct sequence *sequence,
                     struct prompt_phase **out);

/* The phase of a sequence; NULL: it has none. */
struct prompt_phase *prefill_find(struct prompt_phases *all, const struct sequence *sequence);

/* Runs one slice.  After the last one the logits of the prompt's last row are in scratch. */
status prefill_slice(struct prompt_phase *phase, bool *done);

/* Forgets the sequence, finished or not. */
void prefill_end(struct prompt_phase *phase);

struct trace *prefill_take_trace(struct prompt_phase *phase); /* NULL when not asked for */

#endif
