#include "worker/decode.h"

#include "worker/evict.h"
#include "worker/forward.h"
#include "worker/group_queries.h"
#include "worker/step_graphs.h"

#include <assert.h>

/* Neighbouring rows with the same number of caches; rows behind those of the sequences fill the
 * part up to the size of a graph: they see the spare page alone. */
struct part {
    int first, n;         /* rows */
    int first_live, live; /* sequences, in the first rows */
    int heads;            /* cache heads of a row */
    size_t cell;          /* of its first row, within a layer's */
    bool by_query;
    bool evicts; /* any of them, by attention */
};

/* One step: n rows, and a cell in the scratch arrays for each (layer, row, cache head). */
struct step {
    struct member *member;
    struct kvcache *cache;
    struct sequence **rows;
    int live; /* rows with a sequence */
    int n;
    struct part parts[STEP_KINDS];
    bool recorded;  /* it runs from a graph */
    bool scattered; /* spare rows lie between live ones */
    bool evicts;    /* any part */
    bool has_sinks; /* any row */
    size_t layer_cells;
    struct step_lists lists; /* on the device */
    struct step_lists host;
};

static int part_number(const struct sequence *sequence)
{
    return method_caches_by_query(&sequence->params) ? STEP_BY_QUERY_HEAD : STEP_BY_KV_HEAD;
}

/* Brings the rows into the order of their parts. */
static void divide(struct step *step)
{
    const struct split *split = &step->member->model->split;
    struct sequence *rows[SCRATCH_DECODE_ROWS];
    int n = 0;

    step->evicts = step->has_sinks = false;
    for (int p = 0; p < STEP_KINDS; p++) {
        struct part *part = &step->parts[p];
        bool by_query = p == STEP_BY_QUERY_HEAD;
        *part = (struct part){
            .first_live = n,
            .heads = by_query ? split->query_heads : split->kv_heads,
            .by_query = by_query,
        };
        for (int i = 0; i < step->live; i++) {
            if (part_number(step->rows[i]) == p) {
                part->evicts = part->evicts || evict_follows(step->rows[i]);
                step->has_sinks = step->has_sinks || step->rows[i]->ranked;
                rows[n++] = step->rows[i];
            }
        }
        part->live = part->n = n - part->first_live;
        step->evicts = step->evicts || part->evicts;
    }
    for (int i = 0; i < n; i++) {
        step->rows[i] = rows[i];
    }
}

/* NULL: a row that fills the part up. */
static struct sequence *sequence_of(const struct step *step, const struct part *part, int row)
{
    return row < part->live ? step->rows[part->first_live + row] : NULL;
}

static size_t first_cell(const struct step *step, int layer, const struct part *part)
{
    return (size_t)layer * step->layer_cells + part->cell;
}

/* Room for one row in every head of a sequence's layer; where it is, and what attention sees. */
static status place_row(const struct step *step, int layer, const struct part *part, int row)
{
    const struct sequence *sequence = sequence_of(step, part, row);
    const struct step_lists *host = &step->host;
    int sliding = step->member->model->config.sliding_window;
    int position = sequence_position(sequence);

    for (int head = 0; head < part->heads; head++) {
        size_t cell = first_cell(step, layer, part) + (size_t)(row * part->heads + head);
        status st = evict_before(step->cache, sequence, layer, head);
        if (!st) {
            st = kvcache_append(step->cache, sequence->slot, layer, head, position,
                                &host->slot[cell]);
        }
        if (st) {
            return status_note(st, "slot %d, layer %d", sequence->slot, layer);
        }
        host->tables[cell] = kvcache_table(step->cache, sequence->slot, layer, head);
        host->length[cell] = kvcache_rows(step->cache, sequence->slot, layer, head);
        host->first[cell] =
            sliding && !sequence->ranked
                ? kvcache_first(step->cache, sequence->slot, layer, head, position - sliding + 1)
                : 0;
    }
    return STATUS_OK;
}

/* What leaves a row's caches; nothing, unless a sequence is there that evicts. */
static void place_rules(const struct step *step, int layer, const struct part *part, int row)
{
    struct evict_rule *rules = step->member->scratch->host_rules + first_cell(step, layer, part) +
                               (size_t)(row * part->heads);

    const struct sequence *sequence = sequence_of(step, part, row);

    if (sequence && evict_follows(sequence)) {
        evict_rules(rules, step->cache, sequence, layer, part->heads);
        return;
    }
    for (int head = 0; head < part->heads; head++) {
        rules[head] = (struct evict_rule){.rows = 0};
    }
}

