/*
 * attention_bf16.cu - prefill attention on tensor cores, with an online softmax in base 2.
 *
 * A block has a tile of TILE_ROWS (row, query head) pairs of one KV head, 16 for each warp, and
 * goes through their keys by tiles at multiples of KEYS (so that a row's bits do not depend on its
 * chunk); the next tile is on its way (cp.async) while one is worked on.  Scores and values stay
 * in registers: the accumulators of q k^T are the operands of p v.  In shared memory a row's
 * 16-byte pieces are permuted by its number, so that ldmatrix meets no bank twice.
 *
 * DIM is head_dim rounded up to what there is a kernel for; the rest is zeros.
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/visible.h"

static constexpr int BLOCK = 128, WARPS = BLOCK / WARP;
static constexpr int WARP_ROWS = 16, TILE_ROWS = WARPS * WARP_ROWS;
static constexpr int STAGES = 2;

template <int DIM> constexpr int TILE_KEYS = DIM > 128 ? 32 : 64;

template <int DIM> struct attention_shared {
    bf16 q[TILE_ROWS * DIM];
    bf16 k[STAGES][TILE_KEYS<DIM> * DIM];
    bf16 v[STAGES][TILE_KEYS<DIM> * DIM];
    struct span keys[TILE_ROWS];
};

/* What a lane has of its warp's rows g and g + 8 (g = lane / 4). */
template <int DIM> struct rows_state {
    float peak[2], sum[2]; /* sum: of this lane's keys */
    float values[DIM / 8][4];
    struct span keys[2];
};

/* Element of piece `piece` (8 elements) of a row of a tile. */
template <int DIM> static __device__ __forceinline__ int place(int row, int piece)
{
    return row * DIM + (piece ^ (row & 7)) * 8;
}

