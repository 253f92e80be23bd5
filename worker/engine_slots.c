/* engine_slots.c - sequences of an engine: how they begin, fork and end. */
#include "common/log.h"
#include "worker/engine_state.h"
#include "worker/evict.h"

#include <stdlib.h>
#include <string.h>

struct sequence *engine_find_slot(struct engine *engine, uint32_t slot, enum sequence_state state,
                                  status *st)
{
    static const char *const names[] = {"free", "in its prompt phase", "live", "given up"};

    if (slot >= PLAN_MAX_SLOTS) {
        *st = status_fail(STATUS_INTERNAL, "slot %u: the limit is %d", slot, PLAN_MAX_SLOTS);
        return NULL;
    }
    struct sequence *sequence = &engine->sequences[slot];
    if (sequence->state != state) {
        *st = status_fail(STATUS_INTERNAL, "slot %u is %s, not %s", slot, names[sequence->state],
                          names[state]);
        return NULL;
    }
    *st = STATUS_OK;
    return sequence;
}

status engine_release_slot(struct engine *engine, uint32_t slot)
{
    struct sequence *sequence = NULL;

    if (slot >= PLAN_MAX_SLOTS || engine->sequences[slot].state == SEQUENCE_FREE) {
        return status_fail(STATUS_INTERNAL, "slot %u is not in use", slot);
    }
    sequence = &engine->sequences[slot];
    struct prompt_phase *phase = prefill_find(engine->phases, sequence);
    if (phase) {
        prefill_end(phase);
    }
    kvcache_release(engine->cache, (int)slot);
    sequence_fini(sequence);
    return STATUS_OK;
}

static status check_begin(const struct engine *engine, const struct plan_begin *begin)
{
    uint64_t rows = (uint64_t)begin->n_prompt + begin->max_rows;

    if (begin->n_prompt == 0 || rows > (uint64_t)engine->member.max_context) {
        return status_fail(STATUS_INTERNAL, "slot %u: %u + %u tokens, the context is 1 to %d",
                           begin->slot, begin->n_prompt, begin->max_rows,
                           engine->member.max_context);
    }
    for (uint32_t i = 0; i < begin->n_prompt; i++) {
        if (begin->prompt[i] >= (uint32_t)engine->member.model->config.vocab) {
            return status_fail(STATUS_INTERNAL, "slot %u: token %u is %u, the vocabulary has %d",
                               begin->slot, i, begin->prompt[i],
                               engine->member.model->config.vocab);
        }
    }
    if (!method_supported(begin->params.method)) {
        return status_fail(STATUS_UNIMPLEMENTED, "slot %u: method %d is not supported", begin->slot,
                           (int)begin->params.method);
    }
    status st = method_check_supported(&begin->params);
    return st ? status_note(st, "slot %u", begin->slot) : STATUS_OK;
}

/* max_rows (layers): what each layer keeps and what decode appends. */
static void count_rows(const struct engine *engine, const struct sequence *sequence, int *max_rows)
{
    const struct model_config *config = &engine->member.model->config;
    int rows = method_first_rows(&sequence->params, sequence->n_prompt);

    for (int layer = 0; layer < config->layers; layer++) {
        struct layer_rows counts =
            method_layer_rows(&sequence->params, config, sequence->n_prompt, layer, rows);
        max_rows[layer] = method_peak_rows(&sequence->params, sequence->n_prompt, counts.kept,
                                           sequence->max_rows);
        rows = counts.propagated;
    }
}

/* What it needs beside the cache: choices, policies of heads, a trace. */
static status open_state(struct engine *engine, struct sequence *sequence, const int32_t *prompt)
{
    const struct member *member = &engine->member;
    const struct method_params *params = &sequence->params;
    size_t heads = (size_t)member_cache_heads(member, params).n;
    int layers = member->model->config.layers;
    status st = chooser_begin(engine->chooser, sequence, prompt, sequence->n_prompt);

    if (!st && params->method == METHOD_FASTGEN) {
        sequence->policies = calloc((size_t)layers * heads, 1);
        st = sequence->policies ? STATUS_OK
                                : status_fail(STATUS_EXHAUSTED, "policies: out of memory");
    }
    if (!st && (sequence->trace & TRACE_SELECTED) && !sequence->forked) {
        st = trace_create(&sequence->selected, layers, (int)heads);
    }
    return st;
}

static status open_cache(struct engine *engine, struct sequence *sequence)
{
    int max_rows[MODEL_MAX_LAYERS] = {0};

    count_rows(engine, sequence, max_rows);
    return kvcache_begin(
        engine->cache, sequence->slot,
        &(struct kv_slot){.heads = member_cache_heads(&engine->member, &sequence->params).n,
                          .max_rows = max_rows,
                          .appended = sequence->max_rows,
                          .noted = evict_follows(sequence)});
}

