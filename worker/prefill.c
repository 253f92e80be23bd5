#include "worker/prefill.h"

#include "common/clock.h"
#include "worker/forward.h"
#include "worker/prompt_phase.h"

#include <assert.h>
#include <stddef.h>

/* The layer, part by part.  Chunk rows [begin, end) are rows of the layer. */

static float *residual_row(const struct prompt_phase *phase, int row)
{
    return phase->residual + (size_t)row * (size_t)phase->member->model->config.hidden;
}

static status norm(const struct prompt_phase *phase, int layer, const float *residual, int rows)
{
    const struct member *member = phase->member;

    return op_rmsnorm(member->dev, member->scratch->normed, residual,
                      phase_weights(phase, layer)->input_norm, rows, member->model->config.hidden,
                      member->model->config.rms_eps);
}

/* The chunk's first row among those of a head, in the layer's keys or values; NULL stays NULL. */
static void *layer_row(const struct prompt_phase *phase, void *heads, const struct slice *slice)
{
    const struct member *member = phase->member;
    size_t head_dim = (size_t)member->model->config.head_dim;

    return heads ? (char *)heads + (size_t)slice->begin * head_dim * phase_act_bytes(member) : NULL;
}

/* The normed chunk's keys and values join those of the layer; SLICE_WHOLE: its queries are in
 * scratch.  A filter layer needs keys alone. */
static status project_chunk(const struct prompt_phase *phase, const struct slice *slice)
{
    const struct member *member = phase->member;
    const struct model *model = member->model;
    const struct layer_weights *layer = phase_weights(phase, slice->layer);
    struct scratch *s = member->scratch;
    bool values = !slice->filter || slice->kind == SLICE_WHOLE;
    bool queries = slice->kind == SLICE_WHOLE;
    const struct weight_product all[] = {{s->k, &layer->k}, {s->v, &layer->v}, {s->q, &layer->q}};
    const struct rope rope = {
        .q = queries ? s->q : NULL,
        .k = s->k,
        .v = values ? s->v : NULL,
        .layer_k = layer_row(phase, phase->k, slice),
        .layer_v = layer_row(phase, phase->v, slice),
        .kv_stride = phase_kv_stride(member),
        .positions = phase->positions + slice->begin,
        .inv_freq = model->inv_freq,
        .rows = slice->end - slice->begin,
        .q_heads = model->split.query_heads,
        .kv_heads = model->split.kv_heads,
        .head_dim = model->config.head_dim,
    };
    status st = op_linear_each(member->dev, all, 1 + values + queries, s->normed, rope.rows);

    return st ? st : op_rope(member->dev, &rope);
}

static status begin_embedding(struct prompt_phase *phase, const struct slice *slice)
{
    return forward_begin_embed(phase->member, residual_row(phase, slice->begin),
                               phase->ids + slice->begin, slice->end - slice->begin,
                               &phase->embed_ticket);
}

/* The chunk's rows come into being; those of the next one are on their way. */
static status embed(struct prompt_phase *phase, const struct slice *slice)
{
    const struct slice *next = &phase->cursor.next;
    status st = slice->begin == 0 ? begin_embedding(phase, slice) : STATUS_OK;
    uint64_t ticket = phase->embed_ticket;

    if (!st && next->layer == 0 && next->kind == slice->kind && next->begin == slice->end) {
        st = begin_embedding(phase, next);
    }
    return st ? st : comm_finish(phase->member->comm, ticket);
}

/* Norm and projections of the chunk; in layer 0 the rows come into being first. */
static status begin_chunk(struct prompt_phase *phase, const struct slice *slice)
{
    float *residual = residual_row(phase, slice->begin);
    int rows = slice->end - slice->begin;
    status st = STATUS_OK;

    if (slice->layer == 0) {
        st = embed(phase, slice);
    }
    if (!st) {
        st = norm(phase, slice->layer, residual, rows);
    }
    return st ? st : project_chunk(phase, slice);
}

/* Attention of the queries in scratch over keys 0..n_keys. */
static status attend(const struct prompt_phase *phase, int rows, int first_row,
                     const int32_t *q_index, int n_keys)
{
    const struct member *member = phase->member;
    const struct model *model = member->model;

    return op_attention(member->dev, &(struct attention){
                                         .out = member->scratch->attended,
                                         .q = member->scratch->q,
                                         .k = phase->k,
                                         .v = phase->v,
                                         .kv_stride = phase_kv_stride(member),
                                         .q_index = q_index,
                                         .positions = phase->positions,
                                         .lse = member->scratch->lse,
                                         .first_row = first_row,
                                         .rows = rows,
                                         .n_keys = n_keys,
                                         .q_heads = model->split.query_heads,
                                         .kv_heads = model->split.kv_heads,
                                         .head_dim = model->config.head_dim,
                                         .sliding_window = model->config.sliding_window,
                                     });
}

/* What the method's scores need of a chunk whose attention is done.  Its time is the method's. */
static status score_chunk(struct prompt_phase *phase, const struct slice *slice)
{
    double begin = clock_ms();
    status st = prefill_window_of_chunk(phase, slice);

    if (!st && phase->columns.wanted) {
        st = prefill_add_to_columns(phase, slice, phase->member->scratch->lse);
    }
    phase->member->scoring_ms += clock_ms() - begin;
    return st;
}

/* The same of a chunk whose rows go no further, so that only its keys were computed. */
static status score_keys(struct prompt_phase *phase, const struct slice *slice)
{
    double begin = clock_ms();
    status st = prefill_window_of_keys(phase, slice);

    if (!st) {
        st = prefill_columns_of_keys(phase, slice);
    }
    phase->member->scoring_ms += clock_ms() - begin;
    return st;
}

