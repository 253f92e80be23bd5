#include "worker/evict.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Which rows of a head stay whatever their mass is; of the others the heaviest `n_others`. */
struct rule {
    int first;     /* positions below */
    int recent;    /* positions above */
    uint8_t marks; /* of any of these kinds */
    bool by_age;   /* the oldest go, instead of the lightest */
    int n_others;
};

/* A cache head. */
struct place {
    struct kvcache *cache;
    int slot, layer, head;
};

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

void evict_begin(struct kvcache *cache, const struct sequence *sequence,
                 const struct evict_head *head)
{
    int rows = kvcache_rows(cache, sequence->slot, head->layer, head->head);

    for (int page = 0, begin = 0; begin < rows; page++) {
        struct kv_notes notes = kvcache_notes(cache, sequence->slot, head->layer, head->head, page);

        for (int i = 0; i < notes.n; i++) {
            notes.mass[i] = head->mass[notes.positions[i]];
            notes.mark[i] = head->marks[notes.positions[i]];
        }
        begin += notes.n;
    }
}

static bool stays(const struct rule *rule, int position, uint8_t mark)
{
    return position < rule->first || position > rule->recent || (mark & rule->marks);
}

struct candidate {
    int row, position;
    float mass;
};

/* Of two rows that may go: equal masses leave the lower position. */
static bool goes_first(const struct rule *rule, const struct candidate *a,
                       const struct candidate *b)
{
    if (rule->by_age) {
        return a->position < b->position;
    }
    return a->mass < b->mass || (!(a->mass > b->mass) && a->position > b->position);
}

/* Adds to *count the rows of a page that may go; *out is the one that goes first so far. */
static void find_in_page(const struct kv_notes *notes, int begin, const struct rule *rule,
                         int *count, struct candidate *out)
{
    for (int i = 0; i < notes->n; i++) {
        struct candidate here = {begin + i, notes->positions[i], notes->mass[i]};

        if (stays(rule, here.position, notes->mark[i])) {
            continue;
        }
        if (*count == 0 || goes_first(rule, &here, out)) {
            *out = here;
        }
        (*count)++;
    }
}

/* How many rows may go, and the one that goes first. */
static int find(const struct place *p, const struct rule *rule, struct candidate *out)
{
    int rows = kvcache_rows(p->cache, p->slot, p->layer, p->head);
    int count = 0;

    for (int page = 0, begin = 0; begin < rows; page++) {
        struct kv_notes notes = kvcache_notes(p->cache, p->slot, p->layer, p->head, page);

        find_in_page(&notes, begin, rule, &count, out);
        begin += notes.n;
    }
    return count;
}

/* *hash takes in what went; NULL: nobody compares it. */
static status evict(const struct place *p, const struct rule *rule, uint64_t *hash)
{
    struct candidate worst = {0};

    while (find(p, rule, &worst) > rule->n_others) {
        status st = kvcache_drop(p->cache, p->slot, p->layer, p->head, worst.row);
        if (st) {
            return st;
        }
        if (hash) {
            *hash = member_hash(*hash, &worst.position, 1);
        }
    }
    return STATUS_OK;
}

status evict_before(struct kvcache *cache, const struct sequence *sequence, int layer, int head)
{
    const struct method_params *params = &sequence->params;
    const struct place place = {cache, sequence->slot, layer, head};

    if (params->method != METHOD_STREAMINGLLM || !params->rolling) {
        return STATUS_OK;
    }
    int others = method_budget(params, sequence->n_prompt) - 1 - params->sinks;
    const struct rule rule = {
        .first = params->sinks,
        .recent = INT_MAX,
        .by_age = true,
        .n_others = others > 0 ? others : 0,
    };
    return evict(&place, &rule, NULL);
}

static struct rule h2o_rule(const struct sequence *sequence)
{
    const struct method_params *params = &sequence->params;
    int others = method_budget(params, sequence->n_prompt) - params->window;

    return (struct rule){
        .recent = sequence_position(sequence) - params->window,
        .n_others = others > 0 ? others : 0,
    };
}

static struct rule fastgen_rule(const struct sequence *sequence, enum fastgen_policy policy)
{
    const struct method_params *params = &sequence->params;
    int n = sequence->n_prompt;
    struct rule rule = {
        .first = params->fg_global_tokens,
        .recent = INT_MAX,
        .marks = EVICT_SPECIAL,
    };

