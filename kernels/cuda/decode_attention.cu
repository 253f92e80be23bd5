/*
 * decode_attention.cu - one query row a sequence over the pages of its cache.
 *
 * The lengths are on the device, so the grid is the same for all: SPLITS blocks for each cache
 * head, whose rows are shared out by the head's own length; a block without rows ends at once.
 * A second kernel merges the splits in order.
 *
 * The splits of float32 are here: a row is read by as many lanes as it has pieces of 8 elements (a
 * team), for all query heads of the group; each team keeps its own running softmax, and they are
 * merged in order.  Those of 16 bits are in decode_attention_mma.cu.
 */
#include "kernels/cuda/decode.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 128;
static constexpr int MAX_SHARED = 48 << 10;

/* The running softmax of one query head in one team: this lane's 8 elements of the values. */
struct running {
    float peak, sum, values[8];
};

static __device__ void begin(struct running *r)
{
    r->peak = -INFINITY;
    r->sum = 0.0f;
    for (int i = 0; i < 8; i++) {
        r->values[i] = 0.0f;
    }
}

static __device__ void add_row(struct running *r, float score, const float v[8])
{
    float peak = fmaxf(r->peak, score);
    float keep = exp2f(r->peak - peak), weight = exp2f(score - peak);

    r->peak = peak;
    r->sum = fmaf(r->sum, keep, weight);
    for (int i = 0; i < 8; i++) {
        r->values[i] = fmaf(weight, v[i], r->values[i] * keep);
    }
}

/* Where a block's shared memory has what; teams * HEADS * (2 + head_dim) floats. */
struct merge {
    float *peak, *sum, *values;
    int teams, dim;
};

static __device__ struct merge merge_of(int teams, int heads, int dim)
{
    float *shared = gpu_shared<float>();

    return {shared, shared + teams * heads, shared + 2 * teams * heads, teams, dim};
}

/* Query heads first_head.. of the block's cache head, over rows from..to. */
template <int HEADS>
static __device__ void run_rows(struct running state[HEADS], const struct decode_attention &args,
                                const struct decode_rows &rows, int first_head)
{
    int lanes = rows.team_lanes, lane = (int)threadIdx.x % lanes;
    int team = (int)threadIdx.x / lanes, teams = BLOCK / lanes;
    int group = args.q_heads / args.cache_heads, d = args.head_dim;
    bool mine = lane * 8 < d;
    float q[HEADS][8];

    for (int h = 0; h < HEADS; h++) {
        begin(&state[h]);
        for (int i = 0; i < 8; i++) {
            q[h][i] = 0.0f;
        }
        if (mine && first_head + h < group) {
            size_t head = (size_t)rows.head * (size_t)group + (size_t)(first_head + h);
            gpu_load8(q[h], static_cast<const float *>(rows.q) + head * (size_t)d + lane * 8);
            for (int i = 0; i < 8; i++) {
                q[h][i] *= rows.to_log2;
            }
        }
    }
    /* every team of a warp takes part in the shuffles; a row past the end weighs nothing */
    for (int at = rows.from; at < rows.to; at += teams) {
        int row = at + team;
        bool here = row < rows.to;
        float k[8] = {}, v[8] = {};

        if (mine && here) {
            size_t element = rows.element(row) + (size_t)lane * 8;
            gpu_load8(k, static_cast<const float *>(rows.k) + element);
            gpu_load8(v, static_cast<const float *>(rows.v) + element);
        }
        for (int h = 0; h < HEADS; h++) {
            float score = decode_dot(q[h], k, lanes);
            if (here) {
                add_row(&state[h], score, v);
            }
        }
    }
}

/* Element c of the block's values of head h, and its peak and sum: the teams in order. */
static __device__ float merge_teams(const struct merge &m, int heads, int h, int c, float *peak,
                                    float *sum)
{
    float value = 0.0f;

    *peak = -INFINITY;
    *sum = 0.0f;
    for (int t = 0; t < m.teams; t++) {
        *peak = fmaxf(*peak, m.peak[t * heads + h]);
    }
    for (int t = 0; t < m.teams; t++) {
        int at = t * heads + h;
        float scale = m.sum[at] > 0.0f ? exp2f(m.peak[at] - *peak) : 0.0f;

        *sum = fmaf(m.sum[at], scale, *sum);
        value = fmaf(m.values[at * m.dim + c], scale, value);
    }
    return value;
}

