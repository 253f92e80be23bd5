/*
 * gpu.h - the words that kernels share: loads of activations, reductions over a block.
 *
 * A kernel that works on activations is a template over their type: float, or bf16 and f16 as 16
 * bits of storage.  All of its shared memory is one struct, gpu_shared<struct ...>().
 */
#ifndef KERNELS_CUDA_GPU_H
#define KERNELS_CUDA_GPU_H

#include "kernels/cuda/act.h"

#include <gpu_platform.h>
#include <math.h>
#include <stdint.h>
#include <type_traits>

enum { WARP = 32, WHOLE_WARP = -1 };

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;

/* Elements 0 and 1 of a pair of 16-bit numbers, and back (nearest, ties to even). */
template <typename T> __device__ __forceinline__ float gpu_low(unsigned pair)
{
    if constexpr (std::is_same_v<T, bf16>) {
        return __uint_as_float(pair << 16);
    } else {
        return gpu_f16_low(pair);
    }
}
template <typename T> __device__ __forceinline__ float gpu_high(unsigned pair)
{
    if constexpr (std::is_same_v<T, bf16>) {
        return __uint_as_float(pair & 0xffff0000u);
    } else {
        return gpu_f16_low(pair >> 16);
    }
}
template <typename T> __device__ __forceinline__ unsigned gpu_pack(float low, float high)
{
    if constexpr (std::is_same_v<T, bf16>) {
        return gpu_pack_bf16(low, high);
    } else {
        return gpu_pack_f16(low, high);
    }
}

/* d (16, 8) += a (16, 16) b (16, 8) of one type, on tensor cores. */
template <typename T>
__device__ __forceinline__ void gpu_mma(float d[4], const unsigned a[4], const unsigned b[2])
{
    if constexpr (std::is_same_v<T, bf16>) {
        gpu_mma_bf16(d, a, b);
    } else {
        gpu_mma_f16(d, a, b);
    }
}

__device__ __forceinline__ float gpu_float(float x)
{
    return x;
}
template <typename T> __device__ __forceinline__ float gpu_float(T x)
{
    return gpu_low<T>(x.bits);
}
__device__ __forceinline__ void gpu_store(float *to, float x)
{
    *to = x;
}
template <typename T> __device__ __forceinline__ void gpu_store(T *to, float x)
{
    to->bits = (uint16_t)gpu_pack<T>(x, 0.0f);
}

/* Four or eight neighbours at an address that is a multiple of their size (at most 16 bytes). */
__device__ __forceinline__ void gpu_load4(float v[4], const float *from)
{
    uint4 u = gpu_load16(from);
    v[0] = __uint_as_float(u.x);
    v[1] = __uint_as_float(u.y);
    v[2] = __uint_as_float(u.z);
    v[3] = __uint_as_float(u.w);
}
template <typename T> __device__ __forceinline__ void gpu_load4(float v[4], const T *from)
{
    uint2 u = gpu_load8(from);
    v[0] = gpu_low<T>(u.x);
    v[1] = gpu_high<T>(u.x);
    v[2] = gpu_low<T>(u.y);
    v[3] = gpu_high<T>(u.y);
}
__device__ __forceinline__ void gpu_store4(float *to, const float v[4])
{
    gpu_store16(to, uint4{__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                          __float_as_uint(v[3])});
}
template <typename T> __device__ __forceinline__ void gpu_store4(T *to, const float v[4])
{
    gpu_store8(to, uint2{gpu_pack<T>(v[0], v[1]), gpu_pack<T>(v[2], v[3])});
}
__device__ __forceinline__ void gpu_load8(float v[8], const float *from)
{
    gpu_load4(v, from);
    gpu_load4(v + 4, from + 4);
}
template <typename T> __device__ __forceinline__ void gpu_load8(float v[8], const T *from)
{
    uint4 u = gpu_load16(from);
    v[0] = gpu_low<T>(u.x);
    v[1] = gpu_high<T>(u.x);
    v[2] = gpu_low<T>(u.y);
    v[3] = gpu_high<T>(u.y);
    v[4] = gpu_low<T>(u.z);
    v[5] = gpu_high<T>(u.z);
    v[6] = gpu_low<T>(u.w);
    v[7] = gpu_high<T>(u.w);
}

struct gpu_sum {
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
struct gpu_max {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/* Over the whole warp; every lane has the result, of the same tree. */
template <typename Op> __device__ __forceinline__ float gpu_warp_reduce(float v, Op op)
{
    for (int by = WARP / 2; by > 0; by /= 2) {
        v = op(v, __shfl_xor_sync((unsigned)WHOLE_WARP, v, by));
    }
    return v;
}

/* Over the block: the warps in ascending order.  `partial` has a float for each warp, and is free
 * again after the caller's next __syncthreads(). */
template <typename Op>
__device__ __forceinline__ float gpu_block_reduce(float v, float *partial, Op op)
{
    v = gpu_warp_reduce(v, op);
    if (threadIdx.x % WARP == 0) {
        partial[threadIdx.x / WARP] = v;
    }
    __syncthreads();
    float total = partial[0];
    for (unsigned w = 1; w < blockDim.x / WARP; w++) {
        total = op(total, partial[w]);
    }
    return total;
}

/* The ascending map of floats of op_key(), NaN lowest. */
__device__ __forceinline__ uint32_t gpu_key(float value)
{
    uint32_t bits = __float_as_uint(value);

    if (value != value) {
        return 0;
    }
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
/* The same with -0 as +0: how scores rank. */
__device__ __forceinline__ uint32_t gpu_rank_key(float score)
{
    return gpu_key(score == 0.0f ? 0.0f : score);
}

/* Number of the thread in the grid, and of threads in all. */
__device__ __forceinline__ size_t gpu_thread()
{
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}

#endif
