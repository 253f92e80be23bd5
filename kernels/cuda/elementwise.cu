/* elementwise.cu - the additions and products between the matrix products, and row gathers.
 * Four elements a thread, one by one where they do not lie well. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256, EACH = 4;

static bool lies_well(const void *address, size_t bytes)
{
    return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

static __global__ void add_kernel(float *x, const float *y, size_t n, bool together)
{
    size_t i = gpu_thread() * EACH;

    if (together && i + EACH <= n) {
        float a[EACH], b[EACH];

        gpu_load4(a, x + i);
        gpu_load4(b, y + i);
        for (int j = 0; j < EACH; j++) {
            a[j] += b[j];
        }
        gpu_store4(x + i, a);
        return;
    }
    for (size_t j = i; j < i + EACH && j < n; j++) {
        x[j] += y[j];
    }
}

status cuda_add(struct device *dev, float *x, const float *y, size_t n)
{
    if (n == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(add_kernel, cuda_blocks(n, BLOCK * EACH), BLOCK, 0, cuda_stream(dev), x, y, n,
               lies_well(x, 16) && lies_well(y, 16));
    return cuda_launched("add");
}

static __device__ float silu_mul(float gate, float up)
{
    return gate / (1.0f + expf(-gate)) * up;
}

template <typename T>
static __global__ void silu_mul_kernel(T *out, const T *gate, const T *up, size_t n, bool together)
{
    size_t i = gpu_thread() * EACH;

    if (together && i + EACH <= n) {
        float a[EACH], b[EACH];

        gpu_load4(a, gate + i);
        gpu_load4(b, up + i);
        for (int j = 0; j < EACH; j++) {
            a[j] = silu_mul(a[j], b[j]);
        }
        gpu_store4(out + i, a);
        return;
    }
    for (size_t j = i; j < i + EACH && j < n; j++) {
        gpu_store(&out[j], silu_mul(gpu_float(gate[j]), gpu_float(up[j])));
    }
}

status cuda_silu_mul(struct device *dev, void *out, const void *gate, const void *up, size_t n)
{
    unsigned blocks = cuda_blocks(n, BLOCK * EACH);
    bool together = lies_well(out, 16) && lies_well(gate, 16) && lies_well(up, 16);

    if (n == 0) {
        return STATUS_OK;
    }
    cuda_with_act(dev, [&](auto act) {
        using T = decltype(act);
        GPU_LAUNCH(silu_mul_kernel<T>, blocks, BLOCK, 0, cuda_stream(dev), static_cast<T *>(out),
                   static_cast<const T *>(gate), static_cast<const T *>(up), n, together);
    });
    return cuda_launched("silu_mul");
}

/* Rows are `words` units of T; a block for each. */
template <typename T>
static __global__ void gather_kernel(T *out, const T *in, const int32_t *index, size_t words)
{
    const T *from = in + (size_t)index[blockIdx.x] * words;
    T *to = out + (size_t)blockIdx.x * words;

    for (size_t i = threadIdx.x; i < words; i += blockDim.x) {
        to[i] = from[i];
    }
}

template <typename T>
static void gather(struct device *dev, void *out, const void *in, const int32_t *index, int n,
                   size_t row_bytes)
{
    size_t words = row_bytes / sizeof(T);
    unsigned block = words >= BLOCK ? BLOCK : (unsigned)(words + WARP - 1) / WARP * WARP;

    GPU_LAUNCH(gather_kernel<T>, (unsigned)n, block, 0, cuda_stream(dev), static_cast<T *>(out),
               static_cast<const T *>(in), index, words);
}

status cuda_gather_rows(struct device *dev, void *out, const void *in, const int32_t *index, int n,
                        size_t row_bytes)
{
    if (n == 0) {
        return STATUS_OK;
    }
    if (row_bytes % 16 == 0 && lies_well(out, 16) && lies_well(in, 16)) {
        gather<uint4>(dev, out, in, index, n, row_bytes);
    } else if (row_bytes % 4 == 0 && lies_well(out, 4) && lies_well(in, 4)) {
        gather<uint32_t>(dev, out, in, index, n, row_bytes);
    } else {
        gather<uint8_t>(dev, out, in, index, n, row_bytes);
    }
    return cuda_launched("gather_rows");
}
