/* kv.h - where the rows of a page table are. */
#ifndef KERNELS_CUDA_KV_H
#define KERNELS_CUDA_KV_H

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

__device__ __forceinline__ size_t kv_row_of(const int32_t *pages, int i, int page_rows)
{
    return (size_t)pages[i / page_rows] * (size_t)page_rows + (size_t)(i % page_rows);
}

#endif
