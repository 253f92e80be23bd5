#include "worker/evict.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* ids ascend. */
static bool contains(const uint32_t *ids, int n, int32_t token)
{
    int low = 0, high = n;

    while (low < high) {
        int middle = low + (high - low) / 2;
        if (ids[middle] < (uint32_t)token) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < n && ids[low] == (uint32_t)token;
}

uint8_t evict_mark(const struct method_params *params, int32_t token)
{
    bool special = contains(params->fg_special_ids, params->n_fg_special_ids, token);
    bool punct = contains(params->fg_punct_ids, params->n_fg_punct_ids, token);

    return (uint8_t)((special ? EVICT_SPECIAL : 0) | (punct ? EVICT_PUNCT : 0));
}

status evict_begin(struct member *member, struct kvcache *cache, const struct sequence *sequence,
                   const struct evict_head *head)
{
    struct kv_note *notes = member->scratch->host_notes;

    for (int i = 0; i < head->n; i++) {
        int32_t position = head->positions[i];
        notes[i] = (struct kv_note){head->mass[position], position, head->marks[position]};
    }
    status st =
        device_upload(member->dev, member->scratch->notes, notes, (size_t)head->n * sizeof(*notes));
    return st ? st
              : op_kv_note(member->dev, kvcache_pool(cache),
                           kvcache_table(cache, sequence->slot, head->layer, head->head),
                           member->scratch->notes, head->n);
}

/* How many rows of a head have a position from `first` on, and which of them is the oldest. */
static int count_from(const struct kvcache *cache, int slot, int layer, int head, int first,
                      int *oldest)
{
    int rows = kvcache_rows(cache, slot, layer, head);
    int count = 0;
    int lowest = INT_MAX;

    for (int page = 0, begin = 0; begin < rows; page++) {
        int n;
        const int32_t *positions = kvcache_positions(cache, slot, layer, head, page, &n);

        for (int i = 0; i < n; i++) {
            count += positions[i] >= first;
            if (positions[i] >= first && positions[i] < lowest) {
                lowest = positions[i];
                *oldest = begin + i;
            }
        }
        begin += n;
    }
    return count;
}

status evict_before(struct kvcache *cache, const struct sequence *sequence, int layer, int head)
{
    const struct method_params *params = &sequence->params;
    int slot = sequence->slot;
    int oldest = 0;
    status st = STATUS_OK;

    if (params->method != METHOD_STREAMINGLLM || !params->rolling) {
        return STATUS_OK;
    }
    int others = method_budget(params, sequence->n_prompt) - 1 - params->sinks;
    int most = others > 0 ? others : 0;
    while (!st && count_from(cache, slot, layer, head, params->sinks, &oldest) > most) {
        st = kvcache_drop(cache, slot, layer, head, oldest);
    }
    return st;
}

static void h2o_rule(struct evict_rule *rule, const struct sequence *sequence)
{
    const struct method_params *params = &sequence->params;
    int others = method_budget(params, sequence->n_prompt) - params->window;

    rule->recent = sequence_position(sequence) - params->window;
    rule->n_others = others > 0 ? others : 0;
}

static void fastgen_rule(struct evict_rule *rule, const struct sequence *sequence,
                         enum fastgen_policy policy)
{
    const struct method_params *params = &sequence->params;
    int n = sequence->n_prompt;

    rule->first = params->fg_global_tokens;
    rule->recent = INT_MAX;
    rule->marks = EVICT_SPECIAL;
    if (policy >= FASTGEN_PUNCT) {
        rule->marks |= EVICT_PUNCT;
    }
    if (policy >= FASTGEN_FREQUENT) {
        rule->n_others = method_fastgen_frequent(params, n);
    }
    if (policy == FASTGEN_LOCAL) {
        rule->recent = sequence_position(sequence) - method_fastgen_local(params, n);
    }
    if (policy == FASTGEN_FULL) {
        rule->n_others = INT_MAX;
    }
}

static struct evict_rule rule_of(const struct kvcache *cache, const struct sequence *sequence,
                                 int layer, int head, enum fastgen_policy policy)
{
    struct evict_rule rule = {
        .pages = kvcache_table(cache, sequence->slot, layer, head),
        .rows = kvcache_rows(cache, sequence->slot, layer, head),
        .position = sequence_position(sequence),
        .new_marks = evict_mark(&sequence->params, sequence->token),
    };

    if (sequence->params.method == METHOD_H2O) {
        h2o_rule(&rule, sequence);
    } else {
        fastgen_rule(&rule, sequence, policy);
    }
    return rule;
}

/* Whether masses decide in any of a layer's heads. */
static bool weighs(const struct evict_rule *rules, int heads)
{
    for (int head = 0; head < heads; head++) {
        if (rules[head].n_others > 0 && rules[head].n_others < INT_MAX) {
            return true;
        }
    }
    return false;
}

static enum group_reduce how_of(const struct sequence *sequence)
{
    return sequence->params.group_reduce == GROUP_MAX ? GROUP_MAX : GROUP_SUM;
}

void evict_rules(struct evict_rule *rules, const struct kvcache *cache,
                 const struct sequence *sequence, int layer, int heads)
{
    const uint8_t *policies = sequence->policies;

    for (int head = 0; head < heads; head++) {
        enum fastgen_policy policy = policies ? policies[layer * heads + head] : FASTGEN_FULL;
        rules[head] = rule_of(cache, sequence, layer, head, policy);
    }
    bool joins = weighs(rules, heads);
    for (int head = 0; head < heads; head++) {
        rules[head].joins = joins ? (int32_t)how_of(sequence) : 0;
    }
}

bool evict_follows(const struct sequence *sequence)
{
    return method_sums_columns(&sequence->params, sequence->n_prompt) &&
           method_evicts(&sequence->params);
}

status evict_after(struct member *member, const struct decode_attention *attention, size_t cell)
{
    return op_evict(member->dev, &(struct evict){
                                     .out = member->scratch->evicted + cell,
                                     .pool = attention->pool,
                                     .rules = member->scratch->rules + cell,
                                     .heads = attention->rows * attention->cache_heads,
                                     .attention = attention,
                                 });
}

status evict_end(struct member *member, struct kvcache *cache, const struct sequence *sequence,
                 int layer, int heads, size_t cell)
{
    bool shared = member->model->split.replicas > 1 && !method_caches_by_query(&sequence->params);
    int page_rows = kvcache_config(cache)->page_rows;
    int slot = sequence->slot;
    status st = STATUS_OK;

    for (int head = 0; !st && head < heads; head++) {
        int row = member->scratch->host_evicted[cell + (size_t)head];
        int n;
        if (row < 0) {
            continue;
        }
        if (shared) {
            const int32_t *positions =
                kvcache_positions(cache, slot, layer, head, row / page_rows, &n);
            member->head_hash = member_hash(member->head_hash, &positions[row % page_rows], 1);
        }
        st = kvcache_drop(cache, slot, layer, head, row);
    }
    return st;
}

/* A cache head. */
struct place {
    struct kvcache *cache;
    int slot, layer, head;
};

static int ascending(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

static status trace_rows(struct trace *trace, struct member *member, const struct place *p,
                         int number)
{
    int rows = kvcache_rows(p->cache, p->slot, p->layer, p->head);
    int32_t *list = member->scratch->host_rows;

    for (int page = 0, begin = 0; begin < rows; page++) {
        int n;
        const int32_t *positions =
            kvcache_positions(p->cache, p->slot, p->layer, p->head, page, &n);
        memcpy(list + begin, positions, (size_t)n * sizeof(*list));
        begin += n;
    }
    qsort(list, (size_t)rows, sizeof(*list), ascending);
    return trace_head(trace, p->layer, number, list, rows);
}

status evict_trace(struct trace **out, struct member *member, struct kvcache *cache,
                   const struct sequence *sequence)
{
    struct cache_heads heads = member_cache_heads(member, &sequence->params);
    int layers = member->model->config.layers;
    struct trace *trace;
    status st = trace_create(&trace, layers, heads.n);

    if (st) {
        return st;
    }
    for (int layer = 0; heads.speaks && layer < layers; layer++) {
        for (int head = 0; !st && head < heads.n; head++) {
            const struct place place = {cache, sequence->slot, layer, head};
            st = trace_rows(trace, member, &place, heads.first + head);
        }
    }
    if (st) {
        trace_destroy(trace);
        return st;
    }
    *out = trace;
    return STATUS_OK;
}