    if (policy >= FASTGEN_PUNCT) {
        rule.marks |= EVICT_PUNCT;
    }
    if (policy >= FASTGEN_FREQUENT) {
        rule.n_others = method_fastgen_frequent(params, n);
    }
    if (policy == FASTGEN_LOCAL) {
        rule.recent = sequence_position(sequence) - method_fastgen_local(params, n);
    }
    return rule;
}

/* False: everything stays. */
static bool rule_of(struct rule *out, const struct sequence *sequence, size_t cell)
{
    if (sequence->params.method == METHOD_H2O) {
        *out = h2o_rule(sequence);
        return true;
    }
    enum fastgen_policy policy = sequence->policies[cell];
    *out = fastgen_rule(sequence, policy);
    return policy != FASTGEN_FULL;
}

/* What the step's attention gave the rows of the head joins their masses. */
static void add_mass(const struct place *p, const float *mass)
{
    int rows = kvcache_rows(p->cache, p->slot, p->layer, p->head);

    for (int page = 0, begin = 0; begin < rows; page++) {
        struct kv_notes notes = kvcache_notes(p->cache, p->slot, p->layer, p->head, page);

        for (int i = 0; i < notes.n; i++) {
            notes.mass[i] += mass[begin + i];
        }
        begin += notes.n;
    }
}

/* The step's probabilities, reduced over query groups on however many ranks those lie; in scratch
 * by cache head. */
static status find_mass(const struct member *member, const struct sequence *sequence,
                        const struct decode_attention *attention, int rows)
{
    const struct split *split = &member->model->split;
    const struct method_params *params = &sequence->params;
    bool max = params->group_reduce == GROUP_MAX;
    status st = op_decode_mass(member->dev, member->scratch->scores, (size_t)member->max_context,
                               attention, max ? GROUP_MAX : GROUP_SUM);

    if (st || split->replicas == 1 || method_caches_by_query(params)) {
        return st;
    }
    return comm_group_reduce(member->comm, comm_rank(member->comm) - split->replica,
                             split->replicas, member->scratch->scores, (size_t)rows, max);
}

static status update_head(struct member *member, const struct place *place, const struct rule *rule,
                          bool shared)
{
    struct scratch *s = member->scratch;
    size_t rows = (size_t)kvcache_rows(place->cache, place->slot, place->layer, place->head);
    status st = STATUS_OK;

    if (rule->n_others > 0) {
        st = device_download(member->dev, s->host_mass,
                             s->scores + (size_t)place->head * (size_t)member->max_context,
                             rows * sizeof(float));
        if (st) {
            return st;
        }
        st = kvcache_own(place->cache, place->slot, place->layer, place->head);
        if (st) {
            return st;
        }
        add_mass(place, s->host_mass);
    }
    return evict(place, rule, shared ? &member->head_hash : NULL);
}

bool evict_follows(const struct sequence *sequence)
{
    return method_sums_columns(&sequence->params, sequence->n_prompt) &&
           method_evicts(&sequence->params);
}

status evict_after(struct member *member, struct kvcache *cache, const struct sequence *sequence,
                   int layer, const struct decode_attention *attention)
{
    int heads = attention->cache_heads;
    size_t cell = (size_t)layer * (size_t)heads;
    bool shared = member->model->split.replicas > 1 && !method_caches_by_query(&sequence->params);
    bool weighs = false;
    struct rule rule;
    status st = STATUS_OK;

    if (!evict_follows(sequence)) {
        return STATUS_OK;
    }
    for (int head = 0; head < heads; head++) {
        weighs |= rule_of(&rule, sequence, cell + (size_t)head) && rule.n_others > 0;
    }
    if (weighs) {
        st = find_mass(member, sequence, attention, kvcache_rows(cache, sequence->slot, layer, 0));
    }
    for (int head = 0; !st && head < heads; head++) {
        const struct place place = {cache, sequence->slot, layer, head};
        if (rule_of(&rule, sequence, cell + (size_t)head)) {
            st = update_head(member, &place, &rule, shared);
        }
    }
    return st ? st : kvcache_settle(cache);
}

static int ascending(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

static status trace_rows(struct trace *trace, struct member *member, const struct place *p,
                         int number)
{
    int rows = kvcache_rows(p->cache, p->slot, p->layer, p->head);
    int32_t *positions = member->scratch->host_rows;

    for (int page = 0, begin = 0; begin < rows; page++) {
        struct kv_notes notes = kvcache_notes(p->cache, p->slot, p->layer, p->head, page);
        memcpy(positions + begin, notes.positions, (size_t)notes.n * sizeof(*positions));
        begin += notes.n;
    }
    qsort(positions, (size_t)rows, sizeof(*positions), ascending);
    return trace_head(trace, p->layer, number, positions, rows);
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
