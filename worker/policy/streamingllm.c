/* streamingllm.c - STREAMINGLLM: every cache head keeps the first few rows and the last ones,
 * whatever they hold. */
#include "worker/policy.h"

#include <stddef.h>

static status choose(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out)
{
    struct scratch *s = member->scratch;
    int n = layer->counts.kept;
    int sinks = layer->params->sinks;

    if (!layer->counts.selects) {
        return policy_full.choose(member, layer, out);
    }
    for (int i = 0; i < n; i++) {
        s->host_rows[i] = i < sinks ? i : layer->rows - n + i;
    }
    for (int head = 0; head < member_cache_heads(member, layer->params).n; head++) {
        out->n_kept[head] = n;
    }
    out->kept = s->kept;
    out->kept_stride = 0; /* one list serves them all */
    out->propagated = NULL;
    return device_upload(member->dev, s->kept, s->host_rows, (size_t)n * sizeof(*s->kept));
}

const struct policy policy_streamingllm = {.window_queries = false, .choose = choose};
