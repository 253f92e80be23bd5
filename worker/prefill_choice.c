/* prefill_choice.c - when all keys of a layer are there: what is kept, and which rows go on. */
#include "common/clock.h"
#include "worker/evict.h"
#include "worker/policy/gemfilter.h"
#include "worker/prompt_phase.h"

#include <assert.h>
#include <stddef.h>

/* Where the cache head's list of kept rows, or its masses, lie on the host. */
static size_t of_head(const struct prompt_phase *phase, int head)
{
    return (size_t)head * (size_t)phase->member->max_context;
}

/* What the host has to know of a choice, with one wait: the rows that heads keep, in host_rows,
 * and their masses; the rows that go on, in host_list. */
static status fetch_choice(struct prompt_phase *phase, const struct policy_choice *choice,
                           int heads)
{
    struct member *member = phase->member;
    struct scratch *s = member->scratch;
    size_t rows = (size_t)phase->sequence->n_prompt;
    status st = STATUS_OK;

    for (int head = 0; !st && choice->kept && head < heads; head++) {
        st = device_fetch(member->dev, s->host_rows + of_head(phase, head),
                          choice->kept + (size_t)head * choice->kept_stride,
                          (size_t)choice->n_kept[head] * sizeof(*s->host_rows));
    }
    for (int head = 0; !st && choice->mass && head < heads; head++) {
        st = device_fetch(member->dev, s->host_mass + of_head(phase, head),
                          choice->mass + (size_t)head * rows, rows * sizeof(*s->host_mass));
    }
    if (!st && choice->propagated) {
        st = device_fetch(member->dev, phase->host_list, choice->propagated,
                          (size_t)choice->n_propagated * sizeof(*phase->host_list));
    }
    if (!st && (choice->kept || choice->mass || choice->propagated)) {
        st = device_sync(member->dev);
    }
    return st;
}

/* list (n): rows become where they are in the prompt. */
static void to_positions(const struct prompt_phase *phase, int32_t *list, int n)
{
    for (int i = 0; i < n; i++) {
        list[i] = phase->host_positions[list[i]];
    }
}

/* Without memory for its trace a prompt is read on, like on the ranks that have it, and its request
 * fails. */
static void lose_trace(struct prompt_phase *phase)
{
    trace_destroy(phase->trace);
    phase->trace = NULL;
    phase->sequence->lacks_memory = true;
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
        .positions = phase->host_positions,
        .n = choice->n_kept[head],
    };
    status st;

    if (rows.index) {
        int32_t *kept = member->scratch->host_rows + of_head(phase, head);
        to_positions(phase, kept, rows.n);
        rows.positions = kept;
    }
    st = kvcache_store(phase->cache, phase->sequence->slot, layer, head, &rows);
    if (!st && evict_follows(phase->sequence)) {
        st = evict_begin(member, phase->cache, phase->sequence,
                         &(struct evict_head){
                             .layer = layer,
                             .head = head,
                             .positions = rows.positions,
                             .n = rows.n,
                             .mass = member->scratch->host_mass + of_head(phase, head),
                             .marks = phase->host_marks,
                         });
    }
    if (phase->sequence->policies) {
        phase->sequence->policies[(size_t)layer * (size_t)heads.n + (size_t)head] =
            choice->policies[head];
    }
    if (!st && phase->trace && heads.speaks) {
        status lost = trace_head(phase->trace, layer, heads.first + head, rows.positions, rows.n);
        if (lost) {
            lose_trace(phase);
        } else if (phase->sequence->policies) {
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

static void note_propagated(struct prompt_phase *phase, const struct policy_choice *choice)
{
    struct member *member = phase->member;
    int32_t *list = phase->host_list;

    to_positions(phase, list, choice->n_propagated);
    member->shared_hash = member_hash(member->shared_hash, list, choice->n_propagated);
    if (phase->trace && comm_rank(member->comm) == 0 && !phase->policy->sums_rows) {
        if (trace_propagated(phase->trace, list, choice->n_propagated)) {
            lose_trace(phase);
        }
    }
}

/* The chosen rows will be at the front, so their positions come there too: of those that go on, as
 * noted, or of the last row. */
static void follow_chosen(struct prompt_phase *phase, const struct slice *slice,
                          const struct policy_choice *choice)
{
    if (choice->propagated) {
        int32_t *positions = phase->host_positions;

        phase->host_positions = phase->host_list;
        phase->host_list = positions;
    } else {
        phase->host_positions[0] = phase->host_positions[slice->rows - 1];
    }
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
    if (!st) {
        st = fetch_choice(phase, &choice, heads);
    }
    for (int head = 0; !st && head < heads; head++) {
        st = store_head(phase, slice->layer, head, &choice);
    }
    if (!st && choice.propagated) {
        note_propagated(phase, &choice);
    }
    if (!st && slice->chosen < slice->rows) {
        st = take_chosen(phase, slice, &choice);
        follow_chosen(phase, slice, &choice);
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
        st = fetch_choice(phase, &choice, 0);
    }
    if (!st) {
        note_propagated(phase, &choice);
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
