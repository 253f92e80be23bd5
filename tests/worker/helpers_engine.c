#include "tests/worker/helpers_engine.h"

#include "tests/worker/helpers_group.h"

#include <stdlib.h>
#include <string.h>

status bench_open(struct bench *out, struct comm *comm, const struct bench_config *config)
{
    const struct device_config device = {.dtype = config->dtype,
                                         .int8_weights = config->int8_weights,
                                         .threads = config->threads ? config->threads : 1};
    const struct engine_config engine = {
        .max_context = config->max_context,
        .kv_bytes = config->kv_bytes,
        .int8_kv = config->int8_kv,
        .check_selection = !config->unchecked,
        .graphs = !config->no_graphs,
    };
    status st;

    *out = (struct bench){0};
    if (group_devices) {
        out->borrowed = true;
        out->dev = group_devices[comm_rank(comm)];
        st = STATUS_OK;
    } else {
        st = device_open(&out->dev, "cpu", &device);
    }
    if (!st) {
        st = model_open(&out->model, out->dev, config->model, comm_rank(comm), comm_size(comm));
    }
    if (!st) {
        st = engine_open(&out->engine, out->dev, out->model, comm, &engine);
    }
    return st;
}

void bench_close(struct bench *bench)
{
    engine_close(bench->engine);
    model_close(bench->model);
    if (!bench->borrowed) {
        device_close(bench->dev);
    }
}

void outcome_free(struct outcome *outcome)
{
    for (int i = 0; i < outcome->n_heads; i++) {
        free(outcome->heads[i].kept);
    }
    for (int i = 0; i < outcome->n_live; i++) {
        free(outcome->live[i].kept);
    }
    free(outcome->heads);
    free(outcome->live);
    free(outcome->tokens);
    free(outcome->logits);
    free(outcome->logprobs);
    free(outcome->propagated);
    free(outcome->tokens_in);
    *outcome = (struct outcome){0};
}

static uint32_t *copy_list(const uint32_t *list, uint32_t n)
{
    uint32_t *copy = malloc(n * sizeof(*copy) + 1);

    if (n > 0) {
        memcpy(copy, list, n * sizeof(*copy));
    }
    return copy;
}

static struct outcome_head *copy_heads(const struct result_prompt *prompt)
{
    struct outcome_head *heads = calloc(prompt->n_heads + 1, sizeof(*heads));

    for (uint32_t i = 0; i < prompt->n_heads; i++) {
        const struct result_head *head = &prompt->heads[i];
        heads[i] = (struct outcome_head){head->layer, head->head, head->n_kept,
                                         copy_list(head->kept, head->n_kept), head->policy};
    }
    return heads;
}

static void take_prompt(struct outcome *outcome, const struct result_prompt *prompt)
{
    outcome->prompt_done = true;
    outcome->kv_rows = prompt->kv_rows;
    outcome->kv_bytes = prompt->kv_bytes;
    outcome->kv_bytes_full = prompt->kv_bytes_full;
    outcome->kv_heads = prompt->kv_heads;
    outcome->n_tokens_in = (int)prompt->n_tokens_in;
    outcome->tokens_in = copy_list(prompt->tokens_in, prompt->n_tokens_in);
    outcome->n_propagated = (int)prompt->n_propagated;
    outcome->propagated = copy_list(prompt->propagated, prompt->n_propagated);
    outcome->n_heads = (int)prompt->n_heads;
    outcome->heads = copy_heads(prompt);
}

static void take_logprobs(struct outcome *outcome, const struct result_logprob *from)
{
    size_t n = (size_t)outcome->n_logprobs + 1 + from->n_top;

    outcome->logprobs = realloc(outcome->logprobs, n * sizeof(*outcome->logprobs));
    outcome->logprobs[outcome->n_logprobs++] = from->logprob;
    for (uint32_t i = 0; i < from->n_top; i++) {
        outcome->logprobs[outcome->n_logprobs++] = from->top_logprobs[i];
    }
}

void outcome_take(struct outcome *outcome, const struct step_result *result, uint32_t slot)
{
    for (uint32_t i = 0; i < result->n_tokens; i++) {
        if (result->tokens[i].slot == slot) {
            outcome->tokens = realloc(outcome->tokens,
                                      ((size_t)outcome->n_tokens + 1) * sizeof(*outcome->tokens));
            outcome->tokens[outcome->n_tokens++] = result->tokens[i].id;
            if (result->tokens[i].logprob) {
                take_logprobs(outcome, result->tokens[i].logprob);
            }
        }
    }
    for (uint32_t i = 0; i < result->n_prompts; i++) {
        if (result->prompts[i].slot == slot && result->prompts[i].after_decode) {
            outcome->n_live = (int)result->prompts[i].n_heads;
            outcome->live = copy_heads(&result->prompts[i]);
        } else if (result->prompts[i].slot == slot) {
            take_prompt(outcome, &result->prompts[i]);
            outcome->pages_bytes = result->kv_bytes_used;
        }
    }
    for (uint32_t i = 0; i < result->n_logits; i++) {
        const struct result_logits *row = &result->logits[i];
        if (row->slot == slot) {
            size_t n = row->n_values;
            outcome->logits = realloc(outcome->logits, ((size_t)outcome->n_logits + 1) * n *
                                                           sizeof(*outcome->logits));
            memcpy(outcome->logits + (size_t)outcome->n_logits++ * n, row->values,
                   n * sizeof(*row->values));
        }
    }
}

status bench_prompt(struct bench *bench, const struct plan_begin *begin, struct outcome *out)
{
    const struct plan_advance advance = {.slot = begin->slot, .slices = 1};
    struct plan plan = {.n_begin = 1, .begin = begin};
    struct step_result result;
    status st;

    out->vocab_first = bench->model->split.vocab_first;
    out->vocab_rows = bench->model->split.vocab_rows;
    do {
        plan.number = bench->number++;
        st = engine_step(bench->engine, &plan, &result);
        if (!st) {
            outcome_take(out, &result, begin->slot);
        }
        plan = (struct plan){.n_advance = 1, .advance = &advance};
    } while (!st && !out->prompt_done);
    return st;
}

status bench_decode(struct bench *bench, const uint32_t *slots, uint32_t n,
                    struct step_result *result)
{
    const struct plan plan = {.number = bench->number++, .n_decode = n, .decode = slots};

    return engine_step(bench->engine, &plan, result);
}

status bench_generate(struct bench *bench, const struct plan_begin *begin, struct outcome *out)
{
    struct step_result result;
    status st = bench_prompt(bench, begin, out);

    for (uint32_t i = 0; !st && i < begin->max_rows; i++) {
        st = bench_decode(bench, &begin->slot, 1, &result);
        if (!st) {
            outcome_take(out, &result, begin->slot);
        }
    }
    return st;
}

status bench_release(struct bench *bench, uint32_t slot, uint64_t *kv_bytes_used)
{
    const struct plan plan = {.number = bench->number++, .n_release = 1, .release = &slot};
    struct step_result result;
    status st = engine_step(bench->engine, &plan, &result);

    *kv_bytes_used = st ? 0 : result.kv_bytes_used;
    return st;
}
