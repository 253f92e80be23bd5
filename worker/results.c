#include "worker/results.h"

#include <assert.h>
#include <stdlib.h>

void results_reset(struct results *results)
{
    for (uint32_t i = 0; i < results->n_prompts; i++) {
        trace_destroy(results->traces[i]);
    }
    for (uint32_t i = 0; i < results->n_logits; i++) {
        free((void *)results->logits[i].values);
    }
    results->n_tokens = 0;
    results->n_found = 0;
    results->n_prompts = 0;
    results->n_logits = 0;
    results->n_failed = 0;
}

void results_failed(struct results *results, int slot)
{
    for (uint32_t i = 0; i < results->n_failed; i++) {
        if (results->failed[i] == (uint32_t)slot) {
            return;
        }
    }
    assert(results->n_failed < RESULTS_MAX);
    results->failed[results->n_failed++] = (uint32_t)slot;
}

struct logprobs_found *results_found(struct results *results)
{
    assert(results->n_found < RESULTS_MAX);
    return &results->found[results->n_found++];
}

void results_token(struct results *results, int slot, int32_t id,
                   const struct logprobs_found *found)
{
    uint32_t at = results->n_tokens++;

    assert(at < RESULTS_MAX);
    results->tokens[at] = (struct result_token){.slot = (uint32_t)slot, .id = (uint32_t)id};
    if (found) {
        results->logprobs[at] = (struct result_logprob){
            .logprob = found->logprob,
            .n_top = found->n_top,
            .top_ids = found->top_ids,
            .top_logprobs = found->top_logprobs,
        };
        results->tokens[at].logprob = &results->logprobs[at];
    }
}

void results_prompt_take(struct results *results, const struct result_prompt *prompt,
                         struct trace *trace)
{
    struct result_prompt *out = &results->prompts[results->n_prompts];

    assert(results->n_prompts < RESULTS_MAX);
    *out = *prompt;
    if (trace) {
        out->n_tokens_in = trace->n_tokens_in;
        out->tokens_in = trace->tokens_in;
        out->n_heads = trace->n_heads;
        out->heads = trace->heads;
        out->n_propagated = trace->n_propagated;
        out->propagated = trace->propagated;
    }
    results->traces[results->n_prompts++] = trace;
}

status results_logits(struct results *results, int slot, bool prompt, int n_values, float **out)
{
    float *values = malloc((size_t)n_values * sizeof(*values));

    assert(results->n_logits < RESULTS_MAX);
    if (!values) {
        return status_fail(STATUS_EXHAUSTED, "results: out of memory");
    }
    results->logits[results->n_logits++] = (struct result_logits){
        .slot = (uint32_t)slot,
        .prompt = prompt,
        .n_values = (uint32_t)n_values,
        .values = values,
    };
    *out = values;
    return STATUS_OK;
}
