/* step_result.c - struct step_result to and from the wire; the other half of plan.h. */
#include "common/plan.h"
#include "winnow/v1/worker.pb-c.h"

#include <stdlib.h>

static status no_memory(void)
{
    return status_fail(STATUS_EXHAUSTED, "no memory for a step result");
}

/* ---- outgoing ---- */

/* Messages and the pointer lists that protobuf-c wants, in one place to free. */
struct result_wire {
    Winnow__V1__StepToken *tokens;
    Winnow__V1__StepToken **token_list;
    Winnow__V1__Logprob *logprobs;
    Winnow__V1__StepPrompt *prompts;
    Winnow__V1__StepPrompt **prompt_list;
    Winnow__V1__StepHead *heads;
    Winnow__V1__StepHead **head_list;
    Winnow__V1__StepLogits *logits;
    Winnow__V1__StepLogits **logit_list;
};

static status alloc_wire(struct result_wire *out, const struct step_result *result, size_t heads)
{
    *out = (struct result_wire){
        .tokens = calloc(result->n_tokens + 1, sizeof(*out->tokens)),
        .token_list = calloc(result->n_tokens + 1, sizeof(Winnow__V1__StepToken *)),
        .logprobs = calloc(result->n_tokens + 1, sizeof(*out->logprobs)),
        .prompts = calloc(result->n_prompts + 1, sizeof(*out->prompts)),
        .prompt_list = calloc(result->n_prompts + 1, sizeof(Winnow__V1__StepPrompt *)),
        .heads = calloc(heads + 1, sizeof(*out->heads)),
        .head_list = calloc(heads + 1, sizeof(Winnow__V1__StepHead *)),
        .logits = calloc(result->n_logits + 1, sizeof(*out->logits)),
        .logit_list = calloc(result->n_logits + 1, sizeof(Winnow__V1__StepLogits *)),
    };
    bool complete = out->tokens && out->token_list && out->logprobs && out->prompts &&
                    out->prompt_list && out->heads && out->head_list && out->logits &&
                    out->logit_list;
    return complete ? STATUS_OK : no_memory();
}

static void free_wire(struct result_wire *wire)
{
    free(wire->tokens);
    free(wire->token_list);
    free(wire->logprobs);
    free(wire->prompts);
    free(wire->prompt_list);
    free(wire->heads);
    free(wire->head_list);
    free(wire->logits);
    free(wire->logit_list);
}

static void write_logprob(Winnow__V1__Logprob *out, const struct result_token *token)
{
    winnow__v1__logprob__init(out);
    out->id = token->id;
    out->logprob = token->logprob->logprob;
    out->n_top_ids = out->n_top_logprobs = token->logprob->n_top;
    out->top_ids = (uint32_t *)token->logprob->top_ids; /* packing only reads, here and below */
    out->top_logprobs = (float *)token->logprob->top_logprobs;
}

static void write_prompt(Winnow__V1__StepPrompt *out, const struct result_prompt *prompt,
                         Winnow__V1__StepHead *heads, Winnow__V1__StepHead **head_list)
{
    winnow__v1__step_prompt__init(out);
    out->slot = prompt->slot;
    out->kv_rows = prompt->kv_rows;
    out->kv_bytes = prompt->kv_bytes;
    out->kv_bytes_full = prompt->kv_bytes_full;
    out->kv_heads = prompt->kv_heads;
    out->pages = prompt->pages;
    out->shared_pages = prompt->shared_pages;
    out->n_tokens_in = prompt->n_tokens_in;
    out->tokens_in = (uint32_t *)prompt->tokens_in;
    out->n_propagated = prompt->n_propagated;
    out->propagated = (uint32_t *)prompt->propagated;
    for (uint32_t i = 0; i < prompt->n_heads; i++) {
        winnow__v1__step_head__init(&heads[i]);
        heads[i].layer = prompt->heads[i].layer;
        heads[i].head = prompt->heads[i].head;
        heads[i].n_kept = prompt->heads[i].n_kept;
        heads[i].kept = (uint32_t *)prompt->heads[i].kept;
        heads[i].policy = prompt->heads[i].policy;
        head_list[i] = &heads[i];
    }
    out->after_decode = prompt->after_decode;
    out->n_heads = prompt->n_heads;
    out->heads = head_list;
}

