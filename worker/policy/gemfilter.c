/*
 * gemfilter.c - GEMFILTER: one layer's raw scores by the last query choose the prompt's tokens,
 * and the chosen tokens go through all layers as a prompt of their own, all of it kept.
 */
#include "worker/policy/gemfilter.h"

#include "worker/policy/score.h"

status gemfilter_choose(struct member *member, const struct policy_layer *layer, int n_chosen)
{
    const struct split *split = &member->model->split;
    struct scratch *s = member->scratch;
    int n = layer->rows;
    status st = op_dot_scores(member->dev, &(struct dot_scores){
                                               .out = s->total,
                                               .q = layer->window_q,
                                               .k = layer->k,
                                               .kv_stride = layer->kv_stride,
                                               .n_keys = n,
                                               .q_heads = split->query_heads,
                                               .kv_heads = split->kv_heads,
                                               .head_dim = member->model->config.head_dim,
                                           });

    /* Each query head is on one rank, whether or not its KV head is on several. */
    if (!st) {
        st = comm_all_reduce(member->comm, s->total, (size_t)n);
    }
    if (!st) {
        st =
            op_pool(member->dev, s->pooled, s->total, 1, n, layer->params->gem_kernel, POOLING_AVG);
    }
    if (!st && layer->params->gem_keep_last) {
        st = score_pin(member, s->pooled, n - 1, 1);
    }
    return st ? st : op_top_k(member->dev, layer->propagated, s->pooled, n, n_chosen);
}

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    return policy_full.choose(member, layer, out);
}

const struct policy policy_gemfilter = {.window_queries = true, .choose = choose};
