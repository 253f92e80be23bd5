/* embed.cu - rows of the embedding table, widened to float32: a block for each row. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256;

template <typename T>
static __global__ void embed_kernel(float *out, const int32_t *ids, const T *table, int rows,
                                    int cols, size_t stride, int first_id)
{
    int64_t row = (int64_t)ids[blockIdx.x] - first_id;
    float *to = out + (size_t)blockIdx.x * (size_t)cols;
    bool here = row >= 0 && row < rows;

    for (int c = (int)threadIdx.x; c < cols; c += BLOCK) {
        to[c] = here ? gpu_float(table[(size_t)row * stride + (size_t)c]) : 0.0f;
    }
}

template <typename T>
static void launch(struct device *dev, float *out, const int32_t *ids, int n,
                   const struct matrix *table, int first_id)
{
    GPU_LAUNCH(embed_kernel<T>, (unsigned)n, BLOCK, 0, cuda_stream(dev), out, ids,
               static_cast<const T *>(table->data), table->rows, table->cols, table->stride,
               first_id);
}

status cuda_embed(struct device *dev, float *out, const int32_t *ids, int n,
                  const struct matrix *table, int first_id)
{
    if (n == 0) {
        return STATUS_OK;
    }
    cuda_with_act(dev, [&](auto act) { launch<decltype(act)>(dev, out, ids, n, table, first_id); });
    return cuda_launched("embed");
}
