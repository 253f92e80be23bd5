#include "worker/ranked.h"

static size_t row_bytes(const struct member *member)
{
    return (size_t)member->model->config.head_dim * dtype_bytes(device_dtype(member->dev));
}

int ranked_newest(const struct kvcache *cache, const struct sequence *sequence)
{
    return kvcache_rows(cache, sequence->slot, 0, 0) - 1;
}

/* Ranks by position on the device.  Past the sinks the live positions have no gaps. */
static status find_ranks(struct member *member, const struct kvcache *cache,
                         const struct sequence *sequence, int layer, int head)
{
    int32_t *ranks = member->scratch->host_rows;
    int rows = kvcache_rows(cache, sequence->slot, layer, head);
    int behind = sequence_position(sequence) - (rows - 1);
    int n = 0;

    for (int page = 0; n < rows; page++) {
        int n_page;
        const int32_t *positions =
            kvcache_positions(cache, sequence->slot, layer, head, page, &n_page);

        for (int i = 0; i < n_page; i++) {
            int position = positions[i];
            ranks[n++] = position < sequence->params.sinks ? position : position - behind;
        }
    }
    return device_upload(member->dev, member->scratch->chosen, ranks,
                         (size_t)rows * sizeof(*ranks));
}

static status rotate(const struct member *member, void *keys, int rows)
{
    return op_rope(member->dev, &(struct rope){
                                    .q = keys,
                                    .positions = member->scratch->chosen,
                                    .inv_freq = member->model->inv_freq,
                                    .rows = rows,
                                    .q_heads = 1,
                                    .head_dim = member->model->config.head_dim,
                                });
}

/* `one` is the attention of this cache head alone, over the pool. */
static status attend_head(struct member *member, const struct kvcache *cache,
                          const struct sequence *sequence, int layer, int head,
                          const struct decode_attention *one)
{
    int rows = kvcache_rows(cache, sequence->slot, layer, head);
    void *k = member->scratch->ranked;
    void *v = (char *)k + (size_t)rows * row_bytes(member);
    const struct kv_pool pool = {.k = k, .v = v, .page_rows = rows, .head_dim = one->head_dim};
    struct decode_attention attention = *one;
    status st = find_ranks(member, cache, sequence, layer, head);

    attention.pool = &pool;
    if (!st) {
        st = op_kv_read(member->dev, one->pool, kvcache_table(cache, sequence->slot, layer, head),
                        k, v, rows);
    }
    if (!st) {
        st = rotate(member, k, rows);
    }
    return st ? st : op_decode_attention(member->dev, &attention);
}

status ranked_attention(struct member *member, const struct kvcache *cache,
                        const struct sequence *sequence, int layer,
                        const struct decode_attention *attention)
{
    int group = attention->q_heads / attention->cache_heads;
    status st = STATUS_OK;

    for (int head = 0; !st && head < attention->cache_heads; head++) {
        size_t offset = (size_t)head * (size_t)group * row_bytes(member);
        struct decode_attention one = *attention;

        one.out = (char *)attention->out + offset;
        one.q = (const char *)attention->q + offset;
        one.pages += head;
        one.first += head;
        one.length += head;
        one.q_heads = group;
        one.cache_heads = 1;
        st = attend_head(member, cache, sequence, layer, head, &one);
    }
    return st;
}
