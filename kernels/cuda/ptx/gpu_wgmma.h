/*
 * gpu_wgmma.h - products of a warp group (four warps) on Hopper's tensor cores: inline PTX for
 * sm_90a alone.
 *
 * tests/cuda_host/include/gpu_wgmma.h is its twin for the host, and says what each function does.
 */
#ifndef KERNELS_CUDA_PTX_GPU_WGMMA_H
#define KERNELS_CUDA_PTX_GPU_WGMMA_H

#include "kernels/cuda/gpu.h"

__device__ __forceinline__ uint64_t gpu_wgmma_operand(const void *shared, int next_columns)
{
    constexpr uint64_t next_rows = 1024, swizzle_128 = 1;
    uint64_t at = gpu_shared_address(shared);

    return (at & 0x3ffff) >> 4 | (uint64_t)next_columns >> 4 << 16 | next_rows >> 4 << 32 |
           swizzle_128 << 62;
}

__device__ __forceinline__ void gpu_copy_fence()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void gpu_wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void gpu_wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int left> __device__ __forceinline__ void gpu_wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}

template <int N> __device__ __forceinline__ void gpu_wgmma_hold(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        asm volatile("" : "+f"(d[i])::"memory");
    }
}
template <int N> __device__ __forceinline__ void gpu_wgmma_hold(unsigned (&a)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        asm volatile("" : "+r"(a[i])::"memory");
    }
}

/* clang-format off */
#define GPU_WGMMA_D32_TEXT \
    "%0, %1, %2, %3, %4, %5, %6, %7, " \
    "%8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define GPU_WGMMA_D64_TEXT GPU_WGMMA_D32_TEXT ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, " \
    "%56, %57, %58, %59, %60, %61, %62, %63"
#define GPU_WGMMA_D8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
    "+f"(d[i + 6]), "+f"(d[i + 7])
#define GPU_WGMMA_D32 GPU_WGMMA_D8(0), GPU_WGMMA_D8(8), GPU_WGMMA_D8(16), GPU_WGMMA_D8(24)
#define GPU_WGMMA_D64 \
    GPU_WGMMA_D32, GPU_WGMMA_D8(32), GPU_WGMMA_D8(40), GPU_WGMMA_D8(48), GPU_WGMMA_D8(56)

/* Operands a and b by descriptor, both with their rows along k. */
#define GPU_WGMMA_SHARED_N128(type) \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, %66, 0; " \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" \
                 GPU_WGMMA_D64_TEXT "}, %64, %65, add, 1, 1, 0, 0; }" \
                 : GPU_WGMMA_D64 : "l"(a), "l"(b), "r"((int)add))

/* Operand a in registers, b by descriptor with its columns along k. */
#define GPU_WGMMA_VALUES_N64(type) \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, 1, 0; " \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" \
                 GPU_WGMMA_D32_TEXT "}, {%32, %33, %34, %35}, %36, add, 1, 1, 1; }" \
                 : GPU_WGMMA_D32 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define GPU_WGMMA_VALUES_N128(type) \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, 1, 0; " \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" \
                 GPU_WGMMA_D64_TEXT "}, {%64, %65, %66, %67}, %68, add, 1, 1, 1; }" \
                 : GPU_WGMMA_D64 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
/* clang-format on */

template <typename T>
__device__ __forceinline__ void gpu_wgmma(float (&d)[64], uint64_t a, uint64_t b, bool add)
{
    if constexpr (std::is_same_v<T, bf16>) {
        GPU_WGMMA_SHARED_N128("bf16");
    } else {
        GPU_WGMMA_SHARED_N128("f16");
    }
}

template <typename T>
__device__ __forceinline__ void gpu_wgmma_add(float (&d)[32], const unsigned *a, uint64_t b)
{
    if constexpr (std::is_same_v<T, bf16>) {
        GPU_WGMMA_VALUES_N64("bf16");
    } else {
        GPU_WGMMA_VALUES_N64("f16");
    }
}
template <typename T>
__device__ __forceinline__ void gpu_wgmma_add(float (&d)[64], const unsigned *a, uint64_t b)
{
    if constexpr (std::is_same_v<T, bf16>) {
        GPU_WGMMA_VALUES_N128("bf16");
    } else {
        GPU_WGMMA_VALUES_N128("f16");
    }
}

#endif