/* The same of a row without a sequence. */
static void place_spare_row(const struct step *step, int layer, const struct part *part, int row)
{
    size_t cell = first_cell(step, layer, part) + (size_t)(row * part->heads);

    for (int head = 0; head < part->heads; head++, cell++) {
        step->host.tables[cell] = kvcache_spare_table(step->cache);
        step->host.slot[cell] = kvcache_spare_row(step->cache);
        step->host.first[cell] = 0;
        step->host.length[cell] = 1;
    }
}

static status place_part(const struct step *step, int layer, const struct part *part)
{
    status st = STATUS_OK;

    for (int row = 0; !st && row < part->n; row++) {
        if (row < part->live) {
            st = place_row(step, layer, part, row);
        } else {
            place_spare_row(step, layer, part, row);
        }
        if (!st && part->evicts) {
            place_rules(step, layer, part, row);
        }
    }
    return st;
}

/* Where positions are those of the cache, rows that left it are not counted: all but the sinks are
 * as far from the query as they were, and the sinks are nearer by as many. */
static void place_sinks(const struct step *step, const struct sequence *sequence, int row)
{
    int newest = kvcache_rows(step->cache, sequence->slot, 0, 0) - 1;

    step->host.sink_positions[row] = newest;
    step->host.sinks[row] = newest < sequence_position(sequence) ? sequence->params.sinks : 0;
}

/* What embedding, rotation and attention read of each row of a part, and which live ones these
 * are. */
static void place_tokens(const struct step *step, const struct part *part)
{
    const struct step_lists *host = &step->host;

    for (int row = 0; row < part->n; row++) {
        const struct sequence *sequence = sequence_of(step, part, row);
        int i = part->first + row;

        host->ids[i] = sequence ? sequence->token : 0;
        host->positions[i] = sequence ? sequence_position(sequence) : 0;
        host->sinks[i] = host->sink_positions[i] = 0;
        if (sequence && sequence->ranked) {
            place_sinks(step, sequence, i);
        }
        if (sequence) {
            host->order[part->first_live + row] = i;
        }
    }
}

/* All layers at once, so that one upload serves the step. */
static status place_rows(struct step *step)
{
    struct scratch *s = step->member->scratch;
    const struct model *model = step->member->model;
    size_t cells = (size_t)model->config.layers * step->layer_cells;
    size_t bytes = step_lists_lay_out(&step->host, s->host_step, model, (size_t)step->n, cells);
    status st = STATUS_OK;

    step_lists_lay_out(&step->lists, s->step, model, (size_t)step->n, cells);
    for (int layer = 0; !st && layer < model->config.layers; layer++) {
        for (int p = 0; !st && p < STEP_KINDS; p++) {
            st = place_part(step, layer, &step->parts[p]);
        }
    }
    if (st) {
        return st;
    }
    for (int i = step->live; i < step->n; i++) {
        step->host.order[i] = 0;
    }
    for (int p = 0; p < STEP_KINDS; p++) {
        place_tokens(step, &step->parts[p]);
    }
    if (group_queries_lie_apart(model)) {
        group_queries_list(step->host.group_rows, step->member, step->parts[STEP_BY_KV_HEAD].n);
    }
    st = kvcache_settle(step->cache);
    if (!st && step->evicts) {
        st = device_upload(step->member->dev, s->rules, s->host_rules, cells * sizeof(*s->rules));
    }
    return st ? st : device_upload(step->member->dev, s->step, s->host_step, bytes);
}

/* The queries of all rows as sinks see them. */
static status turn_to_sinks(const struct step *step)
{
    const struct model *model = step->member->model;
    struct scratch *s = step->member->scratch;
    size_t row = (size_t)model->split.query_heads * (size_t)model->config.head_dim *
                 dtype_bytes(device_dtype(step->member->dev));
    status st = op_gather_rows(step->member->dev, s->q_sinks, s->q, s->in_order, step->n, row);

    return st ? st
              : op_rope(step->member->dev, &(struct rope){
                                               .q = s->q_sinks,
                                               .positions = step->lists.sink_positions,
                                               .inv_freq = model->inv_freq,
                                               .rows = step->n,
                                               .q_heads = model->split.query_heads,
                                               .head_dim = model->config.head_dim,
                                           });
}

