/* visible.h - which keys a prompt row sees: 0..i, and with a sliding window only near ones. */
#ifndef KERNELS_CUDA_VISIBLE_H
#define KERNELS_CUDA_VISIBLE_H

#include "kernels/cuda/gpu.h"

/* Keys from..to. */
struct span {
    int from, to;
};

/* The first key that row i sees; positions ascend. */
__device__ __forceinline__ int visible_from(const int32_t *positions, int i, int sliding_window)
{
    int low = 0, high = i;

    if (sliding_window == 0) {
        return 0;
    }
    while (low < high) {
        int middle = low + (high - low) / 2;

        if (positions[i] - positions[middle] < sliding_window) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

__device__ __forceinline__ struct span visible_keys(const int32_t *positions, int i,
                                                    int sliding_window)
{
    return {visible_from(positions, i, sliding_window), i + 1};
}

#endif
