/*
 * gpu_wgmma.h - the host twin of kernels/cuda/ptx/gpu_wgmma.h: products of a warp group, four
 * warps from one whose number is a multiple of four.
 *
 * A product runs beside what the threads do next.  Its result is in the accumulators, which are
 * NaN until then, when the group that it was committed with was waited for; so long its operands,
 * in shared memory or in registers, may not change.  All four warps issue the same products.
 */
#ifndef TESTS_CUDA_HOST_GPU_WGMMA_H
#define TESTS_CUDA_HOST_GPU_WGMMA_H

#include "kernels/cuda/gpu.h"

/* A descriptor of 16-bit elements from `shared` in slabs of 64 (128 bytes), rows below each other,
 * with the 128-byte swizzle: the tile that holds them begins at a multiple of 1024 bytes, and
 * 16-byte piece p of row r lies where piece p ^ r % 8 would.  The slab beside this one, where a
 * product needs one, is `next_columns` bytes away. */
inline uint64_t gpu_wgmma_operand(const void *shared, int next_columns)
{
    return cuda_host_wgmma_operand(shared, next_columns);
}

/* What this thread's gpu_copy_wait() brought may be read by products that are issued after the
 * next barrier. */
inline void gpu_copy_fence()
{
    cuda_host_copy_fence();
}

/* Before the first product, and after accumulators or operands in registers were changed. */
inline void gpu_wgmma_fence()
{
    cuda_host_wgmma_fence();
}
inline void gpu_wgmma_commit()
{
    cuda_host_wgmma_commit();
}
/* All but the last `left` committed groups are done. */
template <int left> void gpu_wgmma_wait()
{
    cuda_host_wgmma_wait(left);
}

/* Registers of products: what is written before stays before, what is read after stays after.  For
 * accumulators before a fence and after a wait, and for operands, which are in use up to there. */
template <int N> void gpu_wgmma_hold(float (&)[N]) {}
template <int N> void gpu_wgmma_hold(unsigned (&)[N]) {}

/* d (64, 128) = or += a (64, 16) b (128, 16) transposed, both by descriptor.  Warp w of the group
 * has rows 16 w.., and of them lane l, with g = l / 4 and t = l % 4, d[4 n..] = elements
 * (g, 8 n + 2 t..), (g + 8, 8 n + 2 t..). */
template <typename T> void gpu_wgmma(float (&d)[64], uint64_t a, uint64_t b, bool add)
{
    cuda_host_wgmma(d, 64, {std::is_same_v<T, bf16>, add, nullptr, a, b});
}

/* d (64, 64 or 128) += a (64, 16) b (16, 64 or 128): a in registers, as the a of gpu_mma_bf16() for
 * the warp's rows; b by descriptor, a row for each k. */
template <typename T, int N> void gpu_wgmma_add(float (&d)[N], const unsigned *a, uint64_t b)
{
    cuda_host_wgmma(d, N, {std::is_same_v<T, bf16>, true, a, 0, b});
}

#endif
