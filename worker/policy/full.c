/* full.c - FULL: every row of every layer is kept. */
#include "worker/policy.h"

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    int heads = member_cache_heads(member, layer->params).n;

    for (int head = 0; head < heads; head++) {
        out->n_kept[head] = layer->rows;
    }
    out->kept = NULL;
    out->propagated = NULL;
    return STATUS_OK;
}

const struct policy policy_full = {.window_queries = false, .choose = choose};
