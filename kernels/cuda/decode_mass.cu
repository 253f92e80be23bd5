/* decode_mass.cu - the probabilities behind decode attention, for methods that add them up: peak
 * and sum of every split and query head, then what each row gets, from scores that are formed
 * again. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/kv.h"

static constexpr int BLOCK = 128, BLOCKS = 16;

struct mass {
    float *peak;                    /* (heads, DECODE_SPLITS, group), in units of log2 */
    float *sum;                     /* likewise */
    const struct evict_rule *rules; /* (heads) */
};

/* The score of a row, in all lanes of its team; of no meaning where row >= rows.to. */
template <typename T>
static __device__ __forceinline__ float score_of(const struct decode_rows &rows, const T *q,
                                                 const float k[8], int lane)
{
    float part[8] = {};

    if (lane * 8 < rows.head_dim) {
        gpu_load8(part, q + lane * 8);
    }
    return decode_dot(part, k, rows.team_lanes) * rows.to_log2;
}

template <typename T>
static __device__ __forceinline__ void load_key(float k[8], const struct decode_rows &rows, int row,
                                                int lane)
{
    for (int i = 0; i < 8; i++) {
        k[i] = 0.0f;
    }
    if (lane * 8 < rows.head_dim && row < rows.to) {
        gpu_load8(k, static_cast<const T *>(rows.k) + rows.element(row) + lane * 8);
    }
}

struct stats_shared {
    float partial[BLOCK / WARP];
};

/* Of one query head, over the rows of a split; thread 0 has them. */
template <typename T>
static __device__ void find_stats(float *peak, float *sum, float *partial,
                                  const struct decode_rows &rows, const T *q)
{
    int lane = (int)threadIdx.x % rows.team_lanes, team = (int)threadIdx.x / rows.team_lanes;

    *peak = -INFINITY;
    *sum = 0.0f;
    for (int begin = rows.from; begin < rows.to; begin += BLOCK / rows.team_lanes) {
        float k[8];
        load_key<T>(k, rows, begin + team, lane);
        float score = score_of(rows, q, k, lane);
        if (lane == 0 && begin + team < rows.to) {
            float higher = fmaxf(*peak, score);
            *sum = *sum * exp2f(*peak - higher) + exp2f(score - higher);
            *peak = higher;
        }
    }
    float highest = gpu_block_reduce(*peak, partial, gpu_max());
    __syncthreads();
    *sum = gpu_block_reduce(*sum * exp2f(*peak - highest), partial, gpu_sum());
    __syncthreads();
    *peak = highest;
}

/* Splits and query heads of a cache head are shared out among BLOCKS blocks. */
template <typename T>
static __global__ void stats_kernel(struct decode_attention args, struct kv_pool pool,
                                    struct mass mass)
{
    auto *shared = gpu_shared<struct stats_shared>();
    int group = args.q_heads / args.cache_heads, head = (int)blockIdx.y;

    if (mass.rules[head].joins == 0) {
        return;
    }
    int splits = decode_cuts_of(args, head).splits;
    for (int i = (int)blockIdx.x; i < splits * group; i += BLOCKS) {
        int split = i / group, h = i % group;
        size_t at = ((size_t)head * DECODE_SPLITS + (size_t)split) * (size_t)group + (size_t)h;
        const T *q = static_cast<const T *>(args.q) +
                     ((size_t)head * (size_t)group + (size_t)h) * (size_t)args.head_dim;
        float peak, sum;

        find_stats(&peak, &sum, shared->partial, decode_rows_of(args, pool, head, split), q);
        if (threadIdx.x == 0) {
            mass.peak[at] = peak;
            mass.sum[at] = sum;
        }
    }
}

/* Peak and sum of a query head over all splits. */
static __device__ void join_splits(float *peak, float *sum, const struct mass &mass, size_t at,
                                   int splits, int group)
{
    *peak = -INFINITY;
    *sum = 0.0f;
    for (int s = 0; s < splits; s++) {
        *peak = fmaxf(*peak, mass.peak[at + (size_t)(s * group)]);
    }
    for (int s = 0; s < splits; s++) {
        size_t i = at + (size_t)(s * group);
        *sum += mass.sum[i] * exp2f(mass.peak[i] - *peak);
    }
}

