/*
 * attention_mma.cu - prefill attention on tensor cores (bfloat16, float16), with an online softmax
 * in base 2.
 *
 * A block has a tile of TILE_ROWS (row, query head) pairs of one KV head, 16 for each warp, and
 * goes through their keys by tiles at multiples of KEYS (so that a row's bits do not depend on its
 * chunk); the next tile is on its way (cp.async) while one is worked on.  Scores and values stay
 * in registers: the accumulators of q k^T are the operands of p v.
 *
 * DIM is head_dim rounded up to what there is a kernel for; the rest is zeros.
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/tile.h"
#include "kernels/cuda/visible.h"

static constexpr int BLOCK = 128, WARPS = BLOCK / WARP;
static constexpr int WARP_ROWS = 16, TILE_ROWS = WARPS * WARP_ROWS;
static constexpr int STAGES = 2;

template <int DIM> constexpr int TILE_KEYS = DIM > 128 ? 32 : 64;

template <typename T, int DIM> struct attention_shared {
    T q[TILE_ROWS * DIM];
    T k[STAGES][TILE_KEYS<DIM> * DIM];
    T v[STAGES][TILE_KEYS<DIM> * DIM];
    struct span keys[TILE_ROWS];
};

/* What a lane has of its warp's rows g and g + 8 (g = lane / 4). */
template <int DIM> struct rows_state {
    float peak[2], sum[2]; /* sum: of this lane's keys */
    float values[DIM / 8][4];
    struct span keys[2];
};

template <typename T, int DIM>
static __device__ void load_queries(struct attention_shared<T, DIM> *shared,
                                    const struct attention &args, int kv_head, int first)
{
    constexpr int PIECES = DIM / 8;
    int group = args.q_heads / args.kv_heads, d = args.head_dim;
    const T *q = static_cast<const T *>(args.q);

    for (int i = (int)threadIdx.x; i < TILE_ROWS * PIECES; i += BLOCK) {
        int number = first + i / PIECES, c = i % PIECES * 8, r = number / group;
        bool here = r < args.rows && c < d;
        size_t head = (size_t)kv_head * (size_t)group + (size_t)(number % group);
        size_t at = ((size_t)r * (size_t)args.q_heads + head) * (size_t)d + (size_t)c;

        gpu_copy16_async(&shared->q[tile_place<DIM>(i / PIECES, i % PIECES)], q + (here ? at : 0),
                         here);
    }
    if (threadIdx.x < TILE_ROWS) {
        int r = (first + (int)threadIdx.x) / group;

        shared->keys[threadIdx.x] =
            r < args.rows
                ? visible_keys(args.positions, args.q_index ? args.q_index[r] : args.first_row + r,
                               args.sliding_window)
                : span{0, 0};
    }
}

template <typename T, int DIM>
static __device__ void load_keys(T *tile, const void *from, const struct attention &args,
                                 int kv_head, int key)
{
    const T *rows = static_cast<const T *>(from) + (size_t)kv_head * args.kv_stride;

    tile_load<DIM, TILE_KEYS<DIM>, BLOCK>(tile, rows, (size_t)args.head_dim, key, args.n_keys,
                                          args.head_dim);
}

/* s[n] = scores of the warp's rows with keys 8 n.. of the tile. */
template <typename T, int DIM>
static __device__ __forceinline__ void score_tile(float s[TILE_KEYS<DIM> / 8][4], const T *queries,
                                                  const T *k)
{
    int q_row = (int)threadIdx.x / WARP * WARP_ROWS;

#pragma unroll
    for (int n = 0; n < TILE_KEYS<DIM> / 8; n++) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    }
#pragma unroll(DIM > 128 ? 2 : 4)
    for (int c = 0; c < DIM / 16; c++) {
        unsigned q[4];

        tile_left<DIM>(q, queries, q_row, c);
#pragma unroll
        for (int n = 0; n < TILE_KEYS<DIM> / 16; n++) {
            unsigned b[4];

            tile_right<DIM>(b, k, n * 16, c);
            gpu_mma<T>(s[2 * n], q, b);
            gpu_mma<T>(s[2 * n + 1], q, b + 2);
        }
    }
}

