#include "worker/engine.h"

#include "common/clock.h"
#include "worker/decode.h"
#include "worker/engine_state.h"
#include "worker/evict.h"
#include "worker/forward.h"
#include "worker/group_queries.h"
#include "worker/policy.h"
#include "worker/step_graphs.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Memory. */

static struct kvcache_config cache_config(const struct model *model,
                                          const struct engine_config *config)
{
    return (struct kvcache_config){
        .slots = PLAN_MAX_SLOTS,
        .layers = model->config.layers,
        .head_dim = model->config.head_dim,
        .page_rows = ENGINE_PAGE_ROWS,
        .int8 = config->int8_kv,
        .ordered = model->config.sliding_window > 0,
        .bytes = config->kv_bytes,
    };
}

struct engine_memory engine_memory(const struct model *model, enum dtype dtype,
                                   const struct engine_config *config)
{
    struct kvcache_config cache = cache_config(model, config);
    int ranks = model->split.ranks;
    struct engine_memory out;
    uint64_t rest;

    prefill_bytes(model, dtype, (int)plan_prompt_rows((uint32_t)config->max_context), &out.hidden,
                  &out.layer_kv, &rest);
    out.step =
        rest + scratch_bytes(model, dtype, config->max_context, ranks) + chooser_bytes(model);
    out.pool = (uint64_t)kvcache_pages_for(&cache, dtype) * kvcache_page_bytes(&cache, dtype);
    out.lists = kvcache_list_bytes(&cache, dtype);
    return out;
}

/* What the kernels themselves work in, like all other memory of a step, is taken now. */
static status reserve(struct device *dev, const struct model *model, int max_context)
{
    const struct layer_weights *layer = &model->layers[0];
    const struct matrix *const weights[] = {&layer->q,    &layer->k,      &layer->v,
                                            &layer->o,    &layer->gate,   &layer->up,
                                            &layer->down, &model->lm_head};

    return op_reserve(dev, &(struct op_limits){
                               .weights = weights,
                               .n_weights = sizeof(weights) / sizeof(weights[0]),
                               .chunk_rows = SLICE_ROWS,
                               .keys = max_context,
                               .q_heads = model->split.query_heads,
                               .kv_heads = model->split.kv_heads,
                               .group = group_queries_heads(model),
                               .head_dim = model->config.head_dim,
                               .vocab_rows = model->split.vocab_rows,
                           });
}

status engine_open(struct engine **out, struct device *dev, const struct model *model,
                   struct comm *comm, const struct engine_config *config)
{
    struct kvcache_config cache = cache_config(model, config);
    struct engine *engine = calloc(1, sizeof(*engine));
    status st;

    if (!engine) {
        return status_fail(STATUS_EXHAUSTED, "engine: out of memory");
    }
    engine->member = (struct member){
        .dev = dev,
        .model = model,
        .comm = comm,
        .max_context = config->max_context,
        .prompt_rows = (int)plan_prompt_rows((uint32_t)config->max_context),
        .check_selection = config->check_selection,
    };
    st = reserve(dev, model, config->max_context);
    if (!st) {
        st = scratch_create(&engine->member.scratch, dev, model, config->max_context,
                            comm_size(comm));
    }
    if (!st) {
        st = kvcache_create(&engine->cache, dev, &cache);
    }
    if (!st) {
        st = chooser_create(&engine->chooser, &engine->member, &engine->results);
    }
    if (!st) {
        st = prefill_create(&engine->phases, &engine->member, engine->cache);
    }
    if (!st && config->graphs) {
        st = step_graphs_create(&engine->member.graphs, &engine->member);
    }
    if (st) {
        engine_close(engine);
        return status_note(st, "engine");
    }
    *out = engine;
    return STATUS_OK;
}

void engine_close(struct engine *engine)
{
    if (!engine) {
        return;
    }
    results_reset(&engine->results);
    step_graphs_destroy(engine->member.graphs);
    prefill_destroy(engine->phases);
    for (int i = 0; i < PLAN_MAX_SLOTS; i++) {
        sequence_fini(&engine->sequences[i]);
    }
    chooser_destroy(engine->chooser);
    kvcache_destroy(engine->cache);
    scratch_destroy(engine->member.scratch);
    free(engine);
}

uint64_t engine_kv_bytes_total(const struct engine *engine)
{
    return kvcache_bytes_total(engine->cache);
}

int engine_pages_total(const struct engine *engine)
{
    return kvcache_pages_total(engine->cache);
}

/* Prompts. */

static bool forks(const struct plan_begin *begin, const struct sequence *source)
{
    return begin->forks && begin->source == (uint32_t)source->slot;
}

static bool has_forks(const struct plan *plan, const struct sequence *sequence)
{
    for (uint32_t i = 0; i < plan->n_begin; i++) {
        if (forks(&plan->begin[i], sequence)) {
            return true;
        }
    }
    return false;
}

