/*
 * decode_attention_mma.cu - a split of a cache head on tensor cores (bfloat16, float16).
 *
 * A warp takes every WARPS-th tile of TILE_KEYS rows, which it brings to its own shared memory
 * (cp.async, STAGES at a time), so that warps wait for nobody until they merge.  The query heads
 * of the group, 8 at a time, are the rows of q k^T and the columns of v^T p^T: what the first
 * leaves in a lane is what the second wants of it.
 */
#include "kernels/cuda/decode.h"
#include "kernels/cuda/tile.h"

static constexpr int BLOCK = 128, WARPS = BLOCK / WARP;
static constexpr int TILE_KEYS = 16, HEADS = 8;

template <int DIM> constexpr int STAGES = DIM <= 64 ? 4 : DIM <= 128 ? 3 : 2;

template <typename T, int DIM> struct warp_tiles {
    T k[STAGES<DIM>][TILE_KEYS * DIM];
    T v[STAGES<DIM>][TILE_KEYS * DIM];
};
template <typename T, int DIM> struct split_shared {
    struct warp_tiles<T, DIM> warps[WARPS];
};
/* What lies in the same place once all tiles are done. */
template <int DIM> struct merge_shared {
    float peak[WARPS][HEADS], sum[WARPS][HEADS], values[WARPS][HEADS][DIM];
};

/* A lane's part: peak and sum (over its own keys) of head lane / 4; values of elements lane / 4 and
 * + 8 of every 16, of heads lane % 4 * 2 and + 1. */
template <int DIM> struct head_state {
    float peak, sum, values[DIM / 16][4];
};

template <typename T, int DIM>
static __device__ __forceinline__ void load_queries(unsigned q[DIM / 16][2],
                                                    const struct decode_rows &rows, int group,
                                                    int first)
{
    int lane = (int)threadIdx.x % WARP, h = first + lane / 4;
    const T *from = static_cast<const T *>(rows.q) +
                    ((size_t)rows.head * (size_t)group + (size_t)h) * (size_t)rows.head_dim;

#pragma unroll
    for (int c = 0; c < DIM / 16; c++) {
        for (int half = 0; half < 2; half++) {
            int at = c * 16 + half * 8 + lane % 4 * 2;
            bool here = h < group && at < rows.head_dim;

            q[c][half] = here ? *reinterpret_cast<const unsigned *>(from + at) : 0u;
        }
    }
}

/* Where row `row` lies in the pool, in rows; -1: it is not of this split. */
static __device__ __forceinline__ int slot_of(const struct decode_rows &rows, int row)
{
    return row < rows.from || row >= rows.to
               ? -1
               : rows.pages[row / rows.page_rows] * rows.page_rows + row % rows.page_rows;
}

/* Lane i % 16 knows the slot of the tile's row i. */
template <typename T, int DIM>
static __device__ __forceinline__ void load_tile(struct warp_tiles<T, DIM> *tiles, int stage,
                                                 const struct decode_rows &rows, int slots)
{
    constexpr int PIECES = DIM / 8;
    int lane = (int)threadIdx.x % WARP;

#pragma unroll 4
    for (int i = 0; i < TILE_KEYS * PIECES / WARP; i++) {
        int row = (i * WARP + lane) / PIECES, piece = (i * WARP + lane) % PIECES;
        int slot = __shfl_sync((unsigned)WHOLE_WARP, slots, row);
        bool here = slot >= 0 && piece * 8 < rows.head_dim;
        size_t at = here ? (size_t)slot * (size_t)rows.head_dim + (size_t)piece * 8 : 0;
        int place = tile_place<DIM>(row, piece);

        gpu_copy16_async(&tiles->k[stage][place], static_cast<const T *>(rows.k) + at, here);
        gpu_copy16_async(&tiles->v[stage][place], static_cast<const T *>(rows.v) + at, here);
    }
}

/* s[n]: the lane's head with keys 8 n + lane % 4 * 2 and + 1, in its first two. */
template <typename T, int DIM>
static __device__ __forceinline__ void score_tile(float s[2][4], const unsigned q[DIM / 16][2],
                                                  const T *k)
{
    for (int i = 0; i < 4; i++) {
        s[0][i] = s[1][i] = 0.0f;
    }
#pragma unroll
    for (int c = 0; c < DIM / 16; c++) {
        const unsigned a[4] = {q[c][0], 0, q[c][1], 0};
        unsigned b[4];

        tile_right<DIM>(b, k, 0, c);
        gpu_mma<T>(s[0], a, b);
        gpu_mma<T>(s[1], a, b + 2);
    }
}

