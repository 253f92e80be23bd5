/* prefill_choice.c - when all keys of a layer are there: what is kept, and which rows go on. */
#include "common/clock.h"
#include "worker/evict.h"
#include "worker/policy/gemfilter.h"
#include "worker/prompt_phase.h"

#include <assert.h>
#include <stddef.h>

/* host_list (n) = the rows that `list` names, or all; *positions = where they are in the prompt. */
static status original_positions(struct prompt_phase *phase, const int32_t *list, int n,
                                 const int32_t **positions)
{
    *positions = phase->host_positions;
    if (!list) {
        return STATUS_OK;
    }
    status st =
        device_download(phase->member->dev, phase->host_list, list, (size_t)n * sizeof(*list));
    for (int i = 0; !st && i < n; i++) {
        phase->host_list[i] = phase->host_positions[phase->host_list[i]];
    }
    *positions = phase->host_list;
    return st;
}

/* The rows that cache head `head` keeps go to the cache. */
static status store_head(struct prompt_phase *phase, int layer, int head,
                         const struct policy_choice *choice)
{
    struct member *member = phase->member;
    struct cache_heads heads = member_cache_heads(member, &phase->sequence->params);
    size_t offset =
        (size_t)(head / heads.sharing) * phase_kv_stride(member) * phase_act_bytes(member);
    struct kv_rows rows = {
        .k = (const char *)phase->k + offset,
        .v = (const char *)phase->v + offset,
        .index = choice->kept ? choice->kept + (size_t)head * choice->kept_stride : NULL,
        .n = choice->n_kept[head],
    };
    status st = original_positions(phase, rows.index, rows.n, &rows.positions);
    if (phase->raw_k) {
        rows.k = (const char *)phase->raw_k +
                 (size_t)(head / heads.sharing) * (size_t)phase->sequence->n_prompt *
                     (size_t)member->model->config.head_dim * phase_act_bytes(member);
    }

    if (!st) {
        st = kvcache_store(phase->cache, phase->sequence->slot, layer, head, &rows);
    }
    if (!st && choice->mass) {
        st =
            evict_begin(member, phase->cache, phase->sequence,
                        &(struct evict_head){
                            .layer = layer,
                            .head = head,
                            .mass = choice->mass + (size_t)head * (size_t)phase->sequence->n_prompt,
                            .marks = phase->host_marks,
                        });
    }
    if (phase->sequence->policies) {
        phase->sequence->policies[(size_t)layer * (size_t)heads.n + (size_t)head] =
            choice->policies[head];
    }
    if (!st && phase->trace && heads.speaks) {
        st = trace_head(phase->trace, layer, heads.first + head, rows.positions, rows.n);
        if (!st && phase->sequence->policies) {
            trace_policy(phase->trace, choice->policies[head]);
        }
    }
    if (rows.index && member->model->split.replicas > 1 &&
        !method_caches_by_query(&phase->sequence->params)) {
        member->head_hash = member_hash(member->head_hash, rows.positions, rows.n);
    }
    return st;
}

/* The rows whose queries are computed in this layer: those that go on, or in the last layer the
 * last row alone. */
static status take_chosen(struct prompt_phase *phase, const struct slice *slice,
                          const struct policy_choice *choice)
{
    const struct member *member = phase->member;
    const int32_t last = slice->rows - 1;
    status st = STATUS_OK;

    if (slice->layer == member->model->config.layers - 1) {
        assert(slice->chosen == 1);
        st = device_upload(member->dev, phase->chosen, &last, sizeof(last));
    } else {
        assert(choice->propagated == phase->chosen && choice->n_propagated == slice->chosen);
    }
    if (st) {
        return st;
    }
    return op_gather_rows(member->dev, phase->next_positions, phase->positions, phase->chosen,
                          slice->chosen, sizeof(int32_t));
}

static status note_propagated(struct prompt_phase *phase, const struct policy_choice *choice)
{
    struct member *member = phase->member;
    const int32_t *positions;
    status st = original_positions(phase, choice->propagated, choice->n_propagated, &positions);

    if (st) {
        return st;
    }
    member->shared_hash = member_hash(member->shared_hash, positions, choice->n_propagated);
    if (phase->trace && comm_rank(member->comm) == 0 && !phase->policy->sums_rows) {
        st = trace_propagated(phase->trace, positions, choice->n_propagated);
    }
    return st;
}

status prefill_choose(struct prompt_phase *phase, const struct slice *slice)
{
    struct member *member = phase->member;
    int heads = member_cache_heads(member, &phase->sequence->params).n;
    const struct policy_layer layer = prefill_describe_layer(phase, slice);
    struct policy_choice choice = {0};
    double begin = clock_ms();
    status st = phase->policy->choose(member, &layer, &choice);

    member->scoring_ms += clock_ms() - begin;
    if (phase->trace) {
        trace_layer(phase->trace, slice->rows);
    }
    for (int head = 0; !st && head < heads; head++) {
        st = store_head(phase, slice->layer, head, &choice);
    }
    if (!st && choice.propagated) {
        st = note_propagated(phase, &choice);
    }
    if (!st && slice->chosen < slice->rows) {
        st = take_chosen(phase, slice, &choice);
    }
    return st;
}

/* The second pass numbers its rows anew, so `positions` need no change. */
status prefill_filter(struct prompt_phase *phase, const struct slice *slice)
{
    struct member *member = phase->member;
    const struct policy_layer layer = prefill_describe_layer(phase, slice);
    const struct policy_choice choice = {.propagated = phase->chosen,
                                         .n_propagated = slice->chosen};
    double begin = clock_ms();
    status st = gemfilter_choose(member, &layer, slice->chosen);

    member->scoring_ms += clock_ms() - begin;
    if (!st) {
        st = note_propagated(phase, &choice);
    }
    if (!st) {
        st = op_gather_rows(member->dev, phase->next_positions, phase->ids, phase->chosen,
                            slice->chosen, sizeof(*phase->ids));
    }
    int32_t *ids = phase->next_positions;
    phase->next_positions = phase->ids;
    phase->ids = ids;
    return st;
}
