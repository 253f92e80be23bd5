/*
 * attention_wgmma.cu - prefill attention on Hopper's tensor cores (bfloat16, float16), with an
 * online softmax in base 2.
 *
 * A block has a tile of TILE_ROWS (row, query head) pairs of one KV head, GROUP_ROWS for each of
 * its two warp groups, and goes through their keys by tiles at multiples of KEYS (so that a row's
 * bits do not depend on its chunk).  Products run beside other work: while a warp group turns the
 * scores of one tile into weights, its tensor cores add up the values of the tile before, and
 * cp.async brings the next keys and values.  Scores, weights and values stay in registers.
 *
 * A tile in shared memory is DIM / SLAB slabs of SLAB columns (128 bytes), row below row, with
 * pieces of 16 bytes permuted by the row's number: what a wgmma descriptor calls the 128-byte
 * swizzle.
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/visible.h"

#include <gpu_wgmma.h>

static constexpr int GROUPS = 2, GROUP = 128, BLOCK = GROUPS * GROUP;
static constexpr int GROUP_ROWS = 64, TILE_ROWS = GROUPS * GROUP_ROWS;
static constexpr int KEYS = 128, STAGES = 2;
static constexpr int SLAB = 64, PIECE = 8, STEP = 16; /* STEP: of one product, along k */

template <typename T, int DIM> struct alignas(1024) attention_shared {
    T q[TILE_ROWS * DIM];
    T k[STAGES][KEYS * DIM];
    T v[STAGES][KEYS * DIM];
    struct span keys[TILE_ROWS];
};

/* What a lane has of its warp's rows g and g + 8 (g = lane / 4).  Elements of scores and values:
 * i % 4 / 2 is which row, and the column is i / 4 * 8 + lane % 4 * 2 + i % 2. */
template <int DIM> struct rows_state {
    float peak[2], sum[2]; /* sum: of this lane's keys */
    float values[DIM / 2];
    struct span keys[2];
};

/* Element of piece `piece` of a row of a tile of ROWS rows. */
template <int ROWS> static __device__ __forceinline__ int place(int row, int piece)
{
    return (piece / 8 * ROWS + row) * SLAB + (piece % 8 ^ row % 8) * PIECE;
}

