/* dot_scores.cu - raw dot products of one row's queries with every key.  The heads of a group
 * share their keys, so their queries are added up first; a warp for each key, read once. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256, WARPS = BLOCK / WARP;

/* q (kv_heads, head_dim) = the sum of each group's queries. */
template <typename T> static __global__ void add_groups_kernel(float *q, struct dot_scores args)
{
    size_t d = (size_t)args.head_dim, group = (size_t)(args.q_heads / args.kv_heads);
    size_t i = gpu_thread(), head = i / d;
    float sum = 0.0f;

    if (head >= (size_t)args.kv_heads) {
        return;
    }
    for (size_t h = head * group; h < (head + 1) * group; h++) {
        sum += gpu_float(static_cast<const T *>(args.q)[h * d + i % d]);
    }
    q[i] = sum;
}

template <typename T>
static __global__ void dot_scores_kernel(const float *q, struct dot_scores args)
{
    int key = (int)(blockIdx.x * WARPS + threadIdx.x / WARP), lane = (int)threadIdx.x % WARP;
    float sum = 0.0f;

    for (int h = 0; key < args.n_keys && h < args.kv_heads; h++) {
        const T *k = static_cast<const T *>(args.k) + (size_t)h * args.kv_stride +
                     (size_t)key * (size_t)args.head_dim;

        for (int c = lane * 4; c < args.head_dim; c += WARP * 4) {
            float a[4], b[4];

            gpu_load4(a, q + h * args.head_dim + c);
            gpu_load4(b, k + c);
            for (int i = 0; i < 4; i++) {
                sum = fmaf(a[i], b[i], sum);
            }
        }
    }
    sum = gpu_warp_reduce(sum, gpu_sum());
    if (lane == 0 && key < args.n_keys) {
        args.out[key] = sum;
    }
}

template <typename T>
static void launch(struct device *dev, float *q, const struct dot_scores *args)
{
    size_t n = (size_t)args->kv_heads * (size_t)args->head_dim;

    GPU_LAUNCH(add_groups_kernel<T>, cuda_blocks(n, BLOCK), BLOCK, 0, cuda_stream(dev), q, *args);
    GPU_LAUNCH(dot_scores_kernel<T>, cuda_blocks((size_t)args->n_keys, WARPS), BLOCK, 0,
               cuda_stream(dev), q, *args);
}

size_t cuda_dot_scores_workspace(int kv_heads, int head_dim)
{
    return (size_t)kv_heads * (size_t)head_dim * sizeof(float);
}

status cuda_dot_scores(struct device *dev, const struct dot_scores *args)
{
    void *q;
    status st = cuda_workspace(dev, &q, cuda_dot_scores_workspace(args->kv_heads, args->head_dim));

    if (st || args->n_keys == 0) {
        return st;
    }
    cuda_with_act(dev,
                  [&](auto act) { launch<decltype(act)>(dev, static_cast<float *>(q), args); });
    return cuda_launched("dot_scores");
}