template <int HEADS>
static __global__ void __launch_bounds__(BLOCK)
    split_kernel(struct decode_attention args, struct kv_pool pool, struct decode_parts parts)
{
    int group = args.q_heads / args.cache_heads, d = args.head_dim;
    int split = (int)blockIdx.x, head = (int)blockIdx.y;
    struct decode_rows rows = decode_rows_of(args, pool, head, split);
    int teams = BLOCK / rows.team_lanes, lane = (int)threadIdx.x % rows.team_lanes;
    int team = (int)threadIdx.x / rows.team_lanes;

    if (rows.from >= rows.to) {
        return;
    }
    struct merge m = merge_of(teams, HEADS, d);
    for (int first = 0; first < group; first += HEADS) {
        struct running state[HEADS];

        run_rows<HEADS>(state, args, rows, first);
        for (int h = 0; h < HEADS; h++) {
            m.peak[team * HEADS + h] = state[h].peak;
            m.sum[team * HEADS + h] = state[h].sum;
            for (int i = 0; lane * 8 < d && i < 8; i++) {
                m.values[(team * HEADS + h) * d + lane * 8 + i] = state[h].values[i];
            }
        }
        __syncthreads();
        for (int i = (int)threadIdx.x; i < HEADS * d && first + i / d < group; i += BLOCK) {
            size_t at = ((size_t)head * DECODE_SPLITS + (size_t)split) * (size_t)group +
                        (size_t)(first + i / d);
            float peak, sum;

            parts.values[at * (size_t)d + (size_t)(i % d)] =
                merge_teams(m, HEADS, i / d, i % d, &peak, &sum);
            if (i % d == 0) {
                parts.peak[at] = peak;
                parts.sum[at] = sum;
            }
        }
        __syncthreads();
    }
}

/* Threads of the combination that add up a part of an element's splits. */
static constexpr int SHARES = 4, SHARE_SPLITS = DECODE_SPLITS / SHARES;
static constexpr int LANE_SPLITS = (int)DECODE_SPLITS / (int)WARP;

struct combine_shared {
    float scale[DECODE_SPLITS];
    float sum[SHARES], value[SHARES][OP_MAX_HEAD_DIM];
};

/* scale[s] = 2^(peak of split s - the highest), 0 of one without rows. */
static __device__ __forceinline__ void find_scales(float *scale, const float *peaks, int splits,
                                                   size_t stride)
{
    float own[LANE_SPLITS], peak = -INFINITY;

    if (threadIdx.x < WARP) {
        for (int i = 0; i < LANE_SPLITS; i++) {
            int s = i * WARP + (int)threadIdx.x;

            own[i] = s < splits ? peaks[(size_t)s * stride] : -INFINITY;
            peak = fmaxf(peak, own[i]);
        }
        peak = gpu_warp_reduce(peak, gpu_max());
        for (int i = 0; i < LANE_SPLITS; i++) {
            scale[i * WARP + (int)threadIdx.x] = exp2f(own[i] - peak);
        }
    }
    __syncthreads();
}

/* A block for each query head of each sequence: blockDim.x / SHARES elements, whose splits are
 * added up in SHARES parts, in order. */