template <typename T, int DIM>
static __device__ void load_queries(struct attention_shared<T, DIM> *shared,
                                    const struct attention &args, int kv_head, int first)
{
    constexpr int PIECES = DIM / PIECE;
    int group = args.q_heads / args.kv_heads;
    const T *q = static_cast<const T *>(args.q);

    for (int i = (int)threadIdx.x; i < TILE_ROWS * PIECES; i += BLOCK) {
        int number = first + i / PIECES, r = number / group;
        bool here = r < args.rows;
        size_t head = (size_t)kv_head * (size_t)group + (size_t)(number % group);
        size_t at = ((size_t)r * (size_t)args.q_heads + head) * DIM + (size_t)(i % PIECES * PIECE);

        gpu_copy16_async(&shared->q[place<TILE_ROWS>(i / PIECES, i % PIECES)], q + (here ? at : 0),
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

/* Keys or values of KEYS rows from `first`; zeros for those that are not there yet. */
template <typename T, int DIM>
static __device__ __forceinline__ void load_keys(T *tile, const void *from,
                                                 const struct attention &args, int kv_head,
                                                 int first)
{
    constexpr int PIECES = DIM / PIECE, ROWS = BLOCK / PIECES; /* in one round */
    int row = (int)threadIdx.x / PIECES, piece = (int)threadIdx.x % PIECES;
    const T *rows = static_cast<const T *>(from) + (size_t)kv_head * args.kv_stride;
    const T *at = rows + (size_t)(first + row) * DIM + (size_t)(piece * PIECE);
    T *to = tile + place<KEYS>(row, piece);

#pragma unroll
    for (int i = 0; i < KEYS / ROWS; i++) {
        bool here = first + row + i * ROWS < args.n_keys;

        gpu_copy16_async(to + i * ROWS * SLAB, here ? at + i * ROWS * DIM : rows, here);
    }
}

/* s = scores of the warp group's rows with the keys of a tile, when it was waited for. */
template <typename T, int DIM>
static __device__ __forceinline__ void start_scores(float (&s)[KEYS / 2], const T *q, const T *k)
{
#pragma unroll
    for (int c = 0; c < DIM; c += STEP) {
        gpu_wgmma<T>(s, gpu_wgmma_operand(q + c / SLAB * TILE_ROWS * SLAB + c % SLAB, 0),
                     gpu_wgmma_operand(k + c / SLAB * KEYS * SLAB + c % SLAB, 0), c > 0);
    }
    gpu_wgmma_commit();
}

/* values += p v, when it was waited for. */
template <typename T, int DIM>
static __device__ __forceinline__ void start_values(float (&values)[DIM / 2],
                                                    const unsigned (&p)[KEYS / 4], const T *v)
{
#pragma unroll
    for (int j = 0; j < KEYS; j += STEP) {
        gpu_wgmma_add<T>(values, p + j / 4,
                         gpu_wgmma_operand(v + j * SLAB, KEYS * SLAB * (int)sizeof(T)));
    }
    gpu_wgmma_commit();
}

/* Hidden keys to -infinity. */
static __device__ __forceinline__ void hide(float (&s)[KEYS / 2], const struct span keys[2],
                                            int key)
{
    int first = key + (int)threadIdx.x % 4 * 2;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (key >= keys[half].from && key + KEYS <= keys[half].to) {
            continue;
        }
#pragma unroll
        for (int i = half * 2; i < KEYS / 2; i += i % 2 ? 3 : 1) {
            int j = first + i / 4 * 8 + i % 2;
            bool seen = j >= keys[half].from && j < keys[half].to;

            s[i] = seen ? s[i] : -INFINITY;
        }
    }
}

/* Scores become weights; what was summed so far is to be multiplied by `keep`, and the sums are.
 * Where a row has no new peak, keep is exactly 1: it may not show how many tiles follow. */
template <int DIM>
static __device__ __forceinline__ void soften(float (&s)[KEYS / 2], struct rows_state<DIM> *state,
                                              float keep[2], float to_log2)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float peak = state->peak[half];

#pragma unroll
        for (int i = half * 2; i < KEYS / 2; i += 4) {
            peak = fmaxf(peak, fmaxf(s[i], s[i + 1]));
        }
        peak = fmaxf(peak, __shfl_xor_sync((unsigned)WHOLE_WARP, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync((unsigned)WHOLE_WARP, peak, 2));

        float base = peak > -INFINITY ? peak : 0.0f, scaled = base * to_log2, sum = 0.0f;
        keep[half] = gpu_exp2((state->peak[half] - base) * to_log2);
        state->peak[half] = peak;
#pragma unroll
        for (int i = half * 2; i < KEYS / 2; i += 4) {
            s[i] = gpu_exp2(fmaf(s[i], to_log2, -scaled));
            s[i + 1] = gpu_exp2(fmaf(s[i + 1], to_log2, -scaled));
            sum += s[i] + s[i + 1];
        }
        state->sum[half] = state->sum[half] * keep[half] + sum;
    }
}

/* Waits for the values of one tile, brings them to the new peaks, and makes the next weights p.
 * At the head of a loop: within a block of code, the compiler would wait before the weights are
 * computed. */
template <typename T, int DIM>
static __device__ __forceinline__ void end_values(float (&values)[DIM / 2], unsigned (&p)[KEYS / 4],
                                                  const float (&s)[KEYS / 2], const float keep[2])
{
    gpu_wgmma_wait<0>();
    gpu_wgmma_hold(p);
    gpu_wgmma_hold(values);
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
        p[i] = gpu_pack<T>(s[2 * i], s[2 * i + 1]);
    }
#pragma unroll
    for (int i = 0; i < DIM / 2; i++) {
        values[i] *= keep[i % 4 / 2];
    }
    gpu_wgmma_hold(p);
    gpu_wgmma_hold(values);
}

/* One of the lane's two rows to memory. */
template <typename T, int DIM>
static __device__ __forceinline__ void write_row(const struct attention &args,
                                                 const struct rows_state<DIM> *state, int kv_head,
                                                 int number, int half)
{
    int group = args.q_heads / args.kv_heads, r = number / group, t = (int)threadIdx.x % 4;
    size_t head = (size_t)kv_head * (size_t)group + (size_t)(number % group);
    size_t pair = (size_t)r * (size_t)args.q_heads + head, at = pair * DIM;
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
        out[n * 4 + t] = gpu_pack<T>(state->values[n * 4 + half * 2] * scale,
                                     state->values[n * 4 + half * 2 + 1] * scale);
    }
    if (args.lse && t == 0) {
        args.lse[pair] = state->peak[half] / sqrtf((float)DIM) + log2f(sum) * LN_2;
    }
}

template <typename T, int DIM>
static __device__ __forceinline__ void begin(struct rows_state<DIM> *state,
                                             const struct attention_shared<T, DIM> *shared, int row)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        state->peak[half] = -INFINITY;
        state->sum[half] = 0.0f;
        state->keys[half] = shared->keys[row + half * 8];
    }
#pragma unroll
    for (int i = 0; i < DIM / 2; i++) {
        state->values[i] = 0.0f;
    }
}

