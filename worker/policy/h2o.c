/* h2o.c - H2O: each cache head keeps the rows that got the most attention from the whole prompt,
 * and the last ones. */
#include "worker/policy.h"
#include "worker/policy/score.h"

#include <stddef.h>

static status keep_heaviest(struct member *member, const struct policy_layer *layer,
                            const float *scores, struct policy_choice *out)
{
    struct scratch *s = member->scratch;
    int heads = member_cache_heads(member, layer->params).n;
    status st = STATUS_OK;

    out->kept = s->kept;
    out->kept_stride = (size_t)member->max_context;
    out->propagated = NULL;
    for (int head = 0; !st && head < heads; head++) {
        size_t h = (size_t)head;
        out->n_kept[head] = layer->counts.kept;
        st = score_keep(member, s->kept + h * out->kept_stride, scores + h * (size_t)layer->rows,
                        layer->rows, layer->params->window, layer->counts.kept);
    }
    return st;
}

/* The published sums, which are not causal: all queries of the prompt, which were kept, see all
 * keys; the last ones see no later key. */
static status sum_open_columns(struct member *member, const struct policy_layer *layer, float *out)
{
    const struct model *model = member->model;
    size_t row = (size_t)model->split.query_heads * (size_t)model->config.head_dim *
                 dtype_bytes(device_dtype(member->dev));
    status st = STATUS_OK;

    for (int begin = 0; !st && begin < layer->rows; begin += SLICE_ROWS) {
        int left = layer->rows - begin;
        st = op_column_sums(member->dev,
                            &(struct column_sums){
                                .out = out,
                                .stride = (size_t)layer->rows,
                                .q = (const char *)layer->window_q + (size_t)begin * row,
                                .k = layer->k,
                                .kv_stride = layer->kv_stride,
                                .positions = layer->positions,
                                .first_row = begin,
                                .rows = left < SLICE_ROWS ? left : SLICE_ROWS,
                                .n_keys = layer->rows,
                                .open_rows = layer->rows - layer->params->window,
                                .fresh = begin == 0 ? 0 : layer->rows,
                                .q_heads = model->split.query_heads,
                                .kv_heads = model->split.kv_heads,
                                .head_dim = model->config.head_dim,
                            });
    }
    return st;
}

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    const struct method_params *params = layer->params;
    struct scratch *s = member->scratch;
    bool max = params->group_reduce == GROUP_MAX;
    const float *columns = layer->columns;
    const float *scores;
    status st = STATUS_OK;

    if (layer->counts.selects && !params->h2o_causal) {
        columns = s->pooled;
        st = sum_open_columns(member, layer, s->pooled);
    }
    if (!st && layer->counts.selects) {
        st = score_sums(member, layer, columns, s->scores, max, &scores);
        if (!st) {
            st = keep_heaviest(member, layer, scores, out);
        }
    } else if (!st) {
        st = policy_full.choose(member, layer, out);
    }
    if (!st && params->h2o_dynamic) {
        st = score_sums(member, layer, layer->columns, s->pooled, max, &out->mass);
    }
    return st;
}

const struct policy policy_h2o = {.window_queries = true, .choose = choose};
