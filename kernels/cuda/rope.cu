/* rope.cu - rotary positions: each pair (i, i + head_dim / 2) turned by position * inv_freq[i].
 * A thread turns four neighbouring pairs of one head. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256, PAIRS = 4;

template <typename T> static __global__ void rope_kernel(struct rope args)
{
    size_t half = (size_t)args.head_dim / 2, pieces = half / PAIRS;
    size_t number = gpu_thread();
    size_t i = number % pieces * PAIRS;
    size_t h = number / pieces % (size_t)args.heads, r = number / pieces / (size_t)args.heads;

    if (r >= (size_t)args.rows) {
        return;
    }
    const T *x = static_cast<const T *>(args.x) + (r * (size_t)args.heads + h) * 2 * half + i;
    T *out = static_cast<T *>(args.out) + r * args.row_stride + h * args.head_stride + i;
    float a[PAIRS], b[PAIRS];

    gpu_load4(a, x);
    gpu_load4(b, x + half);
    for (int j = 0; args.positions && j < PAIRS; j++) {
        float sine, cosine, c = a[j], d = b[j];

        sincosf((float)args.positions[r] * args.inv_freq[i + (size_t)j], &sine, &cosine);
        a[j] = c * cosine - d * sine;
        b[j] = d * cosine + c * sine;
    }
    gpu_store4(out, a);
    gpu_store4(out + half, b);
}

status cuda_rope(struct device *dev, const struct rope *args)
{
    size_t threads =
        (size_t)args->rows * (size_t)args->heads * (size_t)args->head_dim / (2 * PAIRS);
    unsigned blocks = cuda_blocks(threads, BLOCK);

    if (threads == 0) {
        return STATUS_OK;
    }
    cuda_with_act(dev, [&](auto act) {
        GPU_LAUNCH(rope_kernel<decltype(act)>, blocks, BLOCK, 0, cuda_stream(dev), *args);
    });
    return cuda_launched("rope");
}
