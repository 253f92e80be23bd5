#include "worker/prompt_phase.h"

#include "worker/evict.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void prompt_phase_bytes(const struct model *model, enum dtype dtype, int max_context,
                        uint64_t *hidden, uint64_t *layer_kv, uint64_t *rest)
{
    size_t context = (size_t)max_context;

    *hidden = context * (size_t)model->config.hidden * sizeof(float);
    *layer_kv = 2 * context * phase_key_elements(model) * dtype_bytes(dtype);
    *rest = 5 * context * sizeof(int32_t) +
            WINDOW_ROWS * phase_query_elements(model) * dtype_bytes(dtype);
    *rest += columns_bytes(model, max_context);
}

static status allocate(struct prompt_phase *phase)
{
    struct member *member = phase->member;
    size_t context = (size_t)member->max_context;
    size_t keys = context * phase_key_elements(member->model) * phase_act_bytes(member);
    size_t list = context * sizeof(int32_t);
    const struct {
        void *field;
        size_t bytes;
        const char *what;
    } buffers[] = {
        {&phase->residual, context * (size_t)member->model->config.hidden * sizeof(float),
         "residual stream"},
        {&phase->k, keys, "keys of a layer"},
        {&phase->v, keys, "values of a layer"},
        {&phase->sums, list, "sums of scores"},
        {&phase->ids, list, "prompt"},
        {&phase->positions, list, "positions"},
        {&phase->next_positions, list, "next positions"},
        {&phase->chosen, list, "chosen rows"},
        {&phase->window_q,
         WINDOW_ROWS * phase_query_elements(member->model) * phase_act_bytes(member),
         "window queries"},
    };

    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++) {
        void *memory;
        status st = device_alloc(member->dev, &memory, buffers[i].bytes, buffers[i].what);
        if (st) {
            return st;
        }
        memcpy(buffers[i].field, &memory, sizeof(memory));
    }
    phase->host_positions = calloc(context, sizeof(int32_t));
    phase->host_list = calloc(context, sizeof(int32_t));
    phase->host_marks = calloc(context, sizeof(*phase->host_marks));
    if (!phase->host_marks || !phase->host_positions || !phase->host_list) {
        return status_fail(STATUS_EXHAUSTED, "prompt phase: out of memory");
    }
    return columns_create(&phase->columns, member);
}

status prompt_phase_create(struct prompt_phase **out, struct member *member, struct kvcache *cache)
{
    struct prompt_phase *phase = calloc(1, sizeof(*phase));

    if (!phase) {
        return status_fail(STATUS_EXHAUSTED, "prompt phase: out of memory");
    }
    phase->member = member;
    phase->cache = cache;
    status st = allocate(phase);
    if (st) {
        prompt_phase_destroy(phase);
        return st;
    }
    *out = phase;
    return STATUS_OK;
}

void prompt_phase_destroy(struct prompt_phase *phase)
{
    if (!phase) {
        return;
    }
    prefill_reset(phase);
    device_free(phase->member->dev, phase->residual);
    device_free(phase->member->dev, phase->k);
    device_free(phase->member->dev, phase->v);
    device_free(phase->member->dev, phase->sums);
    device_free(phase->member->dev, phase->ids);
    device_free(phase->member->dev, phase->positions);
    device_free(phase->member->dev, phase->next_positions);
    device_free(phase->member->dev, phase->chosen);
    device_free(phase->member->dev, phase->window_q);
    columns_destroy(&phase->columns, phase->member->dev);
    free(phase->host_positions);
    free(phase->host_list);
    free(phase->host_marks);
    free(phase);
}

/* One prompt. */

status prefill_begin(struct prompt_phase *phase, struct sequence *sequence)
{
    struct member *member = phase->member;
    const struct model_config *config = &member->model->config;
    size_t list = (size_t)sequence->n_prompt * sizeof(int32_t);
    int window = method_score_rows(&sequence->params, sequence->n_prompt);
    status st;

    assert(!phase->sequence && sequence->n_prompt <= member->max_context);
    phase->sequence = sequence;
    phase->policy = policy_for(sequence->params.method);
    for (int i = 0; method_evicts(&sequence->params) && i < sequence->n_prompt; i++) {
        phase->host_marks[i] = evict_mark(&sequence->params, sequence->prompt[i]);
    }
    columns_begin(&phase->columns, &sequence->params, sequence->n_prompt);
    slices_begin(&phase->cursor, &sequence->params, config, sequence->n_prompt);
    for (int i = 0; i < sequence->n_prompt; i++) {
        phase->host_positions[i] = i;
    }
    st = device_upload(member->dev, phase->ids, sequence->prompt, list);
    if (!st) {
        st = device_upload(member->dev, phase->positions, phase->host_positions, list);
    }
    if (!st && phase->policy->window_queries && window > WINDOW_ROWS &&
        window <= sequence->n_prompt) {
        st = device_alloc(member->dev, &phase->long_window_q,
                          (size_t)window * phase_query_elements(member->model) *
                              phase_act_bytes(member),
                          "window queries");
    }
    if (!st && sequence->ranked) {
        st = device_alloc(member->dev, &phase->raw_k,
                          (size_t)sequence->n_prompt * phase_key_elements(member->model) *
                              phase_act_bytes(member),
                          "keys before rotation");
    }
    if (!st && (sequence->trace & TRACE_SELECTED)) {
        st = trace_create(&phase->trace, config->layers,
                          member_cache_heads(member, &sequence->params).n);
    }
    return st;
}

void prefill_reset(struct prompt_phase *phase)
{
    device_free(phase->member->dev, phase->long_window_q);
    device_free(phase->member->dev, phase->raw_k);
    phase->raw_k = NULL;
    trace_destroy(phase->trace);
    phase->long_window_q = NULL;
    phase->trace = NULL;
    phase->sequence = NULL;
}

const struct sequence *prefill_sequence(const struct prompt_phase *phase)
{
    return phase->sequence;
}

struct trace *prefill_take_trace(struct prompt_phase *phase)
{
    struct trace *trace = phase->trace;

    phase->trace = NULL;
    return trace;
}
