/*
 * attention_f32.cu - prefill attention in float32 with FMA: for exact comparison, not for speed.
 *
 * A block has a tile of TILE_ROWS (row, query head) pairs of one KV head and goes through their
 * keys by tiles at multiples of TILE_KEYS, so that a row's bits do not depend on its chunk.  Eight
 * threads have a row: its running softmax, and every eighth element of its values.
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/visible.h"

static constexpr int BLOCK = 128, TILE_ROWS = 16, TILE_KEYS = 32, ROW_THREADS = 8;
static constexpr int MAX_EACH = OP_MAX_HEAD_DIM / ROW_THREADS;

/* Shared memory: this, then q (TILE_ROWS, d) and a tile of keys or values (TILE_KEYS, d + 1). */
struct attention_shared {
    float s[TILE_ROWS][TILE_KEYS + 1];
    struct span keys[TILE_ROWS];
};

/* What one thread knows of its row. */
struct row_state {
    float peak, sum; /* of this thread's keys of the row */
    float values[MAX_EACH];
};

static __device__ float *queries_of(struct attention_shared *shared)
{
    return reinterpret_cast<float *>(shared + 1);
}

/* Row and query head of pair `number` of a KV head. */
static __device__ size_t query_at(const struct attention &args, int kv_head, int number)
{
    int group = args.q_heads / args.kv_heads;
    size_t head = (size_t)kv_head * (size_t)group + (size_t)(number % group);

    return ((size_t)(number / group) * (size_t)args.q_heads + head) * (size_t)args.head_dim;
}

