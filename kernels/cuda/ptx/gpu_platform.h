/*
 * gpu_platform.h - what a kernel needs of a GPU beyond CUDA C++: the only inline PTX.
 *
 * tests/cuda_host/include/gpu_platform.h is its twin for the host, and says what each function
 * does; CMake chooses between the two folders.
 */
#ifndef KERNELS_CUDA_PTX_GPU_PLATFORM_H
#define KERNELS_CUDA_PTX_GPU_PLATFORM_H

#include <cuda_runtime.h>

#define GPU_LAUNCH(kernel, grid, block, shared, stream, ...) \
    kernel<<<(grid), (block), (shared), (stream)>>>(__VA_ARGS__)

template <typename T> __device__ __forceinline__ T *gpu_shared()
{
    extern __shared__ __align__(1024) unsigned char gpu_shared_bytes[];
    return reinterpret_cast<T *>(gpu_shared_bytes);
}

/* The same address, known to be of device memory: loads need not find out where it points. */
template <typename T> __device__ __forceinline__ const T *gpu_global(const T *from)
{
    __builtin_assume(__isGlobal(from));
    return from;
}

__device__ __forceinline__ uint4 gpu_load16(const void *from)
{
    return *static_cast<const uint4 *>(from);
}
__device__ __forceinline__ void gpu_store16(void *to, uint4 value)
{
    *static_cast<uint4 *>(to) = value;
}
__device__ __forceinline__ uint2 gpu_load8(const void *from)
{
    return *static_cast<const uint2 *>(from);
}
__device__ __forceinline__ void gpu_store8(void *to, uint2 value)
{
    *static_cast<uint2 *>(to) = value;
}

__device__ __forceinline__ float gpu_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ unsigned gpu_pack_bf16(float low, float high)
{
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ unsigned gpu_pack_f16(float low, float high)
{
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
__device__ __forceinline__ float gpu_f16_low(unsigned pair)
{
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<unsigned short>(pair)));
    return x;
}

__device__ __forceinline__ void gpu_mma_bf16(float d[4], const unsigned a[4], const unsigned b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void gpu_mma_f16(float d[4], const unsigned a[4], const unsigned b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ unsigned gpu_shared_address(const void *shared)
{
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

__device__ __forceinline__ void gpu_ldmatrix(unsigned r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(gpu_shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void gpu_ldmatrix_transposed(unsigned r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(gpu_shared_address(row))
                 : "memory");
}

/* A source of 0 bytes fills the 16 with zeros; the address is not read then. */
__device__ __forceinline__ void gpu_copy16_async(void *shared, const void *global, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(gpu_shared_address(shared)), "l"(__cvta_generic_to_global(global)),
                   "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void gpu_copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int left> __device__ __forceinline__ void gpu_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

#endif
