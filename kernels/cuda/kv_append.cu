/* kv_append.cu - new rows of a decode step to their caches, rotated on the way, and their queries.
 * A thread has four pairs of one head of q, k or v. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/rotate.h"

static constexpr int BLOCK = 256;

/* A row's heads: of q, then of the cache for k, then for v. */
template <typename T>
static __global__ void append_kernel(struct kv_append args, struct kv_pool pool)
{
    size_t half = (size_t)pool.head_dim / 2, pieces = half / ROTATE_PAIRS;
    int q_heads = args.q ? args.q_heads : 0, heads = q_heads + 2 * args.cache_heads;
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
    bool values = h >= q_heads + args.cache_heads;
    int c = (h - q_heads) % args.cache_heads, kv_head = c / (args.cache_heads / args.kv_heads);
    size_t from = (r * (size_t)args.kv_heads + (size_t)kv_head) * 2 * half + i;
    size_t to = (size_t)args.slot[r * (size_t)args.cache_heads + (size_t)c] * 2 * half + i;
    const T *x = static_cast<const T *>(values ? args.v : args.k) + from;
    T *out = static_cast<T *>(values ? pool.v : pool.k) + to;

    if (values) {
        copy_pairs(out, x, half);
    } else {
        rotate_pairs(out, x, args.positions[r], args.inv_freq + i, half);
    }
}

status cuda_kv_append(struct device *dev, const struct kv_append *args)
{
    size_t heads = (size_t)((args->q ? args->q_heads : 0) + 2 * args->cache_heads);
    size_t threads = (size_t)args->rows * heads * (size_t)args->pool->head_dim / (2 * ROTATE_PAIRS);

    if (threads == 0) {
        return STATUS_OK;
    }
    cuda_with_act(dev, [&](auto act) {
        GPU_LAUNCH(append_kernel<decltype(act)>, cuda_blocks(threads, BLOCK), BLOCK, 0,
                   cuda_stream(dev), *args, *args->pool);
    });
    return cuda_launched("kv_append");
}