static __device__ void load_queries(struct attention_shared *shared, const struct attention &args,
                                    int kv_head, int first)
{
    int group = args.q_heads / args.kv_heads, d = args.head_dim;
    float *q = queries_of(shared);

    for (int i = (int)threadIdx.x; i < TILE_ROWS * d; i += BLOCK) {
        int number = first + i / d;
        bool here = number < args.rows * group;

        q[i] = here ? static_cast<const float *>(
                          args.q)[query_at(args, kv_head, number) + (size_t)(i % d)]
                    : 0.0f;
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

static __device__ void load_tile(float *tile, const void *from, const struct attention &args,
                                 int kv_head, int key)
{
    int d = args.head_dim;
    const float *rows = static_cast<const float *>(from) + (size_t)kv_head * args.kv_stride +
                        (size_t)key * (size_t)d;

    for (int i = (int)threadIdx.x; i < TILE_KEYS * d; i += BLOCK) {
        tile[i / d * (d + 1) + i % d] = key + i / d < args.n_keys ? rows[i] : 0.0f;
    }
}

static __device__ void score_tile(struct attention_shared *shared, const float *tile, int d,
                                  int key, float to_log2)
{
    const float *q = queries_of(shared);

    for (int i = (int)threadIdx.x; i < TILE_ROWS * TILE_KEYS; i += BLOCK) {
        int r = i / TILE_KEYS, j = i % TILE_KEYS;
        bool seen = key + j >= shared->keys[r].from && key + j < shared->keys[r].to;
        float sum = 0.0f;

        for (int c = 0; seen && c < d; c++) {
            sum = fmaf(q[r * d + c], tile[j * (d + 1) + c], sum);
        }
        shared->s[r][j] = seen ? sum * to_log2 : -INFINITY;
    }
}

/* Scores of the row become weights; what was summed so far is brought to the new peak. */
static __device__ void soften(struct attention_shared *shared, struct row_state *state)
{
    int r = (int)threadIdx.x / ROW_THREADS, part = (int)threadIdx.x % ROW_THREADS;
    float peak = state->peak;

    for (int j = part; j < TILE_KEYS; j += ROW_THREADS) {
        peak = fmaxf(peak, shared->s[r][j]);
    }
    for (int by = ROW_THREADS / 2; by > 0; by /= 2) {
        peak = fmaxf(peak, __shfl_xor_sync((unsigned)WHOLE_WARP, peak, by));
    }
    float keep = peak > state->peak ? exp2f(state->peak - peak) : 1.0f;
    state->peak = peak;
    state->sum *= keep;
#pragma unroll
    for (int i = 0; i < MAX_EACH; i++) {
        state->values[i] *= keep;
    }
    for (int j = part; j < TILE_KEYS; j += ROW_THREADS) {
        float weight = shared->s[r][j] > -INFINITY ? exp2f(shared->s[r][j] - peak) : 0.0f;

        shared->s[r][j] = weight;
        state->sum += weight;
    }
}

static __device__ void add_values(const struct attention_shared *shared, const float *tile,
                                  struct row_state *state, int d)
{
    int r = (int)threadIdx.x / ROW_THREADS, part = (int)threadIdx.x % ROW_THREADS;

#pragma unroll
    for (int i = 0; i < MAX_EACH;
         i++) { /* values in registers: no index that is found at run time */
        float sum = state->values[i];

#pragma unroll 1
        for (int j = 0; i * ROW_THREADS < d && j < TILE_KEYS; j++) {
            sum = fmaf(shared->s[r][j], tile[j * (d + 1) + i * ROW_THREADS + part], sum);
        }
        state->values[i] = sum;
    }
}

static __device__ void write_row(const struct attention &args, struct row_state *state, int kv_head,
                                 int first)
{
    int group = args.q_heads / args.kv_heads, part = (int)threadIdx.x % ROW_THREADS;
    int number = first + (int)threadIdx.x / ROW_THREADS;
    float sum = state->sum;

    for (int by = ROW_THREADS / 2; by > 0; by /= 2) {
        sum += __shfl_xor_sync((unsigned)WHOLE_WARP, sum, by);
    }
    if (number >= args.rows * group) {
        return;
    }
    float *out = static_cast<float *>(args.out) + query_at(args, kv_head, number);
#pragma unroll
    for (int i = 0; i < MAX_EACH; i++) {
        if (i * ROW_THREADS < args.head_dim) {
            out[i * ROW_THREADS + part] = state->values[i] / sum;
        }
    }
    if (args.lse && part == 0) {
        size_t head = (size_t)kv_head * (size_t)group + (size_t)(number % group);
        args.lse[(size_t)(number / group) * (size_t)args.q_heads + head] =
            (state->peak + log2f(sum)) * LN_2;
    }
}

static __global__ void __launch_bounds__(BLOCK) attention_kernel(struct attention args)
{
    auto *shared = gpu_shared<struct attention_shared>();
    int d = args.head_dim, kv_head = (int)blockIdx.y, first = (int)blockIdx.x * TILE_ROWS;
    float *tile = queries_of(shared) + TILE_ROWS * d;
    float to_log2 = LOG2_E / sqrtf((float)d);
    struct row_state state = {-INFINITY, 0.0f, {}};
    int from = args.n_keys, to = 0;

    load_queries(shared, args, kv_head, first);
    __syncthreads();
    for (int r = 0; r < TILE_ROWS; r++) {
        if (shared->keys[r].to > 0) {
            from = min(from, shared->keys[r].from);
            to = max(to, shared->keys[r].to);
        }
    }
    for (int key = from / TILE_KEYS * TILE_KEYS; key < to; key += TILE_KEYS) {
        load_tile(tile, args.k, args, kv_head, key);
        __syncthreads();
        score_tile(shared, tile, d, key, to_log2);
        __syncthreads();
        soften(shared, &state);
        load_tile(tile, args.v, args, kv_head, key);
        __syncthreads();
        add_values(shared, tile, &state, d);
        __syncthreads();
    }
    write_row(args, &state, kv_head, first);
}

status cuda_attention_f32(struct device *dev, const struct attention *args)
{
    size_t d = (size_t)args->head_dim, pairs = (size_t)args->rows * (size_t)args->q_heads;
    size_t shared =
        sizeof(struct attention_shared) + (TILE_ROWS * d + TILE_KEYS * (d + 1)) * sizeof(float);
    unsigned tiles = cuda_blocks(pairs / (size_t)args->kv_heads, TILE_ROWS);
    static const size_t most =
        sizeof(struct attention_shared) +
        (TILE_ROWS * OP_MAX_HEAD_DIM + TILE_KEYS * (OP_MAX_HEAD_DIM + 1)) * sizeof(float);
    status st =
        cuda_check(cudaFuncSetAttribute((const void *)attention_kernel,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, (int)most),
                   "attention");

    if (st) {
        return st;
    }
    GPU_LAUNCH(attention_kernel, dim3(tiles, (unsigned)args->kv_heads), BLOCK, shared,
               cuda_stream(dev), *args);
    return cuda_launched("attention");
}
