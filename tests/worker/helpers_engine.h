/*
 * helpers_engine.h - an engine over a model directory, and what came out of one sequence.
 *
 * The functions run on rank threads (helpers_group.h), so they return status and assert nothing.
 */
#ifndef TESTS_WORKER_HELPERS_ENGINE_H
#define TESTS_WORKER_HELPERS_ENGINE_H

#include "worker/engine.h"

struct bench_config {
    const char *model; /* directory */
    enum dtype dtype;
    int max_context;
    uint64_t kv_bytes;
    bool unchecked; /* selections are not compared across ranks */
    bool int8_weights, int8_kv;
    bool no_graphs; /* decode steps are not recorded */
    int threads;    /* of the device; 0: one */
};

/* Device, model and engine of one rank. */
struct bench {
    struct device *dev;
    bool borrowed; /* of group_devices */
    struct model *model;
    struct engine *engine;
    uint64_t number; /* of the next plan */
};

status bench_open(struct bench *out, struct comm *comm, const struct bench_config *config);
void bench_close(struct bench *bench);

struct outcome_head {
    uint32_t layer, head;
    uint32_t n;
    uint32_t *kept;
    uint32_t policy;
};

/* One rank's view of one sequence. */
struct outcome {
    int vocab_first, vocab_rows;
    uint32_t *tokens; /* rank 0 */
    int n_tokens;
    float *logits; /* (n_logits, vocab_rows) */
    int n_logits;
    float *logprobs; /* of the tokens, each followed by those of the likeliest ones */
    int n_logprobs;
    struct outcome_head *heads;
    int n_heads;
    struct outcome_head *live; /* after decoding, where a method evicts */
    int n_live;
    uint32_t *propagated;
    int n_propagated;
    uint32_t *tokens_in;
    int n_tokens_in;
    uint64_t kv_rows, kv_bytes, kv_bytes_full, kv_heads;
    uint64_t pages_bytes; /* used when the prompt phase ended */
    bool prompt_done;
};

void outcome_free(struct outcome *outcome);

/* Adds what the result says of `slot`. */
void outcome_take(struct outcome *outcome, const struct step_result *result, uint32_t slot);

/* Runs plans of one slice until the prompt phase ends, then decodes until n_tokens are there
 * (begin->max_rows + 1); rank by rank the same.  The slot stays open. */
status bench_generate(struct bench *bench, const struct plan_begin *begin, struct outcome *out);

status bench_prompt(struct bench *bench, const struct plan_begin *begin, struct outcome *out);
status bench_decode(struct bench *bench, const uint32_t *slots, uint32_t n,
                    struct step_result *result);
status bench_release(struct bench *bench, uint32_t slot, uint64_t *kv_bytes_used);

#endif