/* After attention, for a chunk whose rows stay where they are. */
static status complete_layer(struct prompt_phase *phase, const struct slice *slice)
{
    if (phase->flight->partial) {
        return flight_take_off(phase, slice);
    }
    return forward_output(phase->member, phase_weights(phase, slice->layer), &forward_chunk,
                          residual_row(phase, slice->begin), slice->end - slice->begin);
}

/* SLICE_WHOLE after its projections: the rest of the layer for the chunk's rows, in place. */
static status rest_of_chunk(struct prompt_phase *phase, const struct slice *slice)
{
    status st = attend(phase, slice->end - slice->begin, slice->begin, NULL, slice->end);

    if (!st) {
        st = score_chunk(phase, slice);
    }
    return st ? st : complete_layer(phase, slice);
}

/* SLICE_SCORES: the queries of the chunk's rows are computed for the scores alone. */
static status score_rows(struct prompt_phase *phase, const struct slice *slice)
{
    double begin = clock_ms();
    bool open = method_scores_open(&phase->sequence->params);
    status st =
        norm(phase, slice->layer, residual_row(phase, slice->begin), slice->end - slice->begin);

    if (!st) {
        st = prefill_project_queries(phase, slice->layer, phase->positions + slice->begin,
                                     slice->end - slice->begin);
    }
    if (!st) {
        st = prefill_score_columns(phase, slice, open);
    }
    phase->member->scoring_ms += clock_ms() - begin;
    return st;
}

/* SLICE_QUERIES of a layer that keeps all rows: they stay where they are. */
static status rest_of_all(struct prompt_phase *phase, const struct slice *slice)
{
    float *residual = residual_row(phase, slice->begin);
    int rows = slice->end - slice->begin;
    status st = norm(phase, slice->layer, residual, rows);

    if (!st) {
        st = prefill_project_queries(phase, slice->layer, phase->positions + slice->begin, rows);
    }
    if (!st) {
        st = attend(phase, rows, slice->begin, NULL, slice->end);
    }
    return st ? st : complete_layer(phase, slice);
}

/* The chosen rows are at the front now; their positions follow, as the host's did at the choice. */
static void drop_rows(struct prompt_phase *phase)
{
    int32_t *positions = phase->positions;

    phase->positions = phase->next_positions;
    phase->next_positions = positions;
}

/* SLICE_QUERIES: the layer for chosen rows [begin, end), which move to the front.  A chosen row
 * never lies before its number among the chosen, so no row is overwritten before it is read. */
static status rest_of_chosen(struct prompt_phase *phase, const struct slice *slice)
{
    const struct member *member = phase->member;
    float *residual = member->scratch->residual;
    const int32_t *index = phase->chosen + slice->begin;
    int rows = slice->end - slice->begin;
    size_t row_bytes = (size_t)member->model->config.hidden * sizeof(float);
    status st;

    st = op_gather_rows(member->dev, residual, phase->residual, index, rows, row_bytes);
    if (!st) {
        st = norm(phase, slice->layer, residual, rows);
    }
    if (!st) {
        st = prefill_project_queries(phase, slice->layer, phase->next_positions + slice->begin,
                                     rows);
    }
    if (!st) {
        st = attend(phase, rows, 0, index, slice->rows);
    }
    if (!st) {
        st = forward_output(member, phase_weights(phase, slice->layer), &forward_chunk, residual,
                            rows);
    }
    if (!st) {
        st = op_gather_rows(member->dev, residual_row(phase, slice->begin), residual,
                            member->scratch->in_order, rows, row_bytes);
    }
    if (!st && slice->end == slice->chosen) {
        drop_rows(phase);
    }
    return st;
}

static status run_slice(struct prompt_phase *phase, const struct slice *slice)
{
    status st = STATUS_OK;

    switch (slice->kind) {
    case SLICE_WHOLE:
        st = begin_chunk(phase, slice);
        st = st ? st : rest_of_chunk(phase, slice);
        break;
    case SLICE_KEYS:
        st = begin_chunk(phase, slice);
        st = st ? st : score_keys(phase, slice);
        break;
    case SLICE_SCORES:
        st = score_rows(phase, slice);
        break;
    case SLICE_QUERIES:
        return slice->chosen == slice->rows ? rest_of_all(phase, slice)
                                            : rest_of_chosen(phase, slice);
    }
    if (st || !slice->chooses) {
        return st;
    }
    if (!slice->filter) {
        return prefill_choose(phase, slice);
    }
    return slice->kind == SLICE_KEYS ? prefill_filter(phase, slice) : STATUS_OK;
}

status prefill_slice(struct prompt_phase *phase, bool *done)
{
    const struct member *member = phase->member;
    const struct sequence *sequence = phase->sequence;
    struct slice slice;
    bool more = slices_next(&phase->cursor, &slice);

    assert(more);
    phase->counts = method_layer_rows(&sequence->params, &member->model->config, sequence->n_prompt,
                                      slice.layer, slice.rows);
    *done = phase->cursor.next.end == 0;
    status st = flight_land_for(phase->flight, phase, &slice);
    if (!st) {
        st = run_slice(phase, &slice);
    }
    if (!st && *done) {
        st = flight_land_for(phase->flight, phase, NULL);
    }
    if (st) {
        return status_note(st, "slot %d, layer %d", sequence->slot, slice.layer);
    }
    return *done ? forward_logits(member, residual_row(phase, slice.chosen - 1), 1) : STATUS_OK;
}
