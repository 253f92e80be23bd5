/*
 * pyramidinfer.c - PYRAMIDINFER: a layer stores every row that enters it, and only the best go
 * on to the next.  The last rows score the earlier ones, all heads together, later rows
 * weighing more.
 */
#include "worker/policy.h"
#include "worker/policy/score.h"

#include <stddef.h>

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    const struct method_params *params = layer->params;
    int recent = method_score_rows(params, layer->n_prompt);
    int earlier = layer->rows - recent;
    int sinks = params->pi_sinks < earlier ? params->pi_sinks : earlier;
    status st = policy_full.choose(member, layer, out);

    if (st || !layer->sums) {
        return st;
    }
    /* Each query head is on one rank, whether or not its KV head is on several. */
    st = comm_all_reduce(member->comm, layer->sums, (size_t)earlier);
    if (!st) {
        st = score_pin(member, layer->sums, 0, sinks);
    }
    if (!st) {
        st = score_keep(member, layer->propagated, layer->sums, layer->rows, recent,
                        layer->counts.propagated);
    }
    out->propagated = layer->propagated;
    out->n_propagated = layer->counts.propagated;
    return st;
}

const struct policy policy_pyramidinfer = {.sums_rows = true, .choose = choose};
