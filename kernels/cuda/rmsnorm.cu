/* rmsnorm.cu - each row over its root mean square, times the weight; after an addition, if wanted.
 * A block for each row; a thread takes four neighbours in 4 * BLOCK, one by one where rows do not
 * lie well. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256, EACH = 4;

struct rmsnorm_shared {
    float partial[BLOCK / WARP];
};

template <bool TOGETHER>
static __device__ __forceinline__ void load_some(float v[EACH], const float *row, int c, int cols)
{
    if constexpr (TOGETHER) {
        gpu_load4(v, row + c);
    } else {
        for (int i = 0; i < EACH; i++) {
            v[i] = c + i < cols ? row[c + i] : 0.0f;
        }
    }
}

template <bool TOGETHER, typename T>
static __device__ __forceinline__ void store_some(T *row, const float v[EACH], int c, int cols)
{
    if constexpr (TOGETHER) {
        gpu_store4(row + c, v);
    } else {
        for (int i = 0; i < EACH && c + i < cols; i++) {
            gpu_store(&row[c + i], v[i]);
        }
    }
}

/* y: what is added to x first, or NULL. */
template <typename T, bool TOGETHER>
static __global__ void __launch_bounds__(BLOCK)
    rmsnorm_kernel(T *out, float *x, const float *y, const float *weight, int cols, float eps)
{
    auto *shared = gpu_shared<struct rmsnorm_shared>();
    size_t row = (size_t)blockIdx.x * (size_t)cols;
    float sum[EACH] = {}, v[EACH], w[EACH];

    for (int c = (int)threadIdx.x * EACH; c < cols; c += BLOCK * EACH) {
        load_some<TOGETHER>(v, x + row, c, cols);
        if (y) {
            load_some<TOGETHER>(w, y + row, c, cols);
            for (int i = 0; i < EACH; i++) {
                v[i] += w[i];
            }
            store_some<TOGETHER>(x + row, v, c, cols);
        }
        for (int i = 0; i < EACH; i++) {
            sum[i] = fmaf(v[i], v[i], sum[i]);
        }
    }
    float total =
        gpu_block_reduce((sum[0] + sum[1]) + (sum[2] + sum[3]), shared->partial, gpu_sum());
    float scale = 1.0f / sqrtf(total / (float)cols + eps);

    /* a thread reads what it wrote itself */
    for (int c = (int)threadIdx.x * EACH; c < cols; c += BLOCK * EACH) {
        load_some<TOGETHER>(v, x + row, c, cols);
        load_some<TOGETHER>(w, weight, c, cols);
        for (int i = 0; i < EACH; i++) {
            v[i] = w[i] * (v[i] * scale);
        }
        store_some<TOGETHER>(out + row, v, c, cols);
    }
}

static bool lies_well(const void *address)
{
    return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

static status launch(struct device *dev, void *out, float *x, const float *y, const float *weight,
                     int rows, int cols, float eps)
{
    bool together = cols % EACH == 0 && lies_well(out) && lies_well(x) && lies_well(weight) &&
                    (!y || lies_well(y));
    constexpr size_t shared = sizeof(struct rmsnorm_shared);

    if (rows == 0) {
        return STATUS_OK;
    }
    cuda_with_act(dev, [&](auto act) {
        using T = decltype(act);
        auto *to = static_cast<T *>(out);
        if (together) {
            GPU_LAUNCH((rmsnorm_kernel<T, true>), (unsigned)rows, BLOCK, shared, cuda_stream(dev),
                       to, x, y, weight, cols, eps);
        } else {
            GPU_LAUNCH((rmsnorm_kernel<T, false>), (unsigned)rows, BLOCK, shared, cuda_stream(dev),
                       to, x, y, weight, cols, eps);
        }
    });
    return cuda_launched("rmsnorm");
}

status cuda_rmsnorm(struct device *dev, void *out, const float *x, const float *weight, int rows,
                    int cols, float eps)
{
    /* nothing is added, so nothing is written to x */
    return launch(dev, out, const_cast<float *>(x), nullptr, weight, rows, cols, eps);
}

status cuda_add_rmsnorm(struct device *dev, void *out, float *x, const float *y,
                        const float *weight, int rows, int cols, float eps)
{
    return launch(dev, out, x, y, weight, rows, cols, eps);
}
