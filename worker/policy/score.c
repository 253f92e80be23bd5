#include "worker/policy/score.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>

/* Query heads of a KV head, first over this rank's, then over the ranks that share the head. */
static status reduce_group(struct member *member, const struct method_params *params, float *scores,
                           int n)
{
    const struct split *split = &member->model->split;
    int group = split->query_heads / split->kv_heads;
    bool max = params->group_reduce == GROUP_MAX;
    status st = op_group_reduce(member->dev, scores, scores, split->kv_heads, group, n,
                                max ? GROUP_MAX : GROUP_SUM);

    if (st || split->replicas == 1) {
        return st;
    }
    return comm_group_reduce(member->comm, comm_rank(member->comm) - split->replica,
                             split->replicas, scores, (size_t)split->kv_heads * (size_t)n, max);
}

/* scratch->scores (query heads, n) = the scores of the first n rows. */
static status window_scores(struct member *member, const struct policy_layer *layer, int n)
{
    const struct split *split = &member->model->split;
    struct scratch *s = member->scratch;
    status st = STATUS_OK;

    if (!layer->scores) {
        return op_window_scores(member->dev,
                                &(struct window_scores){
                                    .out = s->scores,
                                    .q = layer->window_q,
                                    .k = layer->k,
                                    .kv_stride = layer->kv_stride,
                                    .positions = layer->positions,
                                    .lse = layer->window_lse,
                                    .window = layer->params->window,
                                    .n_keys = layer->rows,
                                    .q_heads = split->query_heads,
                                    .kv_heads = split->kv_heads,
                                    .head_dim = member->model->config.head_dim,
                                    .sliding_window = member->model->config.sliding_window,
                                });
    }
    for (size_t h = 0; !st && h < (size_t)split->query_heads; h++) {
        st = device_copy(member->dev, s->scores + h * (size_t)n,
                         layer->scores + h * (size_t)layer->rows, (size_t)n * sizeof(float));
    }
    return st;
}

status score_window(struct member *member, const struct policy_layer *layer, const float **out)
{
    const struct method_params *params = layer->params;
    const struct split *split = &member->model->split;
    struct scratch *s = member->scratch;
    int n = layer->rows - params->window;
    bool by_query = method_caches_by_query(params);
    bool pre = !by_query && params->reduce_stage == REDUCE_PRE;
    bool post = !by_query && params->reduce_stage == REDUCE_POST;

    assert(n > 0);
    status st = window_scores(member, layer, n);
    if (!st && pre) {
        st = reduce_group(member, params, s->scores, n);
    }
    if (!st) {
        st = op_pool(member->dev, s->pooled, s->scores, pre ? split->kv_heads : split->query_heads,
                     n, params->kernel, params->pooling);
    }
    if (!st && post) {
        st = reduce_group(member, params, s->pooled, n);
    }
    *out = s->pooled;
    return st;
}

status score_sums(struct member *member, const struct policy_layer *layer, const float *sums,
                  float *to, bool max, const float **out)
{
    const struct method_params *params = layer->params;
    const struct split *split = &member->model->split;
    int group = split->query_heads / split->kv_heads;

    if (method_caches_by_query(params)) {
        *out = sums;
        return STATUS_OK;
    }
    *out = to;
    status st = op_group_reduce(member->dev, to, sums, split->kv_heads, group, layer->rows,
                                max ? GROUP_MAX : GROUP_SUM);
    if (st || split->replicas == 1) {
        return st;
    }
    return comm_group_reduce(member->comm, comm_rank(member->comm) - split->replica,
                             split->replicas, to, (size_t)split->kv_heads * (size_t)layer->rows,
                             max);
}

status score_keep(struct member *member, int32_t *index, const float *score, int rows, int window,
                  int n_kept)
{
    struct scratch *s = member->scratch;
    int best = n_kept - window;
    status st = op_top_k(member->dev, index, score, rows - window, best);

    if (st) {
        return st;
    }
    for (int i = 0; i < window; i++) {
        s->host_rows[i] = rows - window + i;
    }
    return device_upload(member->dev, index + best, s->host_rows, (size_t)window * sizeof(*index));
}

