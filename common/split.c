#include "common/split.h"

#include <assert.h>

/* Part `index` of `total` dealt out to `parts` as evenly as possible, larger parts first. */
static void deal(int total, int parts, int index, int *first, int *count)
{
    int each = total / parts;
    int extra = total % parts;

    *count = each + (index < extra);
    *first = index * each + (index < extra ? index : extra);
}

/* More ranks than KV heads: ranks are dealt to the heads, then a head's queries to its ranks. */
static void split_group(struct split *out, const struct model_config *config, int rank, int ranks)
{
    int group = config->query_heads / config->kv_heads;

    for (int head = 0; head < config->kv_heads; head++) {
        int first;
        int count;
        int query;

        deal(ranks, config->kv_heads, head, &first, &count);
        if (rank >= first + count) {
            continue;
        }
        out->kv_first = head;
        out->kv_heads = 1;
        out->replicas = count;
        out->replica = rank - first;
        deal(group, count, out->replica, &query, &out->query_heads);
        out->query_first = head * group + query;
        return;
    }
    assert(!"rank is below ranks, so some head has it");
}

status split_for_rank(struct split *out, const struct model_config *config, int rank, int ranks)
{
    if (ranks < 1 || ranks > config->query_heads) {
        return status_fail(STATUS_INVALID,
                           "tensor parallel degree %d: model %s has %d query heads, so 1 to %d",
                           ranks, config->name, config->query_heads, config->query_heads);
    }
    if (ranks > config->intermediate || ranks > config->vocab) {
        return status_fail(STATUS_INVALID,
                           "tensor parallel degree %d: model %s has only %d MLP columns and %d "
                           "vocabulary rows to share out",
                           ranks, config->name, config->intermediate, config->vocab);
    }
    assert(rank >= 0 && rank < ranks);
    out->ranks = ranks;
    if (ranks > config->kv_heads) {
        split_group(out, config, rank, ranks);
    } else {
        int group = config->query_heads / config->kv_heads;
        deal(config->kv_heads, ranks, rank, &out->kv_first, &out->kv_heads);
        out->query_first = out->kv_first * group;
        out->query_heads = out->kv_heads * group;
        out->replicas = 1;
        out->replica = 0;
    }
    deal(config->intermediate, ranks, rank, &out->mlp_first, &out->mlp_columns);
    deal(config->vocab, ranks, rank, &out->vocab_first, &out->vocab_rows);
    return STATUS_OK;
}