/* Queries, keys and values of all rows, in scratch; but for those of sinks, nothing is rotated
 * yet. */
static status project(const struct step *step, const struct layer_weights *layer)
{
    const struct model *model = step->member->model;
    struct scratch *s = step->member->scratch;
    struct device *dev = step->member->dev;
    const struct weight_product all[] = {{s->q, &layer->q}, {s->k, &layer->k}, {s->v, &layer->v}};
    status st = op_rmsnorm(dev, s->normed, s->residual, layer->input_norm, step->n,
                           model->config.hidden, model->config.rms_eps);

    if (!st) {
        st = op_linear_rows_each(dev, all, 3, s->normed, step->n);
    }
    return st || !step->has_sinks ? st : turn_to_sinks(step);
}

/* Where a part's rows of x (rows, heads, head_dim) begin. */
static void *part_of(const struct step *step, const struct part *part, void *x, int heads)
{
    size_t elements =
        (size_t)part->first * (size_t)heads * (size_t)step->member->model->config.head_dim;

    return (char *)x + elements * dtype_bytes(device_dtype(step->member->dev));
}

/* The part's queries are rotated, and its new keys and values join the cache; a KV head's go to
 * each query head that has its own cache. */
static status append(const struct step *step, const struct part *part, size_t cell)
{
    const struct model *model = step->member->model;
    struct scratch *s = step->member->scratch;

    return op_kv_append(step->member->dev,
                        &(struct kv_append){
                            .pool = kvcache_pool(step->cache),
                            .slot = step->lists.slot + cell,
                            .k = part_of(step, part, s->k, model->split.kv_heads),
                            .v = part_of(step, part, s->v, model->split.kv_heads),
                            .q = part_of(step, part, s->q, model->split.query_heads),
                            .positions = step->lists.positions + part->first,
                            .inv_freq = model->inv_freq,
                            .rows = part->n,
                            .q_heads = model->split.query_heads,
                            .kv_heads = model->split.kv_heads,
                            .cache_heads = part->heads,
                        });
}

/* Rows that leave the part's caches are chosen, by what `all` gave them. */
static status evict(const struct step *step, const struct part *part,
                    const struct decode_attention *all, size_t cell)
{
    struct member *member = step->member;
    struct decode_attention attention = *all;
    status st = STATUS_OK;

    attention.sinks = NULL; /* nothing leaves by attention where these are */
    if (!part->by_query && group_queries_lie_apart(member->model)) {
        st = group_queries_gather(member, all->q, step->lists.group_rows, part->n);
        attention.q = member->scratch->group_q;
        attention.q_heads = group_queries_heads(member->model);
    }
    return st ? st : evict_after(member, &attention, cell);
}

/* The part's new rows join the cache and attend to it; then rows that leave it are chosen. */
static status attend(const struct step *step, int layer, const struct part *part)
{
    const struct model *model = step->member->model;
    struct scratch *s = step->member->scratch;
    int q_heads = model->split.query_heads;
    size_t cell = first_cell(step, layer, part);
    const struct decode_attention all = {
        .out = part_of(step, part, s->attended, q_heads),
        .q = part_of(step, part, s->q, q_heads),
        .pool = kvcache_pool(step->cache),
        .pages = step->lists.tables + cell,
        .first = step->lists.first + cell,
        .length = step->lists.length + cell,
        .sinks = step->has_sinks ? step->lists.sinks + part->first : NULL,
        .q_sinks = part_of(step, part, s->q_sinks, q_heads),
        .rows = part->n,
        .q_heads = q_heads,
        .cache_heads = part->heads,
        .head_dim = model->config.head_dim,
    };
    status st = append(step, part, cell);

    if (!st) {
        st = op_decode_attention(step->member->dev, &all);
    }
    return st || !part->evicts ? st : evict(step, part, &all, cell);
}

