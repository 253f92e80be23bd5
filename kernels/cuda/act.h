/*
 * act.h - the types of activations on a GPU, and how host code chooses among kernels by them.
 */
#ifndef KERNELS_CUDA_ACT_H
#define KERNELS_CUDA_ACT_H

#include "kernels/backend.h"

/* Storage only; sums are float. */
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

/* Calls run(T()) with the type T of the device's activations. */
template <typename Run> static inline void cuda_with_act(const struct device *dev, Run run)
{
    switch (dev->dtype) {
    case DTYPE_BF16:
        run(bf16());
        break;
    case DTYPE_F16:
        run(f16());
        break;
    case DTYPE_F32:
        run(float());
        break;
    }
}

/* The same of a device whose activations have 16 bits. */
template <typename Run> static inline void cuda_with_narrow(const struct device *dev, Run run)
{
    if (dev->dtype == DTYPE_BF16) {
        run(bf16());
    } else {
        run(f16());
    }
}

#endif
