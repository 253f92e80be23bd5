/*
 * engine.h - executes step plans for one rank.
 *
 * Owns the sequences, the KV cache and the scratch; borrows device, model and collectives.
 * One thread calls it.  A plan is applied whole or the engine is broken: after a failure the
 * caller closes it and opens another for the next epoch (weights stay loaded).
 */
#ifndef WORKER_ENGINE_H
#define WORKER_ENGINE_H

#include "common/plan.h"
#include "kernels/device.h"
#include "worker/comm.h"
#include "worker/model.h"

struct engine;

struct engine_config {
    int max_context;      /* prompt + generated tokens of one sequence */
    uint64_t kv_bytes;    /* of the page pool */
    bool int8_kv;         /* the pool's rows are int8; on a host */
    bool check_selection; /* compare a hash of every selection across ranks */
    bool graphs;          /* record decode steps where that is possible; alike on all ranks */
};

/* Memory, in bytes, that the engine takes for these settings; `dtype` is the device's.  On a host
 * it is touched only as far as prompts are long. */
struct engine_memory {
    uint64_t hidden;   /* residual stream of one prompt */
    uint64_t layer_kv; /* keys and values of one layer */
    uint64_t step;     /* activations of one chunk, scores, logits */
    uint64_t pool;     /* KV pages */
    uint64_t lists;    /* beside them: page tables, notes of rows */
};

enum { ENGINE_PAGE_ROWS = 32 };

struct engine_memory engine_memory(const struct model *model, enum dtype dtype,
                                   const struct engine_config *config);

status engine_open(struct engine **out, struct device *dev, const struct model *model,
                   struct comm *comm, const struct engine_config *config);
void engine_close(struct engine *engine); /* NULL is fine */

/* *result borrows the engine's memory until the next call. */
status engine_step(struct engine *engine, const struct plan *plan, struct step_result *result);

uint64_t engine_kv_bytes_total(const struct engine *engine);
int engine_pages_total(const struct engine *engine);

#endif