static void fill_lists(struct result_wire *wire, const struct step_result *result)
{
    size_t heads = 0;

    for (uint32_t i = 0; i < result->n_tokens; i++) {
        winnow__v1__step_token__init(&wire->tokens[i]);
        wire->tokens[i].slot = result->tokens[i].slot;
        wire->tokens[i].id = result->tokens[i].id;
        if (result->tokens[i].logprob) {
            write_logprob(&wire->logprobs[i], &result->tokens[i]);
            wire->tokens[i].logprob = &wire->logprobs[i];
        }
        wire->token_list[i] = &wire->tokens[i];
    }
    for (uint32_t i = 0; i < result->n_prompts; i++) {
        write_prompt(&wire->prompts[i], &result->prompts[i], wire->heads + heads,
                     wire->head_list + heads);
        wire->prompt_list[i] = &wire->prompts[i];
        heads += result->prompts[i].n_heads;
    }
    for (uint32_t i = 0; i < result->n_logits; i++) {
        winnow__v1__step_logits__init(&wire->logits[i]);
        wire->logits[i].slot = result->logits[i].slot;
        wire->logits[i].prompt = result->logits[i].prompt;
        wire->logits[i].n_values = result->logits[i].n_values;
        wire->logits[i].values = (float *)result->logits[i].values;
        wire->logit_list[i] = &wire->logits[i];
    }
}

static status pack_result(const struct step_result *result, struct result_wire *wire, uint8_t **out,
                          size_t *out_bytes)
{
    Winnow__V1__StepResult message = WINNOW__V1__STEP_RESULT__INIT;

    fill_lists(wire, result);
    message.epoch = result->epoch;
    message.number = result->number;
    message.n_tokens = result->n_tokens;
    message.tokens = wire->token_list;
    message.n_prompts = result->n_prompts;
    message.prompts = wire->prompt_list;
    message.n_logits = result->n_logits;
    message.logits = wire->logit_list;
    message.n_failed = result->n_failed;
    message.failed = (uint32_t *)result->failed;
    message.compute_ms = result->compute_ms;
    message.collective_ms = result->collective_ms;
    message.scoring_ms = result->scoring_ms;
    message.decode_ms = result->decode_ms;
    message.kv_bytes_used = result->kv_bytes_used;
    message.index_hash = result->index_hash;
    size_t bytes = winnow__v1__step_result__get_packed_size(&message);
    uint8_t *data = malloc(bytes ? bytes : 1);
    if (!data) {
        return no_memory();
    }
    winnow__v1__step_result__pack(&message, data);
    *out = data;
    *out_bytes = bytes;
    return STATUS_OK;
}

status step_result_encode(const struct step_result *result, uint8_t **out, size_t *out_bytes)
{
    struct result_wire wire;
    size_t heads = 0;

    for (uint32_t i = 0; i < result->n_prompts; i++) {
        heads += result->prompts[i].n_heads;
    }
    status st = alloc_wire(&wire, result, heads);
    if (!st) {
        st = pack_result(result, &wire, out, out_bytes);
    }
    free_wire(&wire);
    return st;
}

/* ---- incoming ---- */

struct decoded_result {
    Winnow__V1__StepResult *message;
    struct result_token *tokens;
    struct result_logprob *logprobs;
    struct result_prompt *prompts;
    struct result_head *heads;
    struct result_logits *logits;
};

static void free_decoded(struct decoded_result *decoded)
{
    if (decoded) {
        if (decoded->message) {
            winnow__v1__step_result__free_unpacked(decoded->message, NULL);
        }
        free(decoded->tokens);
        free(decoded->logprobs);
        free(decoded->prompts);
        free(decoded->heads);
        free(decoded->logits);
        free(decoded);
    }
}

void step_result_free(struct step_result *result)
{
    free_decoded(result->owned);
    result->owned = NULL;
}

static void read_prompt(struct result_prompt *out, struct result_head *heads,
                        const Winnow__V1__StepPrompt *m)
{
    *out = (struct result_prompt){
        .slot = m->slot,
        .kv_rows = m->kv_rows,
        .kv_bytes = m->kv_bytes,
        .kv_bytes_full = m->kv_bytes_full,
        .kv_heads = m->kv_heads,
        .pages = m->pages,
        .shared_pages = m->shared_pages,
        .n_tokens_in = (uint32_t)m->n_tokens_in,
        .tokens_in = m->tokens_in,
        .n_heads = (uint32_t)m->n_heads,
        .heads = heads,
        .n_propagated = (uint32_t)m->n_propagated,
        .propagated = m->propagated,
        .after_decode = m->after_decode,
    };
    for (size_t i = 0; i < m->n_heads; i++) {
        heads[i] = (struct result_head){
            .layer = m->heads[i]->layer,
            .head = m->heads[i]->head,
            .n_kept = (uint32_t)m->heads[i]->n_kept,
            .kept = m->heads[i]->kept,
            .policy = m->heads[i]->policy,
        };
    }
}