/* Hidden keys to -infinity; i / 2 is which of the lane's two rows. */
template <int N>
static __device__ __forceinline__ void hide(float s[N][4], const struct span keys[2], int key)
{
    int first = key + (int)threadIdx.x % 4 * 2;

    for (int half = 0; half < 2; half++) {
        if (key >= keys[half].from && key + N * 8 <= keys[half].to) {
            continue;
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            for (int i = 0; i < 2; i++) {
                int j = first + n * 8 + i;
                bool seen = j >= keys[half].from && j < keys[half].to;

                s[n][half * 2 + i] = seen ? s[n][half * 2 + i] : -INFINITY;
            }
        }
    }
}

/* Scores become weights; what was summed so far is brought to the new peaks.  Without a new one,
 * keep is exactly 1: how many hidden tiles follow may not show. */
template <int DIM>
static __device__ __forceinline__ void soften(float s[TILE_KEYS<DIM> / 8][4],
                                              struct rows_state<DIM> *state, float to_log2)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float peak = state->peak[half];

#pragma unroll
        for (int n = 0; n < TILE_KEYS<DIM> / 8; n++) {
            peak = fmaxf(peak, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
        }
        peak = fmaxf(peak, __shfl_xor_sync((unsigned)WHOLE_WARP, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync((unsigned)WHOLE_WARP, peak, 2));

        float seen = peak > -INFINITY ? peak : 0.0f, base = seen * to_log2;
        float keep = gpu_exp2((state->peak[half] - seen) * to_log2);
        state->peak[half] = peak;
        state->sum[half] *= keep;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            state->values[n][half * 2] *= keep;
            state->values[n][half * 2 + 1] *= keep;
        }
#pragma unroll
        for (int n = 0; n < TILE_KEYS<DIM> / 8; n++) {
            for (int i = half * 2; i < half * 2 + 2; i++) {
                s[n][i] = gpu_exp2(fmaf(s[n][i], to_log2, -base));
                state->sum[half] += s[n][i];
            }
        }
    }
}

template <typename T, int DIM>
static __device__ __forceinline__ void add_values(const float s[TILE_KEYS<DIM> / 8][4],
                                                  struct rows_state<DIM> *state, const T *v)
{
    int lane = (int)threadIdx.x % WARP, row = lane % 8, matrix = lane / 8;

#pragma unroll
    for (int j = 0; j < TILE_KEYS<DIM> / 16; j++) {
        const unsigned p[4] = {
            gpu_pack<T>(s[2 * j][0], s[2 * j][1]),
            gpu_pack<T>(s[2 * j][2], s[2 * j][3]),
            gpu_pack<T>(s[2 * j + 1][0], s[2 * j + 1][1]),
            gpu_pack<T>(s[2 * j + 1][2], s[2 * j + 1][3]),
        };

#pragma unroll
        for (int n = 0; n < DIM / 16; n++) {
            unsigned b[4];
            int key = j * 16 + matrix % 2 * 8 + row;

            gpu_ldmatrix_transposed(b, &v[tile_place<DIM>(key, 2 * n + matrix / 2)]);
            gpu_mma<T>(state->values[2 * n], p, b);
            gpu_mma<T>(state->values[2 * n + 1], p, b + 2);
        }
    }
}

/* One of the lane's two rows to memory. */
template <typename T, int DIM>
static __device__ __forceinline__ void write_row(const struct attention &args,
                                                 const struct rows_state<DIM> *state, int kv_head,
                                                 int number, int half)
{
    int group = args.q_heads / args.kv_heads, r = number / group, t = (int)threadIdx.x % 4;
    size_t head = (size_t)kv_head * (size_t)group + (size_t)(number % group);
    size_t pair = (size_t)r * (size_t)args.q_heads + head, at = pair * (size_t)args.head_dim;
    float sum = state->sum[half];

    sum += __shfl_xor_sync((unsigned)WHOLE_WARP, sum, 1);
    sum += __shfl_xor_sync((unsigned)WHOLE_WARP, sum, 2);
    if (r >= args.rows) {
        return;
    }
    float scale = 1.0f / sum;
    unsigned *out = reinterpret_cast<unsigned *>(static_cast<T *>(args.out) + at);
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
        if (n * 8 < args.head_dim) {
            out[n * 4 + t] = gpu_pack<T>(state->values[n][half * 2] * scale,
                                         state->values[n][half * 2 + 1] * scale);
        }
    }
    if (args.lse && t == 0) {
        args.lse[pair] = state->peak[half] / sqrtf((float)args.head_dim) + log2f(sum) * LN_2;
    }
}