static __device__ void give(const struct kv_pool &pool, const struct decode_rows &rows, int row,
                            bool is_new, float p)
{
    float *to = &pool.notes[kv_row_of(rows.pages, row, rows.page_rows)].mass;
    *to = (is_new ? 0.0f : *to) + p;
}

/* Each row of a split gets its mass; peak and sum (group) over all splits. */
template <typename T>
static __device__ void give_masses(const struct mass &mass, const struct kv_pool &pool,
                                   const struct decode_rows &rows, const T *q, int group,
                                   int length, const float *peak, const float *sum)
{
    int lane = (int)threadIdx.x % rows.team_lanes, team = (int)threadIdx.x / rows.team_lanes;
    auto how = (enum group_reduce)mass.rules[rows.head].joins;

    for (int begin = rows.from; begin < rows.to; begin += BLOCK / rows.team_lanes) {
        int row = begin + team;
        float k[8], total = 0.0f;

        load_key<T>(k, rows, row, lane);
        for (int h = 0; h < group; h++) {
            float score = score_of(rows, q + (size_t)h * (size_t)rows.head_dim, k, lane);
            float p = exp2f(score - peak[h]) / sum[h];
            total = how == GROUP_MAX ? fmaxf(total, p) : total + p;
        }
        if (lane == 0 && row < rows.to) {
            give(pool, rows, row, row == length - 1,
                 how == GROUP_MEAN ? total / (float)group : total);
        }
    }
}

/* Likewise, of splits; shared memory: peak and sum (group). */
template <typename T>
static __global__ void mass_kernel(struct decode_attention args, struct kv_pool pool,
                                   struct mass mass)
{
    int group = args.q_heads / args.cache_heads, head = (int)blockIdx.y;
    float *peak = gpu_shared<float>(), *sum = peak + group;

    if (mass.rules[head].joins == 0) {
        return;
    }
    int length = args.length[head];
    int splits = decode_cuts_of(args, head).splits;
    const T *q =
        static_cast<const T *>(args.q) + (size_t)head * (size_t)group * (size_t)args.head_dim;

    for (int h = (int)threadIdx.x; h < group; h += BLOCK) {
        join_splits(&peak[h], &sum[h], mass,
                    (size_t)head * DECODE_SPLITS * (size_t)group + (size_t)h, splits, group);
    }
    __syncthreads();
    for (int split = (int)blockIdx.x; split < splits; split += BLOCKS) {
        give_masses(mass, pool, decode_rows_of(args, pool, head, split), q, group, length, peak,
                    sum);
    }
}

size_t cuda_decode_mass_workspace(int rows, int q_heads)
{
    return (size_t)rows * (size_t)q_heads * DECODE_SPLITS * 2 * sizeof(float);
}

status cuda_join_mass(struct device *dev, const struct decode_attention *args,
                      const struct evict_rule *rules)
{
    size_t parts = (size_t)args->rows * (size_t)args->q_heads * DECODE_SPLITS;
    size_t group = (size_t)(args->q_heads / args->cache_heads);
    const dim3 grid(BLOCKS, (unsigned)(args->rows * args->cache_heads));
    void *memory;
    status st = cuda_workspace(dev, &memory, cuda_decode_mass_workspace(args->rows, args->q_heads));

    if (st) {
        return st;
    }
    float *peak = static_cast<float *>(memory);
    const struct mass mass = {peak, peak + parts, rules};
    cuda_with_act(dev, [&](auto act) {
        GPU_LAUNCH(stats_kernel<decltype(act)>, grid, BLOCK, sizeof(struct stats_shared),
                   cuda_stream(dev), *args, *args->pool, mass);
        GPU_LAUNCH(mass_kernel<decltype(act)>, grid, BLOCK, 2 * group * sizeof(float),
                   cuda_stream(dev), *args, *args->pool, mass);
    });
    return cuda_launched("decode_mass");
}
