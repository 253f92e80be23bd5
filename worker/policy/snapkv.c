/* snapkv.c - SNAPKV: each cache head keeps its best rows by window score, as many on every layer
 * as the budget says. */
#include "worker/policy.h"
#include "worker/policy/score.h"

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    return score_choose_uniform(member, layer, out);
}

const struct policy policy_snapkv = {.window_queries = true, .choose = choose};
