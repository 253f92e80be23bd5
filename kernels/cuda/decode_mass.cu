/* decode_mass.cu - the probabilities behind decode attention, for methods that add them up: the
 * scores of every row, the peak and sum of every query head, then what each row gets. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 128;

struct mass {
    float *scores; /* (q_heads, stride), in units of log2 */
    float *peak;   /* (q_heads) */
    float *sum;
    size_t stride;
};

template <typename T>
static __global__ void scores_kernel(struct decode_attention args, struct kv_pool pool,
                                     struct mass mass)
{
    int group = args.q_heads / args.cache_heads, d = args.head_dim;
    struct decode_rows rows = decode_rows_of(args, pool, (int)blockIdx.y, (int)blockIdx.x);
    int lane = (int)threadIdx.x % rows.team_lanes, team = (int)threadIdx.x / rows.team_lanes;
    bool mine = lane * 8 < d;

    for (int at = rows.from; at < rows.to; at += BLOCK / rows.team_lanes) {
        int row = at + team;
        float k[8] = {};

        if (mine && row < rows.to) {
            gpu_load8(k, static_cast<const T *>(rows.k) + rows.element(row) + lane * 8);
        }
        for (int h = 0; h < group; h++) {
            size_t head = (size_t)rows.head * (size_t)group + (size_t)h;
            float q[8] = {};

            if (mine) {
                gpu_load8(q, static_cast<const T *>(args.q) + head * (size_t)d + lane * 8);
            }
            float score = decode_dot(q, k, rows.team_lanes) * rows.to_log2;
            if (lane == 0 && row < rows.to) {
                mass.scores[head * mass.stride + (size_t)row] = score;
            }
        }
    }
}

struct stats_shared {
    float partial[BLOCK / WARP];
};

/* A block for each query head. */
static __global__ void stats_kernel(struct decode_attention args, struct mass mass)
{
    auto *shared = gpu_shared<struct stats_shared>();
    int head = (int)blockIdx.x / (args.q_heads / args.cache_heads);
    const float *scores = mass.scores + (size_t)blockIdx.x * mass.stride;
    int first = args.first[head] + (int)threadIdx.x, end = args.length[head];
    float peak = -INFINITY, sum = 0.0f;

    for (int i = first; i < end; i += BLOCK) {
        peak = fmaxf(peak, scores[i]);
    }
    peak = gpu_block_reduce(peak, shared->partial, gpu_max());
    __syncthreads();
    for (int i = first; i < end; i += BLOCK) {
        sum += exp2f(scores[i] - peak);
    }
    sum = gpu_block_reduce(sum, shared->partial, gpu_sum());
    if (threadIdx.x == 0) {
        mass.peak[blockIdx.x] = peak;
        mass.sum[blockIdx.x] = sum;
    }
}

/* A thread for each row of each cache head. */
static __global__ void mass_kernel(float *out, size_t stride, struct decode_attention args,
                                   struct mass mass, enum group_reduce how)
{
    int row = (int)gpu_thread(), head = (int)blockIdx.y, group = args.q_heads / args.cache_heads;
    float total = 0.0f;

    if (row >= args.length[head]) {
        return;
    }
    for (int h = head * group; row >= args.first[head] && h < (head + 1) * group; h++) {
        float p =
            exp2f(mass.scores[(size_t)h * mass.stride + (size_t)row] - mass.peak[h]) / mass.sum[h];
        total = how == GROUP_MAX ? fmaxf(total, p) : total + p;
    }
    out[(size_t)head * stride + (size_t)row] = how == GROUP_MEAN ? total / (float)group : total;
}

size_t cuda_decode_mass_workspace(int q_heads, size_t stride)
{
    return (size_t)q_heads * (stride + 2) * sizeof(float);
}

status cuda_decode_mass(struct device *dev, float *out, size_t stride,
                        const struct decode_attention *args, enum group_reduce how)
{
    size_t q_heads = (size_t)args->q_heads;
    unsigned heads = (unsigned)args->cache_heads;
    void *memory;
    /* no head has more rows than its part of `out` */
    status st = cuda_workspace(dev, &memory, cuda_decode_mass_workspace(args->q_heads, stride));

    if (st) {
        return st;
    }
    float *floats = static_cast<float *>(memory);
    const struct mass mass = {floats + 2 * q_heads, floats, floats + q_heads, stride};
    cuda_with_act(dev, [&](auto act) {
        GPU_LAUNCH(scores_kernel<decltype(act)>, dim3(DECODE_SPLITS, heads), BLOCK, 0,
                   cuda_stream(dev), *args, *args->pool, mass);
    });
    GPU_LAUNCH(stats_kernel, (unsigned)q_heads, BLOCK, sizeof(struct stats_shared),
               cuda_stream(dev), *args, mass);
    GPU_LAUNCH(mass_kernel, dim3(cuda_blocks(stride, BLOCK), heads), BLOCK, 0, cuda_stream(dev),
               out, stride, *args, mass, how);
    return cuda_launched("decode_mass");
}
