/* pyramidkv.c - PYRAMIDKV: like SNAPKV, but lower layers keep more and higher layers less, in
 * equal steps; the layer's count says how many. */
#include "worker/policy.h"
#include "worker/policy/score.h"

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    return score_choose_uniform(member, layer, out);
}

const struct policy policy_pyramidkv = {.window_queries = true, .choose = choose};