template <int DIM>
static __device__ void load_queries(struct attention_shared<DIM> *shared,
                                    const struct attention &args, int kv_head, int first)
{
    constexpr int PIECES = DIM / 8;
    int group = args.q_heads / args.kv_heads, d = args.head_dim;
    const bf16 *q = static_cast<const bf16 *>(args.q);

    for (int i = (int)threadIdx.x; i < TILE_ROWS * PIECES; i += BLOCK) {
        int number = first + i / PIECES, c = i % PIECES * 8, r = number / group;
        bool here = r < args.rows && c < d;
        size_t head = (size_t)kv_head * (size_t)group + (size_t)(number % group);
        size_t at = ((size_t)r * (size_t)args.q_heads + head) * (size_t)d + (size_t)c;

        gpu_copy16_async(&shared->q[place<DIM>(i / PIECES, i % PIECES)], q + (here ? at : 0), here);
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

template <int DIM>
static __device__ void load_keys(bf16 *tile, const void *from, const struct attention &args,
                                 int kv_head, int key)
{
    constexpr int PIECES = DIM / 8, KEYS = TILE_KEYS<DIM>;
    const bf16 *rows = static_cast<const bf16 *>(from) + (size_t)kv_head * args.kv_stride;

    for (int i = (int)threadIdx.x; i < KEYS * PIECES; i += BLOCK) {
        int j = key + i / PIECES, c = i % PIECES * 8;
        bool here = j < args.n_keys && c < args.head_dim;
        size_t at = (size_t)j * (size_t)args.head_dim + (size_t)c;

        gpu_copy16_async(&tile[place<DIM>(i / PIECES, i % PIECES)], rows + (here ? at : 0), here);
    }
}

/* s[n] = scores of the warp's rows with keys 8 n.. of the tile. */
template <int DIM>
static __device__ __forceinline__ void score_tile(float s[TILE_KEYS<DIM> / 8][4],
                                                  const bf16 *queries, const bf16 *k)
{
    int lane = (int)threadIdx.x % WARP, row = lane % 8, matrix = lane / 8;
    int q_row = (int)threadIdx.x / WARP * WARP_ROWS + matrix % 2 * 8 + row;

#pragma unroll
    for (int n = 0; n < TILE_KEYS<DIM> / 8; n++) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    }
#pragma unroll(DIM > 128 ? 2 : 4)
    for (int c = 0; c < DIM / 16; c++) {
        unsigned q[4];

        gpu_ldmatrix(q, &queries[place<DIM>(q_row, 2 * c + matrix / 2)]);
#pragma unroll
        for (int n = 0; n < TILE_KEYS<DIM> / 16; n++) {
            unsigned b[4];

            gpu_ldmatrix(b, &k[place<DIM>(n * 16 + matrix / 2 * 8 + row, 2 * c + matrix % 2)]);
            gpu_mma_bf16(s[2 * n], q, b);
            gpu_mma_bf16(s[2 * n + 1], q, b + 2);
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

/* Scores become weights; what was summed so far is brought to the new peaks. */
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

        float base = peak > -INFINITY ? peak * to_log2 : 0.0f;
        float keep = gpu_exp2(fmaf(state->peak[half], to_log2, -base));
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

template <int DIM>
static __device__ __forceinline__ void add_values(const float s[TILE_KEYS<DIM> / 8][4],
                                                  struct rows_state<DIM> *state, const bf16 *v)
{
    int lane = (int)threadIdx.x % WARP, row = lane % 8, matrix = lane / 8;

#pragma unroll
    for (int j = 0; j < TILE_KEYS<DIM> / 16; j++) {
        const unsigned p[4] = {
            gpu_pack_bf16(s[2 * j][0], s[2 * j][1]),
            gpu_pack_bf16(s[2 * j][2], s[2 * j][3]),
            gpu_pack_bf16(s[2 * j + 1][0], s[2 * j + 1][1]),
            gpu_pack_bf16(s[2 * j + 1][2], s[2 * j + 1][3]),
        };

#pragma unroll
        for (int n = 0; n < DIM / 16; n++) {
            unsigned b[4];
            int key = j * 16 + matrix % 2 * 8 + row;

            gpu_ldmatrix_transposed(b, &v[place<DIM>(key, 2 * n + matrix / 2)]);
            gpu_mma_bf16(state->values[2 * n], p, b);
            gpu_mma_bf16(state->values[2 * n + 1], p, b + 2);
        }
    }
}

/* One of the lane's two rows to memory. */
template <int DIM>
static __device__ __forceinline__ void write_row(const struct attention &args,
                                                 const struct rows_state<DIM> *state, int kv_head,
                                                 int number, int half)
{
    int group = args.q_heads / args.kv_heads, r = number / group, t = (int)threadIdx.x % 4;
    size_t head = (size_t)kv_head * (size_t)group + (size_t)(number % group);
    size_t at = ((size_t)r * (size_t)args.q_heads + head) * (size_t)args.head_dim;
    float sum = state->sum[half];

    sum += __shfl_xor_sync((unsigned)WHOLE_WARP, sum, 1);
    sum += __shfl_xor_sync((unsigned)WHOLE_WARP, sum, 2);
    if (r >= args.rows) {
        return;
    }
    float scale = 1.0f / sum;
    unsigned *out = reinterpret_cast<unsigned *>(static_cast<bf16 *>(args.out) + at);
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
        if (n * 8 < args.head_dim) {
            out[n * 4 + t] = gpu_pack_bf16(state->values[n][half * 2] * scale,
                                           state->values[n][half * 2 + 1] * scale);
        }
    }
    if (args.lse && t == 0) {
        args.lse[head * (size_t)args.rows + (size_t)r] =
            state->peak[half] / sqrtf((float)args.head_dim) + log2f(sum) * LN_2;
    }
}

/* From the first key to the end of the last one that any row of the tile sees. */
template <int DIM>
static __device__ struct span keys_of_tile(const struct attention_shared<DIM> *shared, int n_keys)
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

template <int DIM>
static __device__ void begin(struct rows_state<DIM> *state,
                             const struct attention_shared<DIM> *shared, int row)
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

template <int DIM>
static __global__ void __launch_bounds__(BLOCK) attention_kernel(struct attention args)
{
    constexpr int KEYS = TILE_KEYS<DIM>;
    auto *shared = gpu_shared<struct attention_shared<DIM>>();
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
    load_keys<DIM>(shared->k[0], args.k, args, kv_head, from);
    load_keys<DIM>(shared->v[0], args.v, args, kv_head, from);
    gpu_copy_commit();
    for (int key = from, stage = 0; key < keys.to; key += KEYS, stage ^= 1) {
        float s[KEYS / 8][4];

        if (key + KEYS < keys.to) {
            load_keys<DIM>(shared->k[stage ^ 1], args.k, args, kv_head, key + KEYS);
            load_keys<DIM>(shared->v[stage ^ 1], args.v, args, kv_head, key + KEYS);
        }
        gpu_copy_commit();
        gpu_copy_wait<1>();
        __syncthreads();
        score_tile<DIM>(s, shared->q, shared->k[stage]);
        hide<KEYS / 8>(s, state.keys, key);
        soften<DIM>(s, &state, to_log2);
        add_values<DIM>(s, &state, shared->v[stage]);
        __syncthreads();
    }
    gpu_copy_wait<0>();
    write_row(args, &state, kv_head, first + row, 0);
    write_row(args, &state, kv_head, first + row + 8, 1);
}

template <int DIM> static status launch(struct device *dev, const struct attention *args)
{
    constexpr size_t shared = sizeof(struct attention_shared<DIM>);
    size_t pairs = (size_t)args->rows * (size_t)(args->q_heads / args->kv_heads);
    status st =
        cuda_check(cudaFuncSetAttribute((const void *)attention_kernel<DIM>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                   "attention");

    if (st) {
        return st;
    }
    GPU_LAUNCH(attention_kernel<DIM>, dim3(cuda_blocks(pairs, TILE_ROWS), (unsigned)args->kv_heads),
               BLOCK, shared, cuda_stream(dev), *args);
    return cuda_launched("attention");
}

status cuda_attention_bf16(struct device *dev, const struct attention *args)
{
    if (args->head_dim <= 64) {
        return launch<64>(dev, args);
    }
    return args->head_dim <= 128 ? launch<128>(dev, args) : launch<256>(dev, args);
}
