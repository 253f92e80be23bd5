/* rope.cu - rotary positions: each pair (i, i + head_dim / 2) turned by position * inv_freq[i].
 * A thread turns four neighbouring pairs of one head. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/rotate.h"

static constexpr int BLOCK = 256;

template <typename T> static __global__ void rope_kernel(struct rope args)
{
    size_t half = (size_t)args.head_dim / 2, pieces = half / ROTATE_PAIRS;
    size_t number = gpu_thread();
    size_t i = number % pieces * ROTATE_PAIRS;
    size_t h = number / pieces % (size_t)args.heads, r = number / pieces / (size_t)args.heads;

    if (r >= (size_t)args.rows) {
        return;
    }
    const T *x = static_cast<const T *>(args.x) + (r * (size_t)args.heads + h) * 2 * half + i;
    T *out = static_cast<T *>(args.out) + r * args.row_stride + h * args.head_stride + i;

    if (args.positions) {
        rotate_pairs(out, x, args.positions[r], args.inv_freq + i, half);
    } else {
        copy_pairs(out, x, half);
    }
}

status cuda_rope(struct device *dev, const struct rope *args)
{
    size_t threads =
        (size_t)args->rows * (size_t)args->heads * (size_t)args->head_dim / (2 * ROTATE_PAIRS);
    unsigned blocks = cuda_blocks(threads, BLOCK);

    if (threads == 0) {
        return STATUS_OK;
    }
    cuda_with_act(dev, [&](auto act) {
        GPU_LAUNCH(rope_kernel<decltype(act)>, blocks, BLOCK, 0, cuda_stream(dev), *args);
    });
    return cuda_launched("rope");
}
