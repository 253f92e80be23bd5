/*
 * results.h - what a step reports, in memory that lives until the next step.
 */
#ifndef WORKER_RESULTS_H
#define WORKER_RESULTS_H

#include "common/plan.h"
#include "worker/logprobs.h"
#include "worker/trace.h"

/* Every slot may get its first token and be decoded once; prompts that end report themselves. */
enum { RESULTS_MAX = PLAN_MAX_ADVANCE + 2 * PLAN_MAX_SLOTS };

struct results {
    struct result_token tokens[RESULTS_MAX];
    struct result_logprob logprobs[RESULTS_MAX]; /* of the tokens */
    struct logprobs_found found[RESULTS_MAX];    /* behind the logprobs */
    struct result_prompt prompts[RESULTS_MAX];
    struct trace *traces[RESULTS_MAX]; /* behind the prompts; NULL where not asked for */
    struct result_logits logits[RESULTS_MAX];
    uint32_t failed[RESULTS_MAX]; /* slots */
    uint32_t n_tokens, n_found, n_prompts, n_logits, n_failed;
};

/* This rank has no memory for what the slot needs beside its pages; a second time changes nothing.
 */
void results_failed(struct results *results, int slot);

void results_reset(struct results *results);

/* Room for the logprobs of a token, which the caller fills and gives to results_token(). */
struct logprobs_found *results_found(struct results *results);

/* `found` is of results_found(), or NULL. */
void results_token(struct results *results, int slot, int32_t id,
                   const struct logprobs_found *found);

/* Takes the trace, which may be NULL; the lists of `prompt` are filled from it. */
void results_prompt_take(struct results *results, const struct result_prompt *prompt,
                         struct trace *trace);

/* Room for a row of logits, which the caller fills. */
status results_logits(struct results *results, int slot, bool prompt, int n_values, float **out);

#endif
