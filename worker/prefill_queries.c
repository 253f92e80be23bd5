/* prefill_queries.c - the queries of a chunk, and how those of some rows score the layer. */
#include "worker/policy/score.h"
#include "worker/prompt_phase.h"

#include <stddef.h>

/* q (rows, query heads, head_dim) = the queries of `normed` (rows, hidden), rotated. */
static status project(const struct prompt_phase *phase, int layer, void *q, const void *normed,
                      const int32_t *positions, int rows)
{
    const struct member *member = phase->member;
    const struct model *model = member->model;
    status st = op_linear(member->dev, q, device_dtype(member->dev), normed,
                          &phase_weights(phase, layer)->q, rows);

    return st ? st
              : op_rope(member->dev, &(struct rope){
                                         .q = q,
                                         .positions = positions,
                                         .inv_freq = model->inv_freq,
                                         .rows = rows,
                                         .q_heads = model->split.query_heads,
                                         .head_dim = model->config.head_dim,
                                     });
}

status prefill_project_queries(const struct prompt_phase *phase, int layer,
                               const int32_t *positions, int rows)
{
    struct scratch *s = phase->member->scratch;

    return project(phase, layer, s->q, s->normed, positions, rows);
}

/* The last layer's row needs no choice; a drop that all rows survive needs none either. */
static bool drops_by_sums(const struct prompt_phase *phase, const struct slice *slice)
{
    return phase->policy->sums_rows && phase->counts.propagated < slice->rows &&
           slice->layer + 1 < phase->member->model->config.layers;
}

static bool is_scored(const struct prompt_phase *phase, const struct slice *slice)
{
    if (slice->filter) {
        return slice->kind == SLICE_KEYS;
    }
    return !slice->apart && ((phase->policy->window_queries && phase->counts.selects) ||
                             drops_by_sums(phase, slice));
}

/* The first of the rows whose queries score the layer. */
static int window_begin(const struct prompt_phase *phase, const struct slice *slice)
{
    const struct sequence *sequence = phase->sequence;

    return slice->rows - method_score_rows(&sequence->params, sequence->n_prompt);
}

/* The chunk's rows that lie in the window which scores this layer: *first..end. */
static bool chunk_in_window(const struct prompt_phase *phase, const struct slice *slice, int *first)
{
    int window = window_begin(phase, slice);

    if (!is_scored(phase, slice) || slice->end <= window) {
        return false;
    }
    *first = window > slice->begin ? window : slice->begin;
    return true;
}

static void *window_row(const struct prompt_phase *phase, const struct slice *slice, int row)
{
    const struct member *member = phase->member;
    size_t t = (size_t)(row - window_begin(phase, slice));

    return (char *)phase->window_q +
           t * phase_query_elements(member->model) * phase_act_bytes(member);
}

struct policy_layer prefill_describe_layer(const struct prompt_phase *phase,
                                           const struct slice *slice)
{
    return (struct policy_layer){
        .params = &phase->sequence->params,
        .layer = slice->layer,
        .n_prompt = phase->sequence->n_prompt,
        .rows = slice->rows,
        .counts = phase->counts,
        .k = phase->k,
        .v = phase->v,
        .kv_stride = phase_kv_stride(phase->member),
        .window_q = phase->window_q,
        .window_lse = slice->kind == SLICE_WHOLE ? phase->window_lse : NULL,
        .sums = drops_by_sums(phase, slice) ? phase->sums : NULL,
        .scores = slice->apart ? phase->columns.near : NULL,
        .positions = phase->positions,
        .columns = phase->columns.all,
        .near_columns = phase->columns.near,
        .marks = phase->host_marks,
        .propagated = phase->chosen,
    };
}

/* The rows from `first` on score the earlier ones, by their queries in scratch: weights rise from
 * row to row. */
static status sum_rows(const struct prompt_phase *phase, const struct slice *slice, int first)
{
    const struct policy_layer layer = prefill_describe_layer(phase, slice);
    int begin = window_begin(phase, slice);
    int steps = slice->rows - 1 - begin;
    float rise = (float)(layer.params->pi_distance_weight - 1.0);
    float step = steps > 0 ? rise / (float)steps : 0.0F;

    return score_add_rows(phase->member, &layer,
                          &(struct score_rows){
                              .q = phase->member->scratch->q,
                              .first = first,
                              .end = slice->end,
                              .scored = begin,
                              .weight = 1.0F + (float)(first - begin) * step,
                              .weight_step = step,
                          });
}

status prefill_window_of_keys(const struct prompt_phase *phase, const struct slice *slice)
{
    const struct member *member = phase->member;
    struct scratch *s = member->scratch;
    int first;

    if (!chunk_in_window(phase, slice, &first)) {
        return STATUS_OK;
    }
    const char *normed = (const char *)s->normed + (size_t)(first - slice->begin) *
                                                       (size_t)member->model->config.hidden *
                                                       phase_act_bytes(member);
    bool sums = drops_by_sums(phase, slice);
    void *q = sums ? s->q : window_row(phase, slice, first);
    status st =
        project(phase, slice->layer, q, normed, phase->positions + first, slice->end - first);

    return st || !sums ? st : sum_rows(phase, slice, first);
}

status prefill_window_of_chunk(const struct prompt_phase *phase, const struct slice *slice)
{
    const struct member *member = phase->member;
    const struct scratch *s = member->scratch;
    size_t heads = (size_t)member->model->split.query_heads;
    size_t row_bytes = phase_query_elements(member->model) * phase_act_bytes(member);
    int first;

    if (!chunk_in_window(phase, slice, &first)) {
        return STATUS_OK;
    }
    size_t from = (size_t)(first - slice->begin), rows = (size_t)(slice->end - first);
    size_t to = (size_t)(first - window_begin(phase, slice));
    status st = device_copy(member->dev, (char *)phase->window_q + to * row_bytes,
                            (const char *)s->q + from * row_bytes, rows * row_bytes);

    return st ? st
              : device_copy(member->dev, phase->window_lse + to * heads, s->lse + from * heads,
                            rows * heads * sizeof(*s->lse));
}

static struct columns_chunk chunk_of(const struct prompt_phase *phase, const struct slice *slice,
                                     const float *lse)
{
    return (struct columns_chunk){
        .k = phase->k,
        .kv_stride = phase_kv_stride(phase->member),
        .positions = phase->positions,
        .lse = lse,
        .first_row = slice->begin,
        .rows = slice->end - slice->begin,
        .rows_in_layer = slice->rows,
    };
}

status prefill_add_to_columns(const struct prompt_phase *phase, const struct slice *slice,
                              const float *lse)
{
    const struct columns_chunk chunk = chunk_of(phase, slice, lse);

    return columns_add(&phase->columns, phase->member, &chunk);
}

status prefill_score_columns(const struct prompt_phase *phase, const struct slice *slice, bool open)
{
    const struct columns_chunk chunk = chunk_of(phase, slice, NULL);

    return columns_score(&phase->columns, phase->member, &chunk,
                         slice->begin == slice->rows - slice->scoring,
                         open ? slice->rows - phase->sequence->params.window : 0);
}

status prefill_columns_of_keys(const struct prompt_phase *phase, const struct slice *slice)
{
    status st;

    if (!phase->columns.wanted) {
        return STATUS_OK;
    }
    st = prefill_project_queries(phase, slice->layer, phase->positions + slice->begin,
                                 slice->end - slice->begin);
    return st ? st : prefill_add_to_columns(phase, slice, NULL);
}