/* What this thread copied is there, for everybody's products; everybody is done with the tiles of
 * before. */
template <int left> static __device__ __forceinline__ void wait_for_tiles()
{
    gpu_copy_wait<left>();
    gpu_copy_fence();
    __syncthreads();
}

template <typename T, int DIM>
static __global__ void __launch_bounds__(BLOCK, 1) attention_wgmma_kernel(struct attention args)
{
    auto *shared = gpu_shared<struct attention_shared<T, DIM>>();
    int kv_head = (int)blockIdx.y, pairs = args.rows * (args.q_heads / args.kv_heads);
    int first = (int)(gridDim.x - 1 - blockIdx.x) * TILE_ROWS; /* the longest begin first */
    int row = (int)threadIdx.x / WARP * 16 + (int)threadIdx.x % WARP / 4;
    const T *q = shared->q + (int)threadIdx.x / GROUP * GROUP_ROWS * SLAB;
    float to_log2 = LOG2_E / sqrtf((float)DIM), keep[2], s[KEYS / 2];
    unsigned p[KEYS / 4];
    struct rows_state<DIM> state;

    load_queries(shared, args, kv_head, first);
    __syncthreads();
    begin(&state, shared, row);
    /* Rows ascend, and so do the first and the last keys that they see. */
    int to = shared->keys[min(TILE_ROWS, pairs - first) - 1].to, stage = 0;
    int key = shared->keys[0].from / KEYS * KEYS;
    load_keys<T, DIM>(shared->k[0], args.k, args, kv_head, key);
    gpu_copy_commit();
    load_keys<T, DIM>(shared->v[0], args.v, args, kv_head, key);
    if (key + KEYS < to) {
        load_keys<T, DIM>(shared->k[1], args.k, args, kv_head, key + KEYS);
    }
    gpu_copy_commit();

    wait_for_tiles<1>();
    gpu_wgmma_hold(s);
    gpu_wgmma_fence();
    start_scores<T, DIM>(s, q, shared->k[0]);
    gpu_wgmma_wait<0>();
    gpu_wgmma_hold(s);
    hide(s, state.keys, key);
    soften<DIM>(s, &state, keep, to_log2);
    for (; key + KEYS < to; key += KEYS, stage ^= 1) {
        end_values<T, DIM>(state.values, p, s, keep);
        wait_for_tiles<0>();
        gpu_wgmma_hold(s);
        gpu_wgmma_fence();
        start_scores<T, DIM>(s, q, shared->k[stage ^ 1]);
        start_values<T, DIM>(state.values, p, shared->v[stage]);
        load_keys<T, DIM>(shared->v[stage ^ 1], args.v, args, kv_head, key + KEYS);
        if (key + 2 * KEYS < to) {
            load_keys<T, DIM>(shared->k[stage], args.k, args, kv_head, key + 2 * KEYS);
        }
        gpu_copy_commit();
        gpu_wgmma_wait<1>();
        gpu_wgmma_hold(s);
        hide(s, state.keys, key + KEYS);
        soften<DIM>(s, &state, keep, to_log2);
    }
    end_values<T, DIM>(state.values, p, s, keep);
    wait_for_tiles<0>();
    gpu_wgmma_fence();
    start_values<T, DIM>(state.values, p, shared->v[stage]);
    gpu_wgmma_wait<0>();
    gpu_wgmma_hold(p);
    gpu_wgmma_hold(state.values);
    write_row<T>(args, &state, kv_head, first + row, 0);
    write_row<T>(args, &state, kv_head, first + row + 8, 1);
}

template <typename T, int DIM>
static status launch(struct device *dev, const struct attention *args)
{
    constexpr size_t shared = sizeof(struct attention_shared<T, DIM>);
    size_t pairs = (size_t)args->rows * (size_t)(args->q_heads / args->kv_heads);
    status st =
        cuda_check(cudaFuncSetAttribute((const void *)attention_wgmma_kernel<T, DIM>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                   "attention");

    if (st) {
        return st;
    }
    GPU_LAUNCH((attention_wgmma_kernel<T, DIM>),
               dim3(cuda_blocks(pairs, TILE_ROWS), (unsigned)args->kv_heads), BLOCK, shared,
               cuda_stream(dev), *args);
    return cuda_launched("attention");
}

status cuda_attention_wgmma(struct device *dev, const struct attention *args)
{
    status st = STATUS_OK;

    cuda_with_narrow(dev, [&](auto act) {
        using T = decltype(act);
        st = args->head_dim == 64 ? launch<T, 64>(dev, args) : launch<T, 128>(dev, args);
    });
    return st;
}
