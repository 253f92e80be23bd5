/*
 * fastkv.c - FASTKV: each cache head keeps its best rows by window score; at the TSP layer the
 * rows that are best for all heads together go on alone.  The two choices are independent.
 */
#include "worker/policy.h"
#include "worker/policy/score.h"
#include "worker/tsp.h"

#include <stddef.h>

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    const float *scores;
    status st;

    if (!layer->counts.selects) {
        return policy_full.choose(member, layer, out);
    }
    st = score_window(member, layer, &scores);
    if (!st) {
        st = score_keep_uniform(member, layer, scores, out);
    }
    if (st || layer->counts.propagated == layer->rows) {
        out->propagated = NULL;
        return st;
    }
    out->propagated = layer->propagated;
    out->n_propagated = layer->counts.propagated;
    return tsp_choose(member, layer->propagated, scores,
                      &(struct tsp_choice){
                          .heads = member_cache_heads(member, layer->params),
                          .rows = layer->rows,
                          .window = layer->params->window,
                          .n_chosen = layer->counts.propagated,
                      });
}

const struct policy policy_fastkv = {.window_queries = true, .choose = choose};