status score_pin(struct member *member, float *score, int first, int count)
{
    float best[64];
    status st = STATUS_OK;

    for (size_t i = 0; i < sizeof(best) / sizeof(best[0]); i++) {
        best[i] = INFINITY;
    }
    while (!st && count > 0) {
        int n = count < (int)(sizeof(best) / sizeof(best[0])) ? count : 64;
        st = device_upload(member->dev, score + first, best, (size_t)n * sizeof(*score));
        first += n;
        count -= n;
    }
    return st;
}

/* scratch->row_weights = those of the rows. */
static status upload_weights(struct member *member, const struct score_rows *rows)
{
    float weights[SLICE_ROWS];
    int n = rows->end - rows->first;

    assert(n > 0 && n <= SLICE_ROWS);
    for (int t = 0; t < n; t++) {
        weights[t] = rows->weight + (float)t * rows->weight_step;
    }
    return device_upload(member->dev, member->scratch->row_weights, weights,
                         (size_t)n * sizeof(*weights));
}

status score_add_rows(struct member *member, const struct policy_layer *layer,
                      const struct score_rows *rows)
{
    const struct split *split = &member->model->split;
    struct scratch *s = member->scratch;
    size_t n = (size_t)rows->scored;
    status st = upload_weights(member, rows);

    assert(rows->scored > 0 && rows->scored <= rows->first);
    if (!st && rows->first == rows->scored) {
        st = device_upload(member->dev, layer->sums, s->host_zeros, n * sizeof(*layer->sums));
    }
    if (!st) {
        st = op_window_scores(member->dev,
                              &(struct window_scores){
                                  .out = s->scores,
                                  .q = rows->q,
                                  .k = layer->k,
                                  .kv_stride = layer->kv_stride,
                                  .positions = layer->positions,
                                  .weights = s->row_weights,
                                  .window = rows->end - rows->first,
                                  .n_keys = rows->end,
                                  .q_heads = split->query_heads,
                                  .kv_heads = split->kv_heads,
                                  .head_dim = member->model->config.head_dim,
                                  .sliding_window = member->model->config.sliding_window,
                              });
    }
    if (!st) {
        st = op_group_reduce(member->dev, s->total, s->scores, 1, split->query_heads, rows->first,
                             GROUP_SUM);
    }
    return st ? st : op_add(member->dev, layer->sums, s->total, n);
}

status score_keep_heads(struct member *member, const struct policy_layer *layer,
                        const float *scores, struct policy_choice *out)
{
    int window = layer->params->window;
    int heads = member_cache_heads(member, layer->params).n;
    size_t n = (size_t)(layer->rows - window);
    status st = STATUS_OK;

    out->kept = member->scratch->kept;
    out->kept_stride = (size_t)member->max_context;
    for (int head = 0; !st && head < heads; head++) {
        size_t h = (size_t)head;
        st = score_keep(member, member->scratch->kept + h * out->kept_stride, scores + h * n,
                        layer->rows, window, out->n_kept[head]);
    }
    return st;
}

status score_keep_uniform(struct member *member, const struct policy_layer *layer,
                          const float *scores, struct policy_choice *out)
{
    int heads = member_cache_heads(member, layer->params).n;

    for (int head = 0; head < heads; head++) {
        out->n_kept[head] = layer->counts.kept;
    }
    return score_keep_heads(member, layer, scores, out);
}

status score_choose_uniform(struct member *member, const struct policy_layer *layer,
                            struct policy_choice *out)
{
    const float *scores;

    if (!layer->counts.selects) {
        return policy_full.choose(member, layer, out);
    }
    out->propagated = NULL;
    status st = score_window(member, layer, &scores);
    return st ? st : score_keep_uniform(member, layer, scores, out);
}