/* Memory that only one rank may lack is no failure of the group: it is noted, and the ranks agree
 * on it (engine_settle_begins). */
static status note_lack(struct engine *engine, uint32_t nth, uint32_t slot, status st)
{
    if (st != STATUS_EXHAUSTED) {
        return st ? status_note(st, "slot %u", slot) : STATUS_OK;
    }
    log_warn("engine: no memory to begin slot=%u reason=\"%s\"", slot, status_text());
    engine->lacking[nth] = 1;
    results_failed(&engine->results, (int)slot);
    return STATUS_OK;
}

static status open_prompt(struct engine *engine, struct sequence *sequence,
                          const struct plan_begin *begin)
{
    status st = sequence_own_lists(sequence);
    int32_t *prompt = malloc(begin->n_prompt * sizeof(*prompt));

    sequence->prompt = prompt;
    if (st || !prompt) {
        return st ? st : status_fail(STATUS_EXHAUSTED, "a prompt: out of memory");
    }
    for (uint32_t i = 0; i < begin->n_prompt; i++) {
        prompt[i] = (int32_t)begin->prompt[i];
    }
    st = open_state(engine, sequence, prompt);
    return st ? st : open_cache(engine, sequence);
}

status engine_begin_slot(struct engine *engine, const struct plan_begin *begin, uint32_t nth)
{
    status st;
    struct sequence *sequence = engine_find_slot(engine, begin->slot, SEQUENCE_FREE, &st);

    if (!sequence) {
        return st;
    }
    st = check_begin(engine, begin);
    if (st) {
        return st;
    }
    *sequence = (struct sequence){
        .state = SEQUENCE_PROMPT,
        .slot = (int)begin->slot,
        .params = begin->params,
        .sampling = begin->sampling,
        .trace = begin->trace,
        .n_prompt = (int)begin->n_prompt,
        .first_row = (int)begin->first_row,
        .max_rows = (int)begin->max_rows,
        .ranked =
            begin->params.method == METHOD_STREAMINGLLM && begin->params.pos_mode == POSITION_CACHE,
    };
    return note_lack(engine, nth, begin->slot, open_prompt(engine, sequence, begin));
}

static void give_up(struct engine *engine, uint32_t slot)
{
    struct sequence *sequence = &engine->sequences[slot];

    kvcache_release(engine->cache, (int)slot);
    sequence_fini(sequence);
    sequence->state = SEQUENCE_FAILED;
    sequence->slot = (int)slot;
}

status engine_settle_begins(struct engine *engine, const struct plan *plan)
{
    struct member *member = &engine->member;
    float *device = member->scratch->partial;
    size_t bytes = plan->n_begin * sizeof(engine->lacking[0]);
    status st = STATUS_OK;

    if (comm_size(member->comm) > 1) {
        st = device_upload(member->dev, device, engine->lacking, bytes);
        st = st ? st : comm_all_reduce(member->comm, device, plan->n_begin);
        st = st ? st : device_download(member->dev, engine->lacking, device, bytes);
    }
    for (uint32_t i = 0; !st && i < plan->n_begin; i++) {
        if (engine->lacking[i] > 0) {
            give_up(engine, plan->begin[i].slot);
        }
        engine->lacking[i] = 0;
    }
    return st;
}

status engine_fork_slot(struct engine *engine, const struct plan_begin *begin, uint32_t nth,
                        const struct sequence *source)
{
    status st;
    struct sequence *fork = engine_find_slot(engine, begin->slot, SEQUENCE_FREE, &st);

    if (!fork) {
        return st;
    }
    *fork = *source;
    fork->slot = (int)begin->slot;
    fork->sampling.sample = begin->sampling.sample;
    fork->prompt = NULL;
    fork->seen = NULL;
    fork->policies = NULL;
    fork->forked = true;
    st = sequence_own_lists(fork);
    if (!st) {
        st = open_state(engine, fork, source->prompt);
    }
    if (!st && fork->policies) {
        size_t heads = (size_t)member_cache_heads(&engine->member, &fork->params).n;
        memcpy(fork->policies, source->policies,
               (size_t)engine->member.model->config.layers * heads);
    }
    if (!st) {
        st = kvcache_fork(engine->cache, source->slot, fork->slot);
    }
    engine->n_forked++;
    return note_lack(engine, nth, begin->slot, st);
}

bool engine_gave_up(const struct engine *engine, uint32_t slot)
{
    return slot < PLAN_MAX_SLOTS && engine->sequences[slot].state == SEQUENCE_FAILED;
}

status engine_begin_fork(struct engine *engine, const struct plan_begin *begin)
{
    status st = STATUS_OK;

    if (!engine_gave_up(engine, begin->source)) {
        return STATUS_OK;
    }
    engine->n_forked++;
    if (engine_find_slot(engine, begin->slot, SEQUENCE_FREE, &st)) {
        give_up(engine, begin->slot);
    }
    return st;
}