template <typename T>
static __global__ void combine_kernel(struct decode_attention args, struct decode_parts parts)
{
    int group = args.q_heads / args.cache_heads, head = (int)blockIdx.x / group;
    int splits = decode_cuts_of(args, head).splits;
    int threads = (int)blockDim.x / SHARES, c = (int)threadIdx.x % threads;
    int share = (int)threadIdx.x / threads, from = share * SHARE_SPLITS;
    size_t stride = (size_t)group, d = (size_t)args.head_dim;
    size_t first = (size_t)head * DECODE_SPLITS * stride + blockIdx.x % (unsigned)group;
    const float *values = parts.values + first * d + min(c, args.head_dim - 1);
    auto *shared = gpu_shared<struct combine_shared>();
    float own[SHARE_SPLITS], sums[SHARE_SPLITS], sum = 0.0f, value = 0.0f;

    /* all loads are on their way before the first is needed */
#pragma unroll
    for (int i = 0; i < SHARE_SPLITS; i++) {
        size_t s = (size_t)(from + i);
        bool here = from + i < splits;

        own[i] = here ? values[s * stride * d] : 0.0f;
        sums[i] = here ? parts.sum[first + s * stride] : 0.0f;
    }
    find_scales(shared->scale, parts.peak + first, splits, stride);
#pragma unroll
    for (int i = 0; i < SHARE_SPLITS; i++) {
        sum = fmaf(sums[i], shared->scale[from + i], sum);
        value = fmaf(own[i], shared->scale[from + i], value);
    }
    if (c < args.head_dim) {
        shared->value[share][c] = value;
    }
    if (c == 0) {
        shared->sum[share] = sum;
    }
    __syncthreads();
    if (share == 0 && c < args.head_dim) {
        for (int i = 1; i < SHARES; i++) {
            sum += shared->sum[i];
            value += shared->value[i][c];
        }
        gpu_store(static_cast<T *>(args.out) + (size_t)blockIdx.x * d + c, value / sum);
    }
}

template <int HEADS>
static void launch_splits(struct device *dev, const struct decode_attention *args,
                          const struct decode_parts &parts)
{
    unsigned heads = (unsigned)(args->rows * args->cache_heads);
    size_t teams = BLOCK / (size_t)decode_team_lanes(args->head_dim);
    size_t shared = teams * HEADS * (2 + (size_t)args->head_dim) * sizeof(float);

    GPU_LAUNCH(split_kernel<HEADS>, dim3(DECODE_SPLITS, heads), BLOCK, shared, cuda_stream(dev),
               *args, *args->pool, parts);
}

static void launch_group(struct device *dev, const struct decode_attention *args,
                         const struct decode_parts &parts)
{
    int group = args->q_heads / args->cache_heads;

    if (group == 1) {
        launch_splits<1>(dev, args, parts);
    } else if (group == 2) {
        launch_splits<2>(dev, args, parts);
    } else {
        launch_splits<4>(dev, args, parts);
    }
}

static void launch_combine(struct device *dev, const struct decode_attention *args,
                           const struct decode_parts &parts)
{
    unsigned q_heads = (unsigned)(args->rows * args->q_heads);
    unsigned threads = cuda_blocks((size_t)args->head_dim, WARP) * WARP * SHARES;

    cuda_with_act(dev, [&](auto act) {
        GPU_LAUNCH(combine_kernel<decltype(act)>, q_heads, threads, sizeof(struct combine_shared),
                   cuda_stream(dev), *args, parts);
    });
}

size_t cuda_decode_attention_workspace(int rows, int q_heads, int head_dim)
{
    size_t n = (size_t)rows * (size_t)q_heads * DECODE_SPLITS;

    return n * (2 + (size_t)head_dim) * sizeof(float);
}

status cuda_decode_attention(struct device *dev, const struct decode_attention *args)
{
    /* 4 heads of 128 / lanes teams: 2 + head_dim floats each, head_dim at most 8 * lanes */
    static_assert(4 * BLOCK * (2 + 8) * sizeof(float) <= MAX_SHARED, "fits without asking");
    size_t n = (size_t)args->rows * (size_t)args->q_heads * DECODE_SPLITS;
    void *memory;
    status st = cuda_workspace(
        dev, &memory, cuda_decode_attention_workspace(args->rows, args->q_heads, args->head_dim));

    if (st) {
        return st;
    }
    float *floats = static_cast<float *>(memory);
    const struct decode_parts parts = {floats, floats + n, floats + 2 * n};
    if (cuda_is_narrow(dev)) {
        st = cuda_decode_splits_mma(dev, args, parts);
    } else {
        launch_group(dev, args, parts);
    }
    if (st) {
        return st;
    }
    launch_combine(dev, args, parts);
    return cuda_launched("decode_attention");
}
