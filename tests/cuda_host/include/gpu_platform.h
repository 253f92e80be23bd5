/*
 * gpu_platform.h - the host twin of kernels/cuda/ptx/gpu_platform.h: what a kernel needs of a GPU,
 * as plain C++.
 *
 * Every CUDA thread is a fiber (fiber.h); a function here that threads of a warp or a block do
 * together waits until all of them are there.  Warp functions take whole warps: a lane that is
 * missing, or is in another function, ends the program with the kernel's name.
 */
#ifndef TESTS_CUDA_HOST_GPU_PLATFORM_H
#define TESTS_CUDA_HOST_GPU_PLATFORM_H

#include "tests/cuda_host/block.h"

#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (cuda_host_self->thread)
#define blockIdx (cuda_host_self->block)
#define blockDim (cuda_host_self->block_dim)
#define gridDim (cuda_host_self->grid_dim)

/* The kernel runs, with copies of the arguments, when the stream comes to it. */
template <typename... Params, typename... Args>
void gpu_launch(const char *name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared,
                cudaStream_t stream, Args... args)
{
    cuda_host_enqueue(stream, [=, values = std::tuple<Params...>(args...)] {
        cuda_host_run_grid(name, grid, block, shared, [&] { std::apply(kernel, values); });
    });
}
#define GPU_LAUNCH(kernel, grid, block, shared, stream, ...) \
    gpu_launch(#kernel, kernel, (grid), (block), (shared), (stream)__VA_OPT__(, ) __VA_ARGS__)

/* The block's dynamic shared memory: exactly as much as the launch said, NaN when it starts. */
template <typename T> T *gpu_shared()
{
    return static_cast<T *>(cuda_host_shared(sizeof(T)));
}

inline void __syncthreads()
{
    cuda_host_block_barrier();
}
inline void __syncwarp()
{
    cuda_host_warp_exchange(nullptr, 0, CUDA_HOST_SYNCWARP, nullptr);
}

template <typename T> T cuda_host_shuffle(T value, int kind, int from)
{
    const char *lanes =
        static_cast<const char *>(cuda_host_warp_exchange(&value, sizeof(T), kind, nullptr));
    T out;
    memcpy(&out, lanes + static_cast<size_t>(from) * CUDA_HOST_LANE_BYTES, sizeof(T));
    return out;
}
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask)
{
    return cuda_host_shuffle(value, CUDA_HOST_SHUFFLE, cuda_host_lane() ^ mask);
}
template <typename T> T __shfl_sync(unsigned, T value, int lane)
{
    return cuda_host_shuffle(value, CUDA_HOST_SHUFFLE, lane & 31);
}
template <typename T> T __shfl_up_sync(unsigned, T value, int by)
{
    int lane = cuda_host_lane();
    return cuda_host_shuffle(value, CUDA_HOST_SHUFFLE, lane < by ? lane : lane - by);
}
unsigned __ballot_sync(unsigned, int predicate);

template <typename T> T cuda_host_fetch_add(T *at, T value)
{
    T old = *at;
    *at = old + value;
    return old;
}
inline int atomicAdd(int *at, int value)
{
    return cuda_host_fetch_add(at, value);
}
inline unsigned atomicAdd(unsigned *at, unsigned value)
{
    return cuda_host_fetch_add(at, value);
}

inline int __popc(unsigned x)
{
    return std::popcount(x);
}
inline int __clzll(unsigned long long x)
{
    return std::countl_zero(x);
}
inline unsigned __float_as_uint(float x)
{
    return std::bit_cast<unsigned>(x);
}
inline float __uint_as_float(unsigned x)
{
    return std::bit_cast<float>(x);
}
inline float rsqrtf(float x)
{
    return 1.0f / std::sqrt(x);
}
/* Rounds twice: without the instruction, a call for every product would take most of the time. */
inline float cuda_host_fma(float a, float b, float c)
{
    return a * b + c;
}
#define fmaf cuda_host_fma
/* Of an angle in half turns. */
inline void sincospif(float x, float *sine, float *cosine)
{
    *sine = static_cast<float>(std::sin(3.14159265358979323846 * static_cast<double>(x)));
    *cosine = static_cast<float>(std::cos(3.14159265358979323846 * static_cast<double>(x)));
}
using std::fmaxf;
using std::fminf;
using std::rint;
inline int min(int a, int b)
{
    return a < b ? a : b;
}
inline int max(int a, int b)
{
    return a > b ? a : b;
}

