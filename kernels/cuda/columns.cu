/*
 * columns.cu - see columns.h; float32, with FMA, and what both precisions share.
 *
 * A block scores TILE_ROWS rows of one query head against TILE_KEYS keys, by slabs of head_dim in
 * shared memory; a thread has one key and half of the rows.  For sums a block has its keys and
 * goes through all rows in order; for normalisers it has its rows and goes through a run of keys,
 * and a second kernel adds the runs in order.
 */
#include "kernels/cuda/columns.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 128, TILE_KEYS = 64, TILE_ROWS = 32, SLAB = 64;
static constexpr int HALVES = BLOCK / TILE_KEYS, MINE = TILE_ROWS / HALVES;

struct columns_shared {
    float q[TILE_ROWS][SLAB];
    float k[TILE_KEYS][SLAB + 1];
    struct span keys[TILE_ROWS];
    float sum[2][TILE_KEYS];
    float peaks[TILE_ROWS][TILE_KEYS + 1];
    float sums[TILE_ROWS][TILE_KEYS + 1];
};

static __device__ void load_slab(struct columns_shared *shared, const struct columns &args,
                                 int head, int row, int key, int c)
{
    int width = min(SLAB, args.head_dim - c);
    size_t d = (size_t)args.head_dim;
    size_t kv_head = (size_t)(head / (args.q_heads / args.kv_heads));
    const float *q = static_cast<const float *>(args.q) + (size_t)head * d + (size_t)c;
    const float *k = static_cast<const float *>(args.k) + kv_head * args.kv_stride + (size_t)c;

    for (int i = (int)threadIdx.x; i < TILE_ROWS * width; i += BLOCK) {
        int r = row + i / width;
        shared->q[i / width][i % width] =
            r < args.rows ? q[(size_t)r * (size_t)args.q_heads * d + (size_t)(i % width)] : 0.0f;
    }
    for (int i = (int)threadIdx.x; i < TILE_KEYS * width; i += BLOCK) {
        int j = key + i / width;
        shared->k[i / width][i % width] =
            j < args.n_keys ? k[(size_t)j * d + (size_t)(i % width)] : 0.0f;
    }
}

/* s[t] = q . k of this thread's key with row t of its half, scaled for powers of two. */
static __device__ void score(float s[MINE], struct columns_shared *shared,
                             const struct columns &args, int head, int row, int key)
{
    int half = (int)threadIdx.x / TILE_KEYS, mine = (int)threadIdx.x % TILE_KEYS;
    float to_log2 = LOG2_E / sqrtf((float)args.head_dim);

    for (int t = 0; t < MINE; t++) {
        s[t] = 0.0f;
    }
    for (int c = 0; c < args.head_dim; c += SLAB) {
        int width = min(SLAB, args.head_dim - c);

        __syncthreads();
        load_slab(shared, args, head, row, key, c);
        if (c == 0 && threadIdx.x < TILE_ROWS) {
            shared->keys[threadIdx.x] = columns_keys_of(args, row + (int)threadIdx.x);
        }
        __syncthreads();
        for (int i = 0; i < width; i++) {
            float k = shared->k[mine][i];

#pragma unroll
            for (int t = 0; t < MINE; t++) {
                s[t] = fmaf(shared->q[half * MINE + t][i], k, s[t]);
            }
        }
    }
    for (int t = 0; t < MINE; t++) {
        s[t] *= to_log2;
    }
}

/* What the rows of the tile give this thread's key. */
static __device__ void add_tile(float *all, float *local, const float s[MINE],
                                const struct columns_shared *shared, const struct columns &args,
                                int head, int row, int key)
{
    int half = (int)threadIdx.x / TILE_KEYS, j = key + (int)threadIdx.x % TILE_KEYS;

    for (int t = 0; t < MINE; t++) {
        int r = row + half * MINE + t;
        struct span keys = shared->keys[half * MINE + t];

        if (j < keys.from || j >= keys.to) {
            continue;
        }
        float lse = args.lse[(size_t)r * (size_t)args.q_heads + (size_t)head] * LOG2_E;
        float p = exp2f(s[t] - lse) * (args.weights ? args.weights[r] : 1.0f);
        *all += p;
        *local += args.first_row + r - j < args.n_local ? p : 0.0f;
    }
}

static __device__ void write_sum(float *out, struct columns_shared *shared, float sum,
                                 const struct columns &args, int head, int key)
{
    int half = (int)threadIdx.x / TILE_KEYS, j = key + (int)threadIdx.x % TILE_KEYS;

    __syncthreads();
    shared->sum[half][threadIdx.x % TILE_KEYS] = sum;
    __syncthreads();
    if (half == 0 && j < args.n_out) {
        float *to = out + (size_t)head * args.stride + (size_t)j;
        float total = sum + shared->sum[1][threadIdx.x];

        *to = j < args.fresh ? *to + total : total;
    }
}

static __global__ void __launch_bounds__(BLOCK) sums_kernel(struct columns args)
{
    auto *shared = gpu_shared<struct columns_shared>();
    int head = (int)blockIdx.y, key = (int)blockIdx.x * TILE_KEYS;
    float all = 0.0f, local = 0.0f, s[MINE];
    /* rows before the block's first key do not see it */
    int first = max(key - args.first_row, 0) / TILE_ROWS * TILE_ROWS;

    for (int row = args.open_rows > args.first_row ? 0 : first; row < args.rows; row += TILE_ROWS) {
        score(s, shared, args, head, row, key);
        add_tile(&all, &local, s, shared, args, head, row, key);
    }
    write_sum(args.out, shared, all, args, head, key);
    if (args.local) {
        write_sum(args.local, shared, local, args, head, key);
    }
}

/* One thread's part of a row's softmax. */
struct part {
    float peak, sum;
};