static status run_layer(const struct step *step, int layer)
{
    const struct model *model = step->member->model;
    struct scratch *s = step->member->scratch;
    status st = project(step, &model->layers[layer]);

    for (int p = 0; !st && p < STEP_KINDS; p++) {
        if (step->parts[p].n > 0) {
            st = attend(step, layer, &step->parts[p]);
        }
    }
    return st ? st
              : forward_output(step->member, &model->layers[layer], &forward_rows, s->residual,
                               step->n);
}

/* Everything behind the upload of the lists. */
static status enqueue(const void *context)
{
    const struct step *step = context;
    struct member *member = step->member;
    float *residual = member->scratch->residual;
    status st = forward_embed(member, residual, step->lists.ids, step->n);

    for (int layer = 0; !st && layer < member->model->config.layers; layer++) {
        st = run_layer(step, layer);
    }
    if (!st && step->scattered) {
        size_t row = (size_t)member->model->config.hidden;
        float *live = residual + SCRATCH_DECODE_ROWS * row; /* a chunk is longer than two steps */
        st = op_gather_rows(member->dev, live, residual, step->lists.order, step->n,
                            row * sizeof(*live));
        residual = live;
    }
    return st ? st : forward_logits(member, residual, step->n);
}

/* Parts and their rows; filled up to those of a graph where one serves them. */
static void lay_out(struct step *step)
{
    int live[STEP_KINDS], rows[STEP_KINDS];

    divide(step);
    for (int kind = 0; kind < STEP_KINDS; kind++) {
        live[kind] = step->parts[kind].live;
    }
    step->recorded = step->member->graphs && step_graphs_fill(live, rows);
    step->scattered = step->recorded && live[STEP_BY_KV_HEAD] > 0 && live[STEP_BY_QUERY_HEAD] > 0;
    for (int kind = 0; step->recorded && kind < STEP_KINDS; kind++) {
        step->parts[kind].n = rows[kind];
        step->parts[kind].evicts = step->evicts; /* so that it is one graph, whoever evicts */
    }
    step->n = 0;
    step->layer_cells = 0;
    for (int p = 0; p < STEP_KINDS; p++) {
        struct part *part = &step->parts[p];
        part->first = step->n;
        part->cell = step->layer_cells;
        step->n += part->n;
        step->layer_cells += (size_t)part->n * (size_t)part->heads;
    }
}

status decode_step(struct member *member, struct kvcache *cache, struct sequence **rows, int n)
{
    struct step step = {.member = member, .cache = cache, .rows = rows, .live = n};

    assert(n > 0 && n <= SCRATCH_DECODE_ROWS);
    lay_out(&step);
    status st = place_rows(&step);
    if (!st && step.recorded) {
        st = step_graphs_run(
            member->graphs,
            &(struct step_work){
                .enqueue = enqueue,
                .context = &step,
                .rows = {step.parts[STEP_BY_KV_HEAD].n, step.parts[STEP_BY_QUERY_HEAD].n},
                .variant = (step.evicts ? STEP_EVICTS : 0) + (step.has_sinks ? STEP_HAS_SINKS : 0),
            });
    } else if (!st) {
        st = enqueue(&step);
    }
    if (!st && step.evicts) {
        st = device_fetch(member->dev, member->scratch->host_evicted, member->scratch->evicted,
                          (size_t)member->model->config.layers * step.layer_cells *
                              sizeof(*member->scratch->evicted));
    }
    for (int i = 0; !st && i < n; i++) {
        rows[i]->appended++;
    }
    return st;
}

/* Of one layer. */
static status end_part(const struct step *step, int layer, const struct part *part)
{
    status st = STATUS_OK;

    for (int row = 0; !st && row < part->live; row++) {
        const struct sequence *sequence = sequence_of(step, part, row);
        size_t cell = first_cell(step, layer, part) + (size_t)(row * part->heads);
        if (evict_follows(sequence)) {
            st = evict_end(step->member, step->cache, sequence, layer, part->heads, cell);
        }
    }
    return st;
}

status decode_end(struct member *member, struct kvcache *cache, struct sequence **rows, int n)
{
    struct step step = {.member = member, .cache = cache, .rows = rows, .live = n};
    status st = STATUS_OK;

    lay_out(&step);
    for (int layer = 0; !st && layer < member->model->config.layers; layer++) {
        for (int p = 0; !st && p < STEP_KINDS; p++) {
            st = end_part(&step, layer, &step.parts[p]);
        }
    }
    return st ? st : kvcache_settle(cache);
}
