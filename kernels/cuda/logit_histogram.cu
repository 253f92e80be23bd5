/*
 * logit_histogram.cu - count and mass of logits by key.  Masses are doubles and must not depend on
 * timing, so no atomics: a block puts bins and masses of a part of the row into shared memory,
 * then every thread adds up one bin, ids ascending; a second kernel adds the parts in order.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256, PART = 2048;

struct histogram_shared {
    double mass[PART];
    int16_t bin[PART]; /* -1: does not count */
};

static __global__ void parts_kernel(struct logit_bin *parts, struct logit_histogram args)
{
    static_assert(BLOCK == OP_HISTOGRAM_BINS, "a thread for each bin");
    auto *shared = gpu_shared<struct histogram_shared>();
    int r = (int)blockIdx.y, begin = (int)blockIdx.x * PART, n = min(PART, args.n - begin);
    const struct logit_filter *filter = &args.filters[r];
    const float *row = args.logits + (size_t)filter->row * (size_t)args.n + begin;
    double peak = (double)args.peaks[filter->row].value, temperature = (double)filter->temperature;
    uint32_t prefix = args.shift < 24 ? filter->prefix : 0;
    struct logit_bin sum = {0, 0.0};

    for (int i = (int)threadIdx.x; i < n; i += BLOCK) {
        uint32_t key = gpu_key(row[i]);
        uint32_t above = args.shift < 24 ? key >> (args.shift + 8) : 0;
        bool counts = key != 0 && above == prefix; /* NaN does not */

        shared->bin[i] = counts ? (int16_t)((key >> args.shift) & 0xffu) : (int16_t)-1;
        shared->mass[i] = counts ? exp(((double)row[i] - peak) / temperature) : 0.0;
    }
    __syncthreads();
    for (int i = 0; i < n; i++) {
        if (shared->bin[i] == (int)threadIdx.x) {
            sum.count++;
            sum.mass += shared->mass[i];
        }
    }
    parts[((size_t)r * gridDim.x + blockIdx.x) * BLOCK + threadIdx.x] = sum;
}

static __global__ void sum_kernel(struct logit_bin *out, const struct logit_bin *parts, int n)
{
    struct logit_bin sum = {0, 0.0};

    for (int i = 0; i < n; i++) {
        const struct logit_bin *part =
            &parts[((size_t)blockIdx.x * (size_t)n + (size_t)i) * BLOCK + threadIdx.x];

        sum.count += part->count;
        sum.mass += part->mass;
    }
    out[(size_t)blockIdx.x * BLOCK + threadIdx.x] = sum;
}

size_t cuda_logit_histogram_workspace(int rows, int n)
{
    return (size_t)rows * cuda_blocks((size_t)n, PART) * OP_HISTOGRAM_BINS *
           sizeof(struct logit_bin);
}

status cuda_logit_histogram(struct device *dev, const struct logit_histogram *args)
{
    unsigned blocks = cuda_blocks((size_t)args->n, PART), rows = (unsigned)args->rows;
    void *parts;
    status st = cuda_workspace(dev, &parts, cuda_logit_histogram_workspace(args->rows, args->n));

    if (st || rows == 0) {
        return st;
    }
    if (blocks > 0) {
        GPU_LAUNCH(parts_kernel, dim3(blocks, rows), BLOCK, sizeof(struct histogram_shared),
                   cuda_stream(dev), static_cast<struct logit_bin *>(parts), *args);
    }
    GPU_LAUNCH(sum_kernel, rows, BLOCK, 0, cuda_stream(dev), args->out,
               static_cast<const struct logit_bin *>(parts), (int)blocks);
    return cuda_launched("logit_histogram");
}
