/* rotate.h - rotary positions of four neighbouring pairs (i, i + head_dim / 2), i a multiple of 4.
 */
#ifndef KERNELS_CUDA_ROTATE_H
#define KERNELS_CUDA_ROTATE_H

#include "kernels/cuda/gpu.h"

enum { ROTATE_PAIRS = 4 };

/* Of a float32 angle of any size.  Whole turns are taken off in double; sincosf() would keep a slow
 * way for large angles, with memory for each thread. */
__device__ __forceinline__ void rotate_angle(float angle, float *sine, float *cosine)
{
    double half_turns = (double)angle * 0.31830988618379067154;

    half_turns -= 2.0 * rint(half_turns * 0.5);
    sincospif((float)half_turns, sine, cosine);
}

/* `inv_freq` of these pairs.  out may be x. */
template <typename T>
__device__ __forceinline__ void rotate_pairs(T *out, const T *x, int32_t position,
                                             const float *inv_freq, size_t half)
{
    float a[ROTATE_PAIRS], b[ROTATE_PAIRS];

    gpu_load4(a, x);
    gpu_load4(b, x + half);
    for (int j = 0; j < ROTATE_PAIRS; j++) {
        float sine, cosine, c = a[j], d = b[j];

        rotate_angle((float)position * inv_freq[j], &sine, &cosine);
        a[j] = c * cosine - d * sine;
        b[j] = d * cosine + c * sine;
    }
    gpu_store4(out, a);
    gpu_store4(out + half, b);
}

template <typename T> __device__ __forceinline__ void copy_pairs(T *out, const T *x, size_t half)
{
    float a[ROTATE_PAIRS], b[ROTATE_PAIRS];

    gpu_load4(a, x);
    gpu_load4(b, x + half);
    gpu_store4(out, a);
    gpu_store4(out + half, b);
}

#endif
