/* key_counts.cu - scores counted by 8 bits of their keys: a block counts a part of one row. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256, PART = 8192;

struct key_counts_shared {
    int bins[OP_KEY_BINS];
};

static __global__ void key_counts_kernel(struct key_counts args)
{
    static_assert(BLOCK == OP_KEY_BINS, "a thread for each bin");
    auto *shared = gpu_shared<struct key_counts_shared>();
    const float *scores = args.scores + (size_t)blockIdx.y * (size_t)args.n;
    int begin = (int)blockIdx.x * PART, end = min(begin + PART, args.n);

    shared->bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = begin + (int)threadIdx.x; i < end; i += BLOCK) {
        uint32_t key = gpu_rank_key(scores[i]);

        if (args.shift == 24 || key >> (args.shift + 8) == args.prefix) {
            atomicAdd(&shared->bins[(key >> args.shift) % OP_KEY_BINS], 1);
        }
    }
    __syncthreads();
    if (shared->bins[threadIdx.x]) {
        atomicAdd(&args.out[(size_t)blockIdx.y * OP_KEY_BINS + threadIdx.x],
                  shared->bins[threadIdx.x]);
    }
}

status cuda_key_counts(struct device *dev, const struct key_counts *args)
{
    size_t bytes = (size_t)args->rows * OP_KEY_BINS * sizeof(*args->out);
    status st = cuda_check(cudaMemsetAsync(args->out, 0, bytes, cuda_stream(dev)), "key_counts");

    if (st || args->rows == 0 || args->n == 0) {
        return st;
    }
    GPU_LAUNCH(key_counts_kernel, dim3(cuda_blocks((size_t)args->n, PART), (unsigned)args->rows),
               BLOCK, sizeof(struct key_counts_shared), cuda_stream(dev), *args);
    return cuda_launched("key_counts");
}