/* The same address, of device memory. */
template <typename T> const T *gpu_global(const T *from)
{
    return from;
}

/* 16 or 8 bytes in one access: the address must be a multiple of that. */
inline uint4 gpu_load16(const void *from)
{
    return *static_cast<const uint4 *>(cuda_host_aligned(from, 16));
}
inline void gpu_store16(void *to, uint4 value)
{
    memcpy(const_cast<void *>(cuda_host_aligned(to, 16)), &value, 16);
}
inline uint2 gpu_load8(const void *from)
{
    return *static_cast<const uint2 *>(cuda_host_aligned(from, 8));
}
inline void gpu_store8(void *to, uint2 value)
{
    memcpy(const_cast<void *>(cuda_host_aligned(to, 8)), &value, 8);
}

/* 2^x, to about 2 ulp. */
inline float gpu_exp2(float x)
{
    return std::exp2(x);
}

/* Two floats rounded to bfloat16 (nearest, ties to even), `low` in the lower half. */
inline unsigned gpu_pack_bf16(float low, float high)
{
    auto round = [](float f) {
        unsigned bits = __float_as_uint(f);
        return f != f ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    };
    return round(low) | round(high) << 16;
}

/* The same of float16; what is too large becomes infinite. */
inline unsigned gpu_pack_f16(float low, float high)
{
    auto round = [](float f) {
        unsigned bits = __float_as_uint(f), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
        if (rest > 0x7f800000u) {
            return 0x7fffu;
        }
        if (rest >= 0x477ff000u) { /* half a step past 65504 */
            return sign | 0x7c00u;
        }
        if (rest < 0x38800000u) { /* a multiple of 2^-24: adding 0.5 leaves it in the last bits */
            return sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u);
        }
        return sign | (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13;
    };
    return round(low) | round(high) << 16;
}
/* The lower of two float16 numbers. */
inline float gpu_f16_low(unsigned pair)
{
    unsigned sign = (pair & 0x8000u) << 16, rest = pair & 0x7fffu;
    if (rest < 0x400u) {
        return __uint_as_float(__float_as_uint(static_cast<float>(rest) * 0x1p-24f) | sign);
    }
    return __uint_as_float(sign | ((rest << 13) + ((rest < 0x7c00u ? 112u : 224u) << 23)));
}

/* d (16, 8) += a (16, 16) b (16, 8): bf16 or f16 in, float sums; mma.sync.m16n8k16.row.col.  Lane
 * l, with g = l / 4 and t = l % 4, holds a[g][2t..], a[g + 8][2t..], a[g][2t + 8..], a[g + 8][2t
 * + 8..]; b[2t..][g], b[2t + 8..][g]; d[g][2t..], d[g + 8][2t..]. */
void gpu_mma_bf16(float d[4], const unsigned a[4], const unsigned b[2]);
void gpu_mma_f16(float d[4], const unsigned a[4], const unsigned b[2]);

/* Four 8 x 8 matrices of 16-bit elements from shared memory: lane l names row l % 8 of matrix
 * l / 8 (16 bytes, aligned); r[i] is elements 2t and 2t + 1 of row g of matrix i, or of column g
 * where transposed. */
void gpu_ldmatrix(unsigned r[4], const void *row);
void gpu_ldmatrix_transposed(unsigned r[4], const void *row);

/* 16 bytes from global to shared memory, later; zeros if not `valid`.  Until the group it was
 * committed with is waited for, the shared bytes are NaN. */
inline void gpu_copy16_async(void *shared, const void *global, bool valid)
{
    cuda_host_copy_async(shared, valid ? global : nullptr);
}
inline void gpu_copy_commit()
{
    cuda_host_copy_commit();
}
/* All but the last `left` committed groups of this thread are there. */
template <int left> void gpu_copy_wait()
{
    cuda_host_copy_wait(left);
}

#endif
