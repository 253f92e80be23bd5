/* rope.c - a chunk of a prompt between its projections and attention: queries are rotated in place,
 * keys on their way to the layer's, and values join the layer's. */
#include "kernels/cpu/rotate.h"

enum { GRAIN = 1 << 14 };

static void rope_row(const struct device *dev, const struct rope *args, int r)
{
    size_t d = (size_t)args->head_dim, row = (size_t)r;
    size_t q_heads = args->q ? (size_t)args->q_heads : 0, kv_heads = (size_t)args->kv_heads;
    struct turn turn;

    turn_by(&turn, args->positions[r], args->inv_freq, d / 2);
    for (size_t h = 0; h < q_heads; h++) {
        void *q = act_at(dev, args->q, (row * q_heads + h) * d);

        turn_head(dev, &turn, q, q, d);
    }
    for (size_t h = 0; args->k && h < kv_heads; h++) {
        turn_head(dev, &turn, act_at(dev, args->layer_k, h * args->kv_stride + row * d),
                  act_const_at(dev, args->k, (row * kv_heads + h) * d), d);
    }
    for (size_t h = 0; args->v && h < kv_heads; h++) {
        memcpy(act_at(dev, args->layer_v, h * args->kv_stride + row * d),
               act_const_at(dev, args->v, (row * kv_heads + h) * d), d * act_bytes(dev));
    }
}

status cpu_rope(struct device *dev, const struct rope *args)
{
    size_t heads = (size_t)args->q_heads + 2 * (size_t)args->kv_heads;
    size_t work = (size_t)args->rows * heads * (size_t)args->head_dim;
    int threads = cpu_threads(dev, work, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < args->rows; r++) {
        rope_row(dev, args, r);
    }
    return STATUS_OK;
}
