/* rope.c - rotary positions: each pair (i, i + head_dim / 2) turned by position * inv_freq[i]. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/elementwise.h"

#include <math.h>

enum { GRAIN = 1 << 14 };

static void rope_row(const struct device *dev, const struct rope *args, int r)
{
    const struct elementwise_kernels *kernels = cpu_device_const(dev)->isa->elementwise;
    bool wide = dev->dtype == DTYPE_F32;
    float cosine[OP_MAX_HEAD_DIM / 2], sine[OP_MAX_HEAD_DIM / 2];
    size_t d = (size_t)args->head_dim;

    for (size_t i = 0; args->positions && i < d / 2; i++) {
        sincosf((float)args->positions[r] * args->inv_freq[i], &sine[i], &cosine[i]);
    }
    for (size_t h = 0; h < (size_t)args->heads; h++) {
        const void *from = act_const_at(dev, args->x, ((size_t)r * (size_t)args->heads + h) * d);
        void *to = act_at(dev, args->out, (size_t)r * args->row_stride + h * args->head_stride);

        if (args->positions) {
            kernels->rotate(wide, to, from, cosine, sine, d / 2);
        } else if (to != from) {
            memcpy(to, from, d * act_bytes(dev));
        }
    }
}

status cpu_rope(struct device *dev, const struct rope *args)
{
    size_t work = (size_t)args->rows * (size_t)args->heads * (size_t)args->head_dim;
    int threads = cpu_threads(dev, work, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < args->rows; r++) {
        rope_row(dev, args, r);
    }
    return STATUS_OK;
}
