/*
 * tile.h - tiles of 16-bit rows in shared memory, the operands of gpu_mma().
 *
 * A row has DIM elements in pieces of 8 (16 bytes), permuted by the row's number, so that
 * ldmatrix meets no bank twice.  A warp takes 16 rows of one tile as the left operand, and rows of
 * another as the right one: the product has left rows by right rows.
 */
#ifndef KERNELS_CUDA_TILE_H
#define KERNELS_CUDA_TILE_H

#include "kernels/cuda/gpu.h"

/* Element of piece `piece` of a row of a tile. */
template <int DIM> __device__ __forceinline__ int tile_place(int row, int piece)
{
    return row * DIM + (piece ^ (row & 7)) * 8;
}

/* Rows first..first + ROWS of a matrix (n, head_dim), `stride` elements apart, by cp.async; zeros
 * past its end in both directions.  By BLOCK threads. */
template <int DIM, int ROWS, int BLOCK, typename T>
__device__ __forceinline__ void tile_load(T *tile, const T *matrix, size_t stride, int first, int n,
                                          int head_dim)
{
    constexpr int PIECES = DIM / 8;

    for (int i = (int)threadIdx.x; i < ROWS * PIECES; i += BLOCK) {
        int row = first + i / PIECES, c = i % PIECES * 8;
        bool here = row < n && c < head_dim;
        size_t at = (size_t)row * stride + (size_t)c;

        gpu_copy16_async(&tile[tile_place<DIM>(i / PIECES, i % PIECES)], matrix + (here ? at : 0),
                         here);
    }
}

/* Columns 16 c.. of rows row..row + 16 as the left operand. */
template <int DIM, typename T>
__device__ __forceinline__ void tile_left(unsigned a[4], const T *tile, int row, int c)
{
    int lane = (int)threadIdx.x % WARP, matrix = lane / 8;

    gpu_ldmatrix(a, &tile[tile_place<DIM>(row + matrix % 2 * 8 + lane % 8, 2 * c + matrix / 2)]);
}

/* Columns 16 c.. of rows row..row + 16 as two right operands of 8 rows, b and b + 2. */
template <int DIM, typename T>
__device__ __forceinline__ void tile_right(unsigned b[4], const T *tile, int row, int c)
{
    int lane = (int)threadIdx.x % WARP, matrix = lane / 8;

    gpu_ldmatrix(b, &tile[tile_place<DIM>(row + matrix / 2 * 8 + lane % 8, 2 * c + matrix % 2)]);
}

#endif