/* Scores of the tile that begins at `key` become weights, packed as keys of a right operand. */
template <typename T, int DIM>
static __device__ __forceinline__ void soften(unsigned p[2], float s[2][4],
                                              struct head_state<DIM> *state,
                                              const struct decode_rows &rows, int key)
{
    int lane = (int)threadIdx.x % WARP, first = key + lane % 4 * 2;
    float peak = state->peak;

    for (int i = 0; i < 4; i++) {
        int row = first + i / 2 * 8 + i % 2;
        float *score = &s[i / 2][i % 2];

        *score = row >= rows.from && row < rows.to ? *score : -INFINITY;
        peak = fmaxf(peak, *score);
    }
    peak = fmaxf(peak, __shfl_xor_sync((unsigned)WHOLE_WARP, peak, 1));
    peak = fmaxf(peak, __shfl_xor_sync((unsigned)WHOLE_WARP, peak, 2));

    float base = peak > -INFINITY ? peak * rows.to_log2 : 0.0f;
    float keep = gpu_exp2(fmaf(state->peak, rows.to_log2, -base));
    state->peak = peak;
    state->sum *= keep;
    for (int n = 0; n < 2; n++) {
        float low = gpu_exp2(fmaf(s[n][0], rows.to_log2, -base));
        float high = gpu_exp2(fmaf(s[n][1], rows.to_log2, -base));

        state->sum += low + high;
        p[n] = gpu_pack<T>(low, high);
    }
    float even = __shfl_sync((unsigned)WHOLE_WARP, keep, lane % 4 * 8);
    float odd = __shfl_sync((unsigned)WHOLE_WARP, keep, lane % 4 * 8 + 4);
#pragma unroll
    for (int n = 0; n < DIM / 16; n++) {
        state->values[n][0] *= even;
        state->values[n][1] *= odd;
        state->values[n][2] *= even;
        state->values[n][3] *= odd;
    }
}

template <typename T, int DIM>
static __device__ __forceinline__ void add_values(struct head_state<DIM> *state,
                                                  const unsigned p[2], const T *v)
{
    int lane = (int)threadIdx.x % WARP, matrix = lane / 8;

#pragma unroll
    for (int n = 0; n < DIM / 16; n++) {
        unsigned a[4];

        gpu_ldmatrix_transposed(a,
                                &v[tile_place<DIM>(matrix / 2 * 8 + lane % 8, 2 * n + matrix % 2)]);
        gpu_mma<T>(state->values[n], a, p);
    }
}

/* All tiles of the warp, of which `first` is the first. */
template <typename T, int DIM>
static __device__ void run_tiles(struct head_state<DIM> *state, struct warp_tiles<T, DIM> *tiles,
                                 const unsigned q[DIM / 16][2], const struct decode_rows &rows,
                                 int first)
{
    constexpr int N = STAGES<DIM>, STEP = WARPS * TILE_KEYS;
    int own = (int)threadIdx.x % TILE_KEYS;

    for (int i = 0; i < N - 1; i++) {
        load_tile<T, DIM>(tiles, i, rows, slot_of(rows, first + i * STEP + own));
        gpu_copy_commit();
    }
    int slots = slot_of(rows, first + (N - 1) * STEP + own);
    for (int key = first, stage = 0; key < rows.to; key += STEP, stage = (stage + 1) % N) {
        float s[2][4];
        unsigned p[2];

        gpu_copy_wait<N - 2>();
        __syncwarp();
        load_tile<T, DIM>(tiles, (stage + N - 1) % N, rows, slots);
        gpu_copy_commit();
        slots = slot_of(rows, key + N * STEP + own);
        score_tile<T, DIM>(s, q, tiles->k[stage]);
        soften<T, DIM>(p, s, state, rows, key);
        add_values<T, DIM>(state, p, tiles->v[stage]);
    }
    gpu_copy_wait<0>();
}

