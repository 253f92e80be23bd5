/* rmsnorm.cu - each row over its root mean square, times the weight: a block for each row. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256;

struct rmsnorm_shared {
    float partial[BLOCK / WARP];
};

/* Neighbouring threads take neighbouring elements; a thread's sum is of four accumulators. */
static __device__ float sum_of_squares(const float *x, int cols)
{
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int c = (int)threadIdx.x;

    for (; c + 3 * BLOCK < cols; c += 4 * BLOCK) {
        for (int i = 0; i < 4; i++) {
            float v = x[c + i * BLOCK];
            sum[i] = fmaf(v, v, sum[i]);
        }
    }
    for (; c < cols; c += BLOCK) {
        sum[0] = fmaf(x[c], x[c], sum[0]);
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

template <typename T>
static __global__ void rmsnorm_kernel(T *out, const float *x, const float *weight, int cols,
                                      float eps)
{
    auto *shared = gpu_shared<struct rmsnorm_shared>();
    size_t row = (size_t)blockIdx.x * (size_t)cols;
    float sum = gpu_block_reduce(sum_of_squares(x + row, cols), shared->partial, gpu_sum());
    float scale = 1.0f / sqrtf(sum / (float)cols + eps);

    for (int c = (int)threadIdx.x; c < cols; c += BLOCK) {
        gpu_store(&out[row + (size_t)c], weight[c] * (x[row + (size_t)c] * scale));
    }
}

status cuda_rmsnorm(struct device *dev, void *out, const float *x, const float *weight, int rows,
                    int cols, float eps)
{
    if (rows == 0) {
        return STATUS_OK;
    }
    cuda_with_act(dev, [&](auto act) {
        using T = decltype(act);
        GPU_LAUNCH(rmsnorm_kernel<T>, (unsigned)rows, BLOCK, sizeof(struct rmsnorm_shared),
                   cuda_stream(dev), static_cast<T *>(out), x, weight, cols, eps);
    });
    return cuda_launched("rmsnorm");
}