static status alloc_decoded(struct decoded_result *decoded)
{
    const Winnow__V1__StepResult *m = decoded->message;
    size_t heads = 0;

    for (size_t i = 0; i < m->n_prompts; i++) {
        heads += m->prompts[i]->n_heads;
    }
    decoded->tokens = calloc(m->n_tokens + 1, sizeof(*decoded->tokens));
    decoded->logprobs = calloc(m->n_tokens + 1, sizeof(*decoded->logprobs));
    decoded->prompts = calloc(m->n_prompts + 1, sizeof(*decoded->prompts));
    decoded->heads = calloc(heads + 1, sizeof(*decoded->heads));
    decoded->logits = calloc(m->n_logits + 1, sizeof(*decoded->logits));
    bool complete = decoded->tokens && decoded->logprobs && decoded->prompts && decoded->heads &&
                    decoded->logits;
    return complete ? STATUS_OK : no_memory();
}

static status read_tokens(struct decoded_result *decoded)
{
    const Winnow__V1__StepResult *m = decoded->message;

    for (size_t i = 0; i < m->n_tokens; i++) {
        const Winnow__V1__Logprob *from = m->tokens[i]->logprob;
        struct result_token *token = &decoded->tokens[i];
        *token = (struct result_token){.slot = m->tokens[i]->slot, .id = m->tokens[i]->id};
        if (!from) {
            continue;
        }
        if (from->n_top_ids > PLAN_MAX_LOGPROBS || from->n_top_ids != from->n_top_logprobs) {
            return status_fail(STATUS_INVALID, "a step result with %zu ids of %zu logprobs",
                               from->n_top_ids, from->n_top_logprobs);
        }
        decoded->logprobs[i] = (struct result_logprob){from->logprob, (uint32_t)from->n_top_ids,
                                                       from->top_ids, from->top_logprobs};
        token->logprob = &decoded->logprobs[i];
    }
    return STATUS_OK;
}

static void read_lists(struct decoded_result *decoded)
{
    const Winnow__V1__StepResult *m = decoded->message;
    size_t heads = 0;

    for (size_t i = 0; i < m->n_prompts; i++) {
        read_prompt(&decoded->prompts[i], decoded->heads + heads, m->prompts[i]);
        heads += m->prompts[i]->n_heads;
    }
    for (size_t i = 0; i < m->n_logits; i++) {
        decoded->logits[i] = (struct result_logits){
            .slot = m->logits[i]->slot,
            .prompt = m->logits[i]->prompt,
            .n_values = (uint32_t)m->logits[i]->n_values,
            .values = m->logits[i]->values,
        };
    }
}

status step_result_decode(struct step_result *out, const uint8_t *data, size_t bytes)
{
    struct decoded_result *decoded = calloc(1, sizeof(*decoded));

    *out = (struct step_result){0};
    if (!decoded) {
        return no_memory();
    }
    decoded->message = winnow__v1__step_result__unpack(NULL, bytes, data);
    if (!decoded->message) {
        free_decoded(decoded);
        return status_fail(STATUS_INVALID, "%zu bytes are not a step result", bytes);
    }
    status st = alloc_decoded(decoded);
    if (!st) {
        st = read_tokens(decoded);
    }
    if (st) {
        free_decoded(decoded);
        return st;
    }
    read_lists(decoded);
    const Winnow__V1__StepResult *m = decoded->message;
    *out = (struct step_result){
        .epoch = m->epoch,
        .number = m->number,
        .n_tokens = (uint32_t)m->n_tokens,
        .tokens = decoded->tokens,
        .n_prompts = (uint32_t)m->n_prompts,
        .prompts = decoded->prompts,
        .n_logits = (uint32_t)m->n_logits,
        .logits = decoded->logits,
        .n_failed = (uint32_t)m->n_failed,
        .failed = m->failed,
        .compute_ms = m->compute_ms,
        .collective_ms = m->collective_ms,
        .scoring_ms = m->scoring_ms,
        .decode_ms = m->decode_ms,
        .kv_bytes_used = m->kv_bytes_used,
        .index_hash = m->index_hash,
        .owned = decoded,
    };
    return STATUS_OK;
}