template <int DIM>
static __device__ __forceinline__ void leave(struct merge_shared<DIM> *merge,
                                             const struct head_state<DIM> *state, float to_log2)
{
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    float sum = state->sum;

    sum += __shfl_xor_sync((unsigned)WHOLE_WARP, sum, 1);
    sum += __shfl_xor_sync((unsigned)WHOLE_WARP, sum, 2);
    if (lane % 4 == 0) {
        merge->peak[warp][lane / 4] = state->peak * to_log2;
        merge->sum[warp][lane / 4] = sum;
    }
#pragma unroll
    for (int n = 0; n < DIM / 16; n++) {
        for (int i = 0; i < 4; i++) {
            merge->values[warp][lane % 4 * 2 + i % 2][n * 16 + lane / 4 + i / 2 * 8] =
                state->values[n][i];
        }
    }
}

/* The warps in order. */
template <int DIM>
static __device__ void write_parts(const struct decode_parts &parts,
                                   const struct merge_shared<DIM> *merge, size_t at, int heads,
                                   int d)
{
    for (int i = (int)threadIdx.x; i < heads * d; i += BLOCK) {
        int h = i / d, c = i % d;
        float peak = -INFINITY, sum = 0.0f, value = 0.0f;

        for (int w = 0; w < WARPS; w++) {
            peak = fmaxf(peak, merge->peak[w][h]);
        }
        for (int w = 0; w < WARPS; w++) {
            float scale = exp2f(merge->peak[w][h] - peak);

            sum = fmaf(merge->sum[w][h], scale, sum);
            value = fmaf(merge->values[w][h][c], scale, value);
        }
        parts.values[(at + (size_t)h) * (size_t)d + (size_t)c] = value;
        if (c == 0) {
            parts.peak[at + (size_t)h] = peak;
            parts.sum[at + (size_t)h] = sum;
        }
    }
}

template <typename T, int DIM>
static __global__ void __launch_bounds__(BLOCK)
    split_mma_kernel(struct decode_attention args, struct kv_pool pool, struct decode_parts parts)
{
    int group = args.q_heads / args.cache_heads, warp = (int)threadIdx.x / WARP;
    int split = (int)blockIdx.x, head = (int)blockIdx.y;
    auto *shared = gpu_shared<struct split_shared<T, DIM>>();
    auto *merge = gpu_shared<struct merge_shared<DIM>>();
    struct decode_rows rows = decode_rows_of(args, pool, head, split);

    if (rows.from >= rows.to) {
        return;
    }
    for (int first = 0; first < group; first += HEADS) {
        struct head_state<DIM> state = {
            - INFINITY, 0.0f, {}
        };
        unsigned q[DIM / 16][2];
        size_t at = ((size_t)head * DECODE_SPLITS + (size_t)split) * (size_t)group + (size_t)first;

        load_queries<T, DIM>(q, rows, group, first);
        run_tiles<T, DIM>(&state, &shared->warps[warp], q, rows,
                          rows.from / TILE_KEYS * TILE_KEYS + warp * TILE_KEYS);
        __syncthreads();
        leave<DIM>(merge, &state, rows.to_log2);
        __syncthreads();
        write_parts<DIM>(parts, merge, at, min(HEADS, group - first), args.head_dim);
        __syncthreads();
    }
}

template <typename T, int DIM>
static status launch(struct device *dev, const struct decode_attention *args,
                     const struct decode_parts &parts)
{
    constexpr size_t shared = sizeof(struct split_shared<T, DIM>);
    static_assert(sizeof(struct merge_shared<DIM>) <= shared, "it takes the place of the tiles");
    status st =
        cuda_check(cudaFuncSetAttribute((const void *)split_mma_kernel<T, DIM>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                   "decode_attention");

    if (st) {
        return st;
    }
    GPU_LAUNCH((split_mma_kernel<T, DIM>),
               dim3(DECODE_SPLITS, (unsigned)(args->rows * args->cache_heads)), BLOCK, shared,
               cuda_stream(dev), *args, *args->pool, parts);
    return STATUS_OK;
}

status cuda_decode_splits_mma(struct device *dev, const struct decode_attention *args,
                              const struct decode_parts &parts)
{
    status st = STATUS_OK;

    cuda_with_narrow(dev, [&](auto act) {
        using T = decltype(act);
        st = args->head_dim <= 64    ? launch<T, 64>(dev, args, parts)
             : args->head_dim <= 128 ? launch<T, 128>(dev, args, parts)
                                     : launch<T, 256>(dev, args, parts);
    });
    return st;
}