static __device__ __forceinline__ void join(struct part *to, float peak, float sum)
{
    float most = fmaxf(to->peak, peak);

    if (sum > 0.0f) {
        float keep = to->sum > 0.0f ? to->sum * exp2f(to->peak - most) : 0.0f;
        *to = {most, keep + sum * exp2f(peak - most)};
    }
}

/* A row of the tile is added up by one thread, key by key. */
static __device__ void write_parts(struct columns_shared *shared, const struct part parts[MINE],
                                   float *out, const struct columns &args, int head, int row)
{
    int half = (int)threadIdx.x / TILE_KEYS, r = row + (int)threadIdx.x;
    size_t n = (size_t)args.q_heads * (size_t)args.rows;
    struct part total = {-INFINITY, 0.0f};

    for (int t = 0; t < MINE; t++) {
        shared->peaks[half * MINE + t][threadIdx.x % TILE_KEYS] = parts[t].peak;
        shared->sums[half * MINE + t][threadIdx.x % TILE_KEYS] = parts[t].sum;
    }
    __syncthreads();
    if (threadIdx.x >= TILE_ROWS || r >= args.rows) {
        return;
    }
    for (int j = 0; j < TILE_KEYS; j++) {
        join(&total, shared->peaks[threadIdx.x][j], shared->sums[threadIdx.x][j]);
    }
    size_t at = (size_t)blockIdx.x * 2 * n + (size_t)r * (size_t)args.q_heads + (size_t)head;
    out[at] = total.peak;
    out[at + n] = total.sum;
}

/* out (runs, 2, rows, q_heads): peak and sum of every row over one run of keys. */
static __global__ void __launch_bounds__(BLOCK, 4) parts_kernel(struct columns args, float *out)
{
    auto *shared = gpu_shared<struct columns_shared>();
    int head = (int)blockIdx.y, row = (int)blockIdx.z * TILE_ROWS;
    int begin = (int)blockIdx.x * COLUMNS_RUN_KEYS,
        end = min(begin + COLUMNS_RUN_KEYS, args.n_keys);
    int half = (int)threadIdx.x / TILE_KEYS;
    struct part parts[MINE];
    float s[MINE];

    for (int t = 0; t < MINE; t++) {
        parts[t] = {-INFINITY, 0.0f};
    }
    for (int key = begin; key < end; key += TILE_KEYS) {
        int j = key + (int)threadIdx.x % TILE_KEYS;

        score(s, shared, args, head, row, key);
#pragma unroll
        for (int t = 0; t < MINE; t++) {
            struct span keys = shared->keys[half * MINE + t];

            if (j >= keys.from && j < keys.to) {
                join(&parts[t], s[t], 1.0f);
            }
        }
    }
    write_parts(shared, parts, out, args, head, row);
}

/* A thread for each (row, head). */
static __global__ void lse_kernel(float *lse, const float *parts, size_t n, int runs)
{
    size_t i = gpu_thread();
    struct part total = {-INFINITY, 0.0f};

    if (i >= n) {
        return;
    }
    for (int run = 0; run < runs; run++) {
        const float *part = parts + (size_t)run * 2 * n;
        join(&total, part[i], part[n + i]);
    }
    lse[i] = (total.peak + log2f(total.sum)) * LN_2;
}

unsigned columns_runs(const struct columns *args)
{
    return cuda_blocks((size_t)args->n_keys, COLUMNS_RUN_KEYS);
}

size_t columns_workspace(int q_heads, int rows, int n_keys)
{
    size_t runs = cuda_blocks((size_t)n_keys, COLUMNS_RUN_KEYS);

    return (1 + 2 * runs) * (size_t)q_heads * (size_t)rows * sizeof(float);
}

/* args->lse = the normalisers, in the workspace. */
static status find_lse(struct device *dev, struct columns *args)
{
    size_t n = (size_t)args->q_heads * (size_t)args->rows;
    dim3 grid(columns_runs(args), (unsigned)args->q_heads,
              cuda_blocks((size_t)args->rows, TILE_ROWS));
    void *memory;
    status st =
        cuda_workspace(dev, &memory, columns_workspace(args->q_heads, args->rows, args->n_keys));

    if (st) {
        return st;
    }
    float *lse = static_cast<float *>(memory), *parts = lse + n;
    if (cuda_is_narrow(dev)) {
        st = columns_mma_parts(dev, args, parts);
        if (st) {
            return st;
        }
    } else {
        GPU_LAUNCH(parts_kernel, grid, BLOCK, sizeof(struct columns_shared), cuda_stream(dev),
                   *args, parts);
    }
    GPU_LAUNCH(lse_kernel, cuda_blocks(n, BLOCK), BLOCK, 0, cuda_stream(dev), lse,
               (const float *)parts, n, (int)columns_runs(args));
    args->lse = lse;
    return cuda_launched("normalisers");
}

static status sum(struct device *dev, const struct columns *args)
{
    dim3 grid(cuda_blocks((size_t)args->n_out, TILE_KEYS), (unsigned)args->q_heads);

    if (cuda_is_narrow(dev)) {
        status st = columns_mma_sums(dev, args);
        if (st) {
            return st;
        }
    } else {
        GPU_LAUNCH(sums_kernel, grid, BLOCK, sizeof(struct columns_shared), cuda_stream(dev),
                   *args);
    }
    return cuda_launched("column sums");
}

status columns_sum(struct device *dev, const struct columns *args)
{
    struct columns known = *args;
    status st = STATUS_OK;

    if (args->n_out == 0) {
        return STATUS_OK;
    }
    if (!args->lse && args->rows > 0) {
        st = find_lse(dev, &known);
    }
    return st ? st : sum(dev, &known);
}