static void report_prompt(struct engine *engine, const struct sequence *sequence,
                          struct prompt_phase *phase, bool shares)
{
    const struct model *model = engine->member.model;
    struct cache_heads heads = member_cache_heads(&engine->member, &sequence->params);
    uint64_t layers = (uint64_t)model->config.layers;
    uint64_t row_bytes =
        kvcache_row_bytes(kvcache_config(engine->cache), device_dtype(engine->member.dev));
    struct result_prompt prompt = {
        .slot = (uint32_t)sequence->slot,
        .pages = kvcache_most_pages(engine->cache, sequence->slot),
    };

    /* A method that evicts may come to change any row of any sample. */
    if (shares && !method_evicts(&sequence->params)) {
        prompt.shared_pages =
            kvcache_shared_pages(engine->cache, sequence->slot, sequence->max_rows);
    }

    if (heads.speaks) {
        prompt.kv_heads = (uint32_t)(model->config.layers * heads.n);
        for (int layer = 0; layer < model->config.layers; layer++) {
            for (int head = 0; head < heads.n; head++) {
                prompt.kv_rows +=
                    (uint64_t)kvcache_rows(engine->cache, sequence->slot, layer, head);
            }
        }
        prompt.kv_bytes = prompt.kv_rows * row_bytes;
    }
    if (model->split.replica == 0) { /* FULL has a cache for each KV head */
        prompt.kv_bytes_full =
            layers * (uint64_t)model->split.kv_heads * (uint64_t)sequence->n_prompt * row_bytes;
    }
    results_prompt_take(&engine->results, &prompt, prefill_take_trace(phase));
}

/* When a sequence has all the rows it may get: what its method left of them. */
static status report_live(struct engine *engine, const struct sequence *sequence)
{
    const struct result_prompt live = {.slot = (uint32_t)sequence->slot, .after_decode = true};
    struct trace *trace = NULL;

    if (sequence->appended < sequence->max_rows || !(sequence->trace & TRACE_SELECTED) ||
        !method_evicts(&sequence->params)) {
        return STATUS_OK;
    }
    status st = evict_trace(&trace, &engine->member, engine->cache, sequence);
    if (st == STATUS_EXHAUSTED) {
        results_failed(&engine->results, sequence->slot);
        return STATUS_OK;
    }
    if (!st) {
        results_prompt_take(&engine->results, &live, trace);
    }
    return st;
}

/* A sequence whose prompt is read gets its first token from the one row of logits in scratch. */
static status first_token(struct engine *engine, struct sequence *sequence)
{
    status st = report_live(engine, sequence);

    return st ? st : chooser_next(engine->chooser, &sequence, 1, true);
}

static status finish_prompt(struct engine *engine, struct sequence *sequence,
                            struct prompt_phase *phase, const struct plan *plan)
{
    status st = STATUS_OK;

    report_prompt(engine, sequence, phase, has_forks(plan, sequence));
    prefill_end(phase);
    sequence->state = SEQUENCE_LIVE;
    /* All of them before any chooses: they begin alike. */
    for (uint32_t i = 0; !st && i < plan->n_begin; i++) {
        if (forks(&plan->begin[i], sequence)) {
            st = engine_fork_slot(engine, &plan->begin[i], i, sequence);
        }
    }
    if (!st && has_forks(plan, sequence)) {
        st = engine_settle_begins(engine, plan);
    }
    free(sequence->prompt);
    sequence->prompt = NULL;
    if (!st) {
        st = first_token(engine, sequence);
    }
    for (uint32_t i = 0; !st && i < plan->n_begin; i++) {
        if (forks(&plan->begin[i], sequence) &&
            engine->sequences[plan->begin[i].slot].state == SEQUENCE_LIVE) {
            st = first_token(engine, &engine->sequences[plan->begin[i].slot]);
        }
    }
    return st;
}

static status advance_slot(struct engine *engine, const struct plan_advance *advance,
                           const struct plan *plan)
{
    bool done = false;
    status st;

    if (engine_gave_up(engine, advance->slot)) {
        return STATUS_OK;
    }
    struct sequence *sequence = engine_find_slot(engine, advance->slot, SEQUENCE_PROMPT, &st);
    if (!sequence) {
        return st;
    }
    struct prompt_phase *phase = prefill_find(engine->phases, sequence);
    if (!phase) {
        st = prefill_begin(engine->phases, sequence, &phase);
    }
    for (uint32_t i = 0; !st && i < advance->slices; i++) {
        if (done) {
            return status_fail(STATUS_INTERNAL, "slot %u: %u slices are more than are left",
                               advance->slot, advance->slices);
        }
        st = prefill_slice(phase, &done);
    }
    if (sequence->lacks_memory) {
        results_failed(&engine->results, sequence->slot);
    }
    return st || !done ? st : finish_prompt(engine, sequence, phase, plan);
}

/* Decode. */

/* The rows of a step that go through the layers together. */
static status decode_batch(struct engine *engine, struct sequence **rows, int n)
{
    status st = decode_step(&engine->member, engine->cache, rows, n);

    if (!st) {
        st = chooser_next(engine->chooser, rows, n, false);
    }
    if (!st) {
        st = decode_end(&engine->member, engine->cache, rows, n);
    }
    for (int i = 0; !st && i < n; i++) {
        st = report_live(engine, rows[i]);
    }
    return st;
}

