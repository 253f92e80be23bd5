/* kv_append.c - new rows of a decode step to their caches, rotated on the way, and their queries.
 */
#include "kernels/cpu/kv.h"
#include "kernels/cpu/rotate.h"

enum { GRAIN = 1 << 14 };

static void append_row(const struct device *dev, const struct kv_append *args, int r)
{
    const struct kv_pool *pool = args->pool;
    size_t d = (size_t)pool->head_dim;
    int copies = args->cache_heads / args->kv_heads;
    float turned[OP_MAX_HEAD_DIM]; /* room for either dtype */
    struct turn turn;

    turn_by(&turn, args->positions[r], args->inv_freq, d / 2);
    for (int h = 0; h < args->kv_heads; h++) {
        size_t from = ((size_t)r * (size_t)args->kv_heads + (size_t)h) * d;
        const int32_t *slot =
            args->slot + (size_t)r * (size_t)args->cache_heads + (size_t)h * (size_t)copies;

        turn_head(dev, &turn, turned, act_const_at(dev, args->k, from), d);
        for (int c = 0; c < copies; c++) {
            kv_put_row(dev, pool, (size_t)slot[c], turned, act_const_at(dev, args->v, from));
        }
    }
    for (size_t h = 0; args->q && h < (size_t)args->q_heads; h++) {
        void *q = act_at(dev, args->q, ((size_t)r * (size_t)args->q_heads + h) * d);

        turn_head(dev, &turn, q, q, d);
    }
}

status cpu_kv_append(struct device *dev, const struct kv_append *args)
{
    size_t heads = (size_t)args->q_heads + 2 * (size_t)args->cache_heads;
    size_t work = (size_t)args->rows * heads * (size_t)args->pool->head_dim;
    int threads = cpu_threads(dev, work, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < args->rows; r++) {
        append_row(dev, args, r);
    }
    return STATUS_OK;
}
