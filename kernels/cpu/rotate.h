/* rotate.h - rotary positions: each pair (i, i + head_dim / 2) of a row turned by one angle. */
#ifndef KERNELS_CPU_ROTATE_H
#define KERNELS_CPU_ROTATE_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/elementwise.h"

#include <math.h>

/* The angles of one row. */
struct turn {
    float cosine[OP_MAX_HEAD_DIM / 2], sine[OP_MAX_HEAD_DIM / 2];
};

static inline void turn_by(struct turn *turn, int32_t position, const float *inv_freq, size_t half)
{
    for (size_t i = 0; i < half; i++) {
        sincosf((float)position * inv_freq[i], &turn->sine[i], &turn->cosine[i]);
    }
}

/* out (head_dim) = x turned; out may be x. */
static inline void turn_head(const struct device *dev, const struct turn *turn, void *out,
                             const void *x, size_t head_dim)
{
    cpu_device_const(dev)->isa->elementwise->rotate(dev->dtype == DTYPE_F32, out, x, turn->cosine,
                                                    turn->sine, head_dim / 2);
}

#endif
