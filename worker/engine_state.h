/*
 * engine_state.h - what engine.c (plans, prompts, decode) and engine_slots.c (sequences begin, fork
 * and end) share; nobody else includes it.
 *
 * Memory that a sequence needs beside its pages and that one rank lacks is no failure of the group:
 * the ranks agree after the begins of a plan, and give the sequence up on all of them.
 */
#ifndef WORKER_ENGINE_STATE_H
#define WORKER_ENGINE_STATE_H

#include "worker/chooser.h"
#include "worker/engine.h"
#include "worker/prefill.h"
#include "worker/results.h"

struct engine {
    struct member member;
    struct kvcache *cache;
    struct chooser *chooser;
    struct prompt_phases *phases;
    struct results results;
    struct sequence sequences[PLAN_MAX_SLOTS];
    double decode_ms;              /* of this step */
    uint32_t n_forked;             /* by this plan so far */
    float lacking[PLAN_MAX_SLOTS]; /* by number in a plan's begins: ranks without memory for it */
};

/* A slot in the state that a plan takes it to be in, or NULL and the failure in *st. */
struct sequence *engine_find_slot(struct engine *engine, uint32_t slot, enum sequence_state state,
                                  status *st);
status engine_release_slot(struct engine *engine, uint32_t slot);

/* Begin `nth` of a plan; after the last one engine_settle_begins() is due. */
status engine_begin_slot(struct engine *engine, const struct plan_begin *begin, uint32_t nth);

/* A live sequence with what `source`, whose prompt just ended, holds; then as above. */
status engine_fork_slot(struct engine *engine, const struct plan_begin *begin, uint32_t nth,
                        const struct sequence *source);

/* What any rank has no memory for is given up on all of them. */
status engine_settle_begins(struct engine *engine, const struct plan *plan);
bool engine_gave_up(const struct engine *engine, uint32_t slot);

/* A fork of a prompt that was given up never lives; others begin where their source's prompt ends.
 */
status engine_begin_fork(struct engine *engine, const struct plan_begin *begin);

#endif