/* From the first key to the end of the last one that any row of the tile sees. */
template <typename T, int DIM>
static __device__ struct span keys_of_tile(const struct attention_shared<T, DIM> *shared,
                                           int n_keys)
{
    struct span all = {n_keys, 0};

    for (int r = 0; r < TILE_ROWS; r++) {
        if (shared->keys[r].to > 0) {
            all.from = min(all.from, shared->keys[r].from);
            all.to = max(all.to, shared->keys[r].to);
        }
    }
    return all;
}

template <typename T, int DIM>
static __device__ void begin(struct rows_state<DIM> *state,
                             const struct attention_shared<T, DIM> *shared, int row)
{
    for (int half = 0; half < 2; half++) {
        state->peak[half] = -INFINITY;
        state->sum[half] = 0.0f;
        state->keys[half] = shared->keys[row + half * 8];
    }
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
        for (int i = 0; i < 4; i++) {
            state->values[n][i] = 0.0f;
        }
    }
}

template <typename T, int DIM>
static __global__ void __launch_bounds__(BLOCK) attention_kernel(struct attention args)
{
    constexpr int KEYS = TILE_KEYS<DIM>;
    auto *shared = gpu_shared<struct attention_shared<T, DIM>>();
    int kv_head = (int)blockIdx.y;
    int first = (int)(gridDim.x - 1 - blockIdx.x) * TILE_ROWS; /* the longest begin first */
    int row = (int)threadIdx.x / WARP * WARP_ROWS + (int)threadIdx.x % WARP / 4;
    float to_log2 = LOG2_E / sqrtf((float)args.head_dim);
    struct rows_state<DIM> state;

    load_queries(shared, args, kv_head, first);
    __syncthreads();
    begin(&state, shared, row);
    struct span keys = keys_of_tile(shared, args.n_keys);
    int from = keys.from / KEYS * KEYS;
    load_keys<T, DIM>(shared->k[0], args.k, args, kv_head, from);
    load_keys<T, DIM>(shared->v[0], args.v, args, kv_head, from);
    gpu_copy_commit();
    for (int key = from, stage = 0; key < keys.to; key += KEYS, stage ^= 1) {
        float s[KEYS / 8][4];

        if (key + KEYS < keys.to) {
            load_keys<T, DIM>(shared->k[stage ^ 1], args.k, args, kv_head, key + KEYS);
            load_keys<T, DIM>(shared->v[stage ^ 1], args.v, args, kv_head, key + KEYS);
        }
        gpu_copy_commit();
        gpu_copy_wait<1>();
        __syncthreads();
        score_tile<T, DIM>(s, shared->q, shared->k[stage]);
        hide<KEYS / 8>(s, state.keys, key);
        soften<DIM>(s, &state, to_log2);
        add_values<T, DIM>(s, &state, shared->v[stage]);
        __syncthreads();
    }
    gpu_copy_wait<0>();
    write_row<T>(args, &state, kv_head, first + row, 0);
    write_row<T>(args, &state, kv_head, first + row + 8, 1);
}

template <typename T, int DIM>
static status launch(struct device *dev, const struct attention *args)
{
    constexpr size_t shared = sizeof(struct attention_shared<T, DIM>);
    size_t pairs = (size_t)args->rows * (size_t)(args->q_heads / args->kv_heads);
    status st =
        cuda_check(cudaFuncSetAttribute((const void *)attention_kernel<T, DIM>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                   "attention");

    if (st) {
        return st;
    }
    GPU_LAUNCH((attention_kernel<T, DIM>),
               dim3(cuda_blocks(pairs, TILE_ROWS), (unsigned)args->kv_heads), BLOCK, shared,
               cuda_stream(dev), *args);
    return cuda_launched("attention");
}

status cuda_attention_mma(struct device *dev, const struct attention *args)
{
    status st = STATUS_OK;

    cuda_with_narrow(dev, [&](auto act) {
        using T = decltype(act);
        st = args->head_dim <= 64    ? launch<T, 64>(dev, args)
             : args->head_dim <= 128 ? launch<T, 128>(dev, args)
                                     : launch<T, 256>(dev, args);
    });
    return st;
}
