/* headkv.c - HEADKV: each cache head keeps its best rows by window score; how many was fixed in
 * advance by a table of the heads' importance. */
#include "worker/policy.h"
#include "worker/policy/score.h"

#include <stddef.h>

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    struct cache_heads heads = member_cache_heads(member, layer->params);
    int kept[MODEL_MAX_HEADS]; /* by cache head of the whole model */
    const float *scores;

    if (!layer->counts.selects) {
        return policy_full.choose(member, layer, out);
    }
    status st = score_window(member, layer, &scores);
    if (st) {
        return st;
    }
    method_headkv_rows(layer->params, &member->model->config, layer->layer, layer->rows, kept);
    for (int head = 0; head < heads.n; head++) {
        out->n_kept[head] = kept[heads.first + head];
    }
    out->propagated = NULL;
    return score_keep_heads(member, layer, scores, out);
}

const struct policy policy_headkv = {.window_queries = true, .choose = choose};
