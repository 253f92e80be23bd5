/* select.cu - scores of query heads become scores of cache heads: group reduction and pooling.
 * A thread for each column; sums in ascending order. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256;

/* A thread takes its column of one group after the other: out may alias in, and group i is written
 * where only heads of groups up to i lie. */
static __global__ void group_reduce_kernel(float *out, const float *in, int groups, int group,
                                           size_t n, enum group_reduce how)
{
    size_t j = gpu_thread();

    for (size_t i = 0; j < n && i < (size_t)groups; i++) {
        const float *first = in + i * (size_t)group * n + j;
        float sum = first[0];

        for (size_t h = 1; h < (size_t)group; h++) {
            float x = first[h * n];
            sum = how != GROUP_MAX ? sum + x : x > sum ? x : sum;
        }
        out[i * n + j] = how == GROUP_MEAN ? sum / (float)group : sum;
    }
}

status cuda_group_reduce(struct device *dev, float *out, const float *in, int groups, int group,
                         int n, enum group_reduce how)
{
    if (n == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(group_reduce_kernel, cuda_blocks((size_t)n, BLOCK), BLOCK, 0, cuda_stream(dev), out,
               in, groups, group, (size_t)n, how);
    return cuda_launched("group_reduce");
}

static __global__ void pool_kernel(float *out, const float *in, int rows, int n, int kernel,
                                   enum pooling how)
{
    size_t number = gpu_thread();
    size_t row = number / (size_t)n * (size_t)n;
    int j = (int)(number % (size_t)n), reach = kernel / 2;
    float value = how == POOLING_MAX ? -INFINITY : 0.0f;

    if (number >= (size_t)rows * (size_t)n) {
        return;
    }
    for (int i = max(j - reach, 0); i <= min(j + reach, n - 1); i++) {
        float x = in[row + (size_t)i];
        value = how != POOLING_MAX ? value + x : x > value ? x : value;
    }
    out[number] = how == POOLING_AVG ? value / (float)kernel : value;
}

status cuda_pool(struct device *dev, float *out, const float *in, int rows, int n, int kernel,
                 enum pooling how)
{
    if (rows == 0 || n == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(pool_kernel, cuda_blocks((size_t)rows * (size_t)n, BLOCK), BLOCK, 0,
               cuda_stream(dev), out, in, rows, n, kernel, how);
    return cuda_launched("pool");
}
