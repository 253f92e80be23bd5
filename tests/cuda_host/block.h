/*
 * block.h - runs the grid of a kernel on one thread of the host, block after block.
 *
 * Every CUDA thread is a fiber.  A fiber runs until it waits for its warp or its block; which one
 * goes on is the schedule's choice, so that a missing barrier shows under one of them.
 */
#ifndef TESTS_CUDA_HOST_BLOCK_H
#define TESTS_CUDA_HOST_BLOCK_H

#include "tests/cuda_host/cuda_host.h"

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>

enum { CUDA_HOST_LANE_BYTES = 64, CUDA_HOST_WARP = 32 };
enum cuda_host_kind {
    CUDA_HOST_NONE,
    CUDA_HOST_SYNCWARP,
    CUDA_HOST_SHUFFLE,
    CUDA_HOST_BALLOT,
    CUDA_HOST_MMA_BF16,
    CUDA_HOST_MMA_F16,
    CUDA_HOST_LDMATRIX,
    CUDA_HOST_LDMATRIX_TRANSPOSED,
    CUDA_HOST_WGMMA,
    CUDA_HOST_WGMMA_FENCE,
    CUDA_HOST_WGMMA_COMMIT,
    CUDA_HOST_WGMMA_WAIT,
};

/* What a running CUDA thread sees of itself. */
struct cuda_host_thread {
    dim3 thread, block, block_dim, grid_dim;
    unsigned products_pending = 0; /* of its warp group, not waited for */
    uint64_t products = 0;         /* what they were: the same in all warps of the group */
};
extern thread_local constinit cuda_host_thread *cuda_host_self;

int cuda_host_lane();
void cuda_host_run_grid(const char *kernel, dim3 grid, dim3 block, size_t shared,
                        const std::function<void()> &body);
/* `begin` may run as soon as everything before it is done: it spoils what `work` will write. */
void cuda_host_enqueue(cudaStream_t stream, std::function<void()> work,
                       std::function<void()> begin = nullptr);
/* The same, but it does not run before the call returns. */
void cuda_host_append(cudaStream_t stream, std::function<void()> work);
/* For as long as the graph lives that the stream is captured for; else nothing. */
void cuda_host_hold(cudaStream_t stream, std::shared_ptr<void> what);

/* Within a kernel. */
void *cuda_host_shared(size_t at_least);
const void *cuda_host_aligned(const void *address, size_t to);
void cuda_host_block_barrier();

/* Each lane of the warp brings `bytes` (at most CUDA_HOST_LANE_BYTES); when all are there, the
 * last one calls `complete` (if any) on the 32 lanes, CUDA_HOST_LANE_BYTES apart, which are what
 * every lane gets back.  They stay until the lane's next call. */
void *cuda_host_warp_exchange(const void *mine, size_t bytes, int kind, void (*complete)(char *));

void cuda_host_copy_async(void *shared, const void *global);
void cuda_host_copy_commit();
void cuda_host_copy_wait(size_t left);
void cuda_host_copy_fence();

/* Shared memory as products of a warp group see it: its address, and what is at one. */
unsigned cuda_host_shared_address(const void *shared);
const void *cuda_host_shared_at(unsigned address, size_t bytes);

/* One product of a warp group; a comes from a_registers, or from the descriptor. */
struct cuda_host_product {
    bool is_bf16, add;
    const unsigned *a_registers;
    uint64_t a, b;
};
uint64_t cuda_host_wgmma_operand(const void *shared, int next_columns);
void cuda_host_wgmma_fence();
void cuda_host_wgmma(float *d, int n, const cuda_host_product &product); /* n of each thread */
void cuda_host_wgmma_commit();
void cuda_host_wgmma_wait(unsigned left);

/* Ends the program with the kernel's name and the thread. */
[[noreturn]] void cuda_host_broken(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
