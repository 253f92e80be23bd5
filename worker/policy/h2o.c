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

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    const struct method_params *params = layer->params;
    struct scratch *s = member->scratch;
    bool max = params->group_reduce == GROUP_MAX;
    const float *columns = params->h2o_causal ? layer->columns : layer->scores;
    const float *scores;
    status st = STATUS_OK;

    if (layer->counts.selects) {
        st = score_sums(member, layer, columns, s->scores, max, &scores);
        if (!st) {
            st = keep_heaviest(member, layer, scores, out);
        }
    } else {
        st = policy_full.choose(member, layer, out);
    }
    if (!st && params->h2o_dynamic) {
        st = score_sums(member, layer, layer->columns, s->pooled, max, &out->mass);
    }
    return st;
}

const struct policy policy_h2o = {.choose = choose};