static status decode_slots(struct engine *engine, const uint32_t *slots, uint32_t n)
{
    struct sequence *rows[PLAN_MAX_DECODE];
    bool seen[PLAN_MAX_SLOTS] = {false};
    uint32_t n_rows = 0;
    status st = STATUS_OK;

    if (n > PLAN_MAX_DECODE) {
        return status_fail(STATUS_INTERNAL, "%u rows to decode, the limit is %d", n,
                           PLAN_MAX_DECODE);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (engine_gave_up(engine, slots[i])) {
            continue;
        }
        struct sequence *row = engine_find_slot(engine, slots[i], SEQUENCE_LIVE, &st);
        if (!row) {
            return st;
        }
        if (seen[slots[i]] || row->appended == row->max_rows) {
            return status_fail(STATUS_INTERNAL, "slot %u: decoded twice, or past its %d rows",
                               slots[i], row->max_rows);
        }
        seen[slots[i]] = true;
        rows[n_rows++] = row;
    }
    for (uint32_t i = 0; !st && i < n_rows; i += SCRATCH_DECODE_ROWS) {
        uint32_t left = n_rows - i;
        st = decode_batch(engine, rows + i,
                          left < SCRATCH_DECODE_ROWS ? (int)left : SCRATCH_DECODE_ROWS);
    }
    return st;
}

/* Plans. */

/* Begins and advances. */
static status apply_prompts(struct engine *engine, const struct plan *plan)
{
    uint32_t n_forks = 0;
    status st = STATUS_OK;

    engine->n_forked = 0;
    for (uint32_t i = 0; !st && i < plan->n_begin; i++) {
        n_forks += plan->begin[i].forks;
        st = plan->begin[i].forks ? engine_begin_fork(engine, &plan->begin[i])
                                  : engine_begin_slot(engine, &plan->begin[i], i);
    }
    if (!st && n_forks < plan->n_begin) {
        st = engine_settle_begins(engine, plan);
    }
    for (uint32_t i = 0; !st && i < plan->n_advance; i++) {
        st = advance_slot(engine, &plan->advance[i], plan);
    }
    if (!st && engine->n_forked != n_forks) {
        st = status_fail(STATUS_INTERNAL, "%u of %u forks are of prompts that do not end here",
                         n_forks - engine->n_forked, n_forks);
    }
    return st;
}

static status apply(struct engine *engine, const struct plan *plan)
{
    status st = STATUS_OK;

    if (plan->n_advance > PLAN_MAX_ADVANCE || plan->n_begin > PLAN_MAX_SLOTS) {
        return status_fail(STATUS_INTERNAL, "%u prompts to advance and %u to begin, limits %d, %d",
                           plan->n_advance, plan->n_begin, PLAN_MAX_ADVANCE, PLAN_MAX_SLOTS);
    }
    for (uint32_t i = 0; !st && i < plan->n_release; i++) {
        st = engine_release_slot(engine, plan->release[i]);
    }
    st = st ? st : apply_prompts(engine, plan);
    if (!st && plan->n_decode) {
        if (plan->n_advance) { /* so that the slices' time is not the step's */
            st = device_sync(engine->member.dev);
        }
        double begin = clock_ms();
        st = st ? st : decode_slots(engine, plan->decode, plan->n_decode);
        engine->decode_ms = clock_ms() - begin;
    }
    if (!st && engine->member.check_selection) {
        st = member_check_hashes(&engine->member);
    }
    /* a decode step ends with waiting for its tokens */
    return st || plan->n_decode ? st : device_sync(engine->member.dev);
}

status engine_step(struct engine *engine, const struct plan *plan, struct step_result *result)
{
    static const uint64_t start_of_hash = UINT64_C(0xcbf29ce484222325);
    struct results *results = &engine->results;
    double start = clock_ms();

    results_reset(results);
    engine->member.shared_hash = start_of_hash;
    engine->member.head_hash = start_of_hash;
    engine->member.scoring_ms = 0;
    engine->decode_ms = 0;
    status st = apply(engine, plan);
    if (st) {
        return status_note(st, "plan %llu", (unsigned long long)plan->number);
    }
    struct comm_times times = comm_take_times(engine->member.comm);
    *result = (struct step_result){
        .epoch = plan->epoch,
        .number = plan->number,
        .n_tokens = results->n_tokens,
        .tokens = results->tokens,
        .n_prompts = results->n_prompts,
        .prompts = results->prompts,
        .n_logits = results->n_logits,
        .logits = results->logits,
        .n_failed = results->n_failed,
        .failed = results->failed,
        .collective_ms = times.waited,
        .exchange_ms = times.total,
        .scoring_ms = engine->member.scoring_ms,
        .decode_ms = engine->decode_ms,
        .kv_bytes_used = kvcache_bytes_used(engine->cache),
        .index_hash = engine->member.shared_hash,
    };
    result->compute_ms = clock_ms() - start;
    return STATUS_OK;
}
