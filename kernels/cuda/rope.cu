/* rope.cu - a chunk of a prompt between its projections and attention: queries are rotated in
 * place, keys on their way to the layer's, and values join the layer's.  A thread has four
 * neighbouring pairs of one head of q, k or v. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/rotate.h"

static constexpr int BLOCK = 256;

/* Heads of a row: those of q, then of k, then of v. */
template <typename T> static __global__ void rope_kernel(struct rope args)
{
    size_t half = (size_t)args.head_dim / 2, pieces = half / ROTATE_PAIRS;
    int q_heads = args.q ? args.q_heads : 0, k_end = q_heads + (args.k ? args.kv_heads : 0);
    int heads = k_end + (args.v ? args.kv_heads : 0);
    size_t number = gpu_thread(), i = number % pieces * ROTATE_PAIRS;
    int h = (int)(number / pieces % (size_t)heads);
    size_t r = number / pieces / (size_t)heads;

    if (r >= (size_t)args.rows) {
        return;
    }
    if (h < q_heads) {
        T *q = static_cast<T *>(args.q) + (r * (size_t)q_heads + (size_t)h) * 2 * half + i;
        rotate_pairs(q, q, args.positions[r], args.inv_freq + i, half);
        return;
    }
    bool values = h >= k_end;
    size_t head = (size_t)(h - (values ? k_end : q_heads));
    size_t from = (r * (size_t)args.kv_heads + head) * 2 * half + i;
    size_t to = head * args.kv_stride + r * 2 * half + i;

    if (values) {
        copy_pairs(static_cast<T *>(args.layer_v) + to, static_cast<const T *>(args.v) + from,
                   half);
        return;
    }
    rotate_pairs(static_cast<T *>(args.layer_k) + to, static_cast<const T *>(args.k) + from,
                 args.positions[r], args.inv_freq + i, half);
}

status cuda_rope(struct device *dev, const struct rope *args)
{
    size_t kv_heads = (size_t)args->kv_heads;
    size_t heads =
        (args->q ? (size_t)args->q_heads : 0) + (args->k ? kv_heads : 0) + (args->v ? kv_heads : 0);
    size_t threads = (size_t)args->rows * heads * (size_t)args->head_dim / (2 * ROTATE_PAIRS);

    if (threads == 0) {
        return STATUS_OK;
    }
    cuda_with_act(dev, [&](auto act) {
        GPU_LAUNCH(rope_kernel<decltype(act)>, cuda_blocks(threads, BLOCK), BLOCK, 0,
                   cuda_stream(dev), *args);
    });
    return cuda_launched("rope");
}
