/*
 * columns_mma.cu - see columns.h; bfloat16 and float16, on tensor cores.
 *
 * Sums: a block has KEYS keys of one KV head as the left operand, in registers, and goes through
 * all rows of each query head of the group; a lane adds up what its rows give its two keys, and the
 * four lanes of a key are added in order.
 * Normalisers: a block has PAIRS (row, query head) pairs of one KV head as the left operand and
 * goes through a run of keys; a lane has the running softmax of its keys, and the four lanes of a
 * pair are joined.
 * The next tile is on its way (cp.async) while one is worked on.
 */
#include "kernels/cuda/columns.h"
#include "kernels/cuda/tile.h"

static constexpr int BLOCK = 128, WARPS = BLOCK / WARP, WARP_ROWS = 16;
static constexpr int KEYS = WARPS * WARP_ROWS, PAIRS = WARPS * WARP_ROWS;
static constexpr int ROWS = 32; /* of a tile that the sums go through */
static constexpr int STAGES = 2;

/* Of a tile that the normalisers go through. */
template <int DIM> constexpr int RUN_TILE = DIM > 128 ? 32 : 64;

/* A row as its probabilities need it. */
struct seen_by {
    struct span keys;
    float lse; /* in units of log2 */
    float weight;
    int number; /* in the sequence */
};

template <typename T, int DIM> struct sums_shared {
    T k[KEYS * DIM];
    T q[STAGES][ROWS * DIM];
    struct seen_by rows[STAGES][ROWS];
};

template <typename T, int DIM> struct parts_shared {
    T q[PAIRS * DIM];
    T k[STAGES][RUN_TILE<DIM> * DIM];
    struct span keys[PAIRS];
};

/* The left operand of a warp: its 16 rows of a tile. */
template <int DIM> struct left {
    unsigned a[DIM / 16][4];
};

template <int DIM, typename T>
static __device__ __forceinline__ void load_left(struct left<DIM> *left, const T *tile)
{
    int row = (int)threadIdx.x / WARP * WARP_ROWS;

#pragma unroll
    for (int c = 0; c < DIM / 16; c++) {
        tile_left<DIM>(left->a[c], tile, row, c);
    }
}

/* s[n] = the warp's rows times rows 8 n.. of the tile, of which `n_rows` matter. */
template <int DIM, int N, typename T>
static __device__ __forceinline__ void score(float s[N / 8][4], const struct left<DIM> *left,
                                             const T *tile, int n_rows)
{
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        if (n * 16 < n_rows) {
#pragma unroll
            for (int c = 0; c < DIM / 16; c++) {
                unsigned b[4];

                tile_right<DIM>(b, tile, n * 16, c);
                gpu_mma<T>(s[2 * n], left->a[c], b);
                gpu_mma<T>(s[2 * n + 1], left->a[c], b + 2);
            }
        }
    }
}

template <typename T> static __device__ const T *queries_of(const struct columns &args, int head)
{
    return static_cast<const T *>(args.q) + (size_t)head * (size_t)args.head_dim;
}

template <typename T> static __device__ const T *keys_of(const struct columns &args, int kv_head)
{
    return static_cast<const T *>(args.k) + (size_t)kv_head * args.kv_stride;
}

/* Rows begin..end in tiles, for one query head after the other. */
struct walk {
    int begin, end, tiles; /* tiles of one head */

    __device__ int row(int step) const { return begin + step % tiles * ROWS; }
};

/* Rows before the block's first key do not see its keys, unless they are open; nor do rows from
 * whose window they have left. */
static __device__ struct walk rows_for_keys(const struct columns &args, int key)
{
    int begin = args.open_rows > args.first_row ? 0 : max(key - args.first_row, 0) / ROWS * ROWS;
    int low = min(begin, args.rows), high = args.rows;

    while (args.sliding_window > 0 && low < high) {
        int middle = low + (high - low) / 2;

        if (columns_keys_of(args, middle).from < key + KEYS) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return {begin, high, max((high - begin + ROWS - 1) / ROWS, 0)};
}

template <typename T, int DIM>
static __device__ void load_rows(struct sums_shared<T, DIM> *shared, const struct columns &args,
                                 const struct walk &walk, int head, int step)
{
    int stage = step % STAGES, row = walk.row(step);
    size_t stride = (size_t)args.q_heads * (size_t)args.head_dim;

    head += step / walk.tiles;
    tile_load<DIM, ROWS, BLOCK>(shared->q[stage], queries_of<T>(args, head), stride, row, walk.end,
                                args.head_dim);
    if (threadIdx.x < ROWS) {
        int r = row + (int)threadIdx.x;
        bool here = r < walk.end;
        size_t at = (size_t)r * (size_t)args.q_heads + (size_t)head;

        shared->rows[stage][threadIdx.x] = {
            here ? columns_keys_of(args, r) : span{0, 0}, here ? args.lse[at] * LOG2_E : 0.0f,
            here && args.weights ? args.weights[r] : 1.0f, args.first_row + r};
    }
}

/* What a tile of rows gives the lane's keys key and key + 8. */
static __device__ __forceinline__ void add_tile(float all[2], float local[2],
                                                const float s[ROWS / 8][4],
                                                const struct seen_by *rows, int key, float to_log2,
                                                int n_local)
{
    int first = (int)threadIdx.x % 4 * 2;

#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
        for (int i = 0; i < 2; i++) {
            const struct seen_by row = rows[n * 8 + first + i];

            for (int half = 0; half < 2; half++) {
                int j = key + half * 8;
                float p = gpu_exp2(fmaf(s[n][half * 2 + i], to_log2, -row.lse)) * row.weight;

                p = j >= row.keys.from && j < row.keys.to ? p : 0.0f;
                all[half] += p;
                local[half] += row.number - j < n_local ? p : 0.0f;
            }
        }
    }
}

/* The sums of the lane's two keys over the four lanes that share them, to memory. */
static __device__ void write_sums(float *out, const float sum[2], const struct columns &args,
                                  int head, int key)
{
    for (int half = 0; half < 2; half++) {
        int j = key + half * 8;
        float total = sum[half];

        total += __shfl_xor_sync((unsigned)WHOLE_WARP, total, 1);
        total += __shfl_xor_sync((unsigned)WHOLE_WARP, total, 2);
        if (threadIdx.x % 4 == 0 && j < args.n_out) {
            float *to = out + (size_t)head * args.stride + (size_t)j;

            *to = j < args.fresh ? *to + total : total;
        }
    }
}

/* Nothing sees the block's keys: zeros, or what is there already. */
static __device__ void write_none(const struct columns &args, int head, int key)
{
    const float none[2] = {0.0f, 0.0f};

    for (int h = head; h < head + args.q_heads / args.kv_heads; h++) {
        write_sums(args.out, none, args, h, key);
        if (args.local) {
            write_sums(args.local, none, args, h, key);
        }
    }
}

template <typename T, int DIM>
static __global__ void __launch_bounds__(BLOCK) sums_mma_kernel(struct columns args)
{
    auto *shared = gpu_shared<struct sums_shared<T, DIM>>();
    int group = args.q_heads / args.kv_heads, kv_head = (int)blockIdx.y, head = kv_head * group;
    int first = (int)blockIdx.x * KEYS, lane = (int)threadIdx.x % WARP;
    int key = first + (int)threadIdx.x / WARP * WARP_ROWS + lane / 4;
    float to_log2 = LOG2_E / sqrtf((float)args.head_dim);
    struct walk walk = rows_for_keys(args, first);
    float all[2] = {}, local[2] = {}, s[ROWS / 8][4];
    struct left<DIM> left;

    if (walk.tiles == 0) {
        write_none(args, head, key);
        return;
    }
    tile_load<DIM, KEYS, BLOCK>(shared->k, keys_of<T>(args, kv_head), (size_t)args.head_dim, first,
                                args.n_keys, args.head_dim);
    load_rows(shared, args, walk, head, 0);
    gpu_copy_commit();
    gpu_copy_wait<0>();
    __syncthreads();
    load_left(&left, shared->k);
    for (int step = 0; step < walk.tiles * group; step++) {
        if (step + 1 < walk.tiles * group) {
            load_rows(shared, args, walk, head, step + 1);
        }
        gpu_copy_commit();
        gpu_copy_wait<1>();
        __syncthreads();
        score<DIM, ROWS>(s, &left, shared->q[step % STAGES], walk.end - walk.row(step));
        add_tile(all, local, s, shared->rows[step % STAGES], key, to_log2, args.n_local);
        if ((step + 1) % walk.tiles == 0) {
            write_sums(args.out, all, args, head + step / walk.tiles, key);
            if (args.local) {
                write_sums(args.local, local, args, head + step / walk.tiles, key);
            }
            all[0] = all[1] = local[0] = local[1] = 0.0f;
        }
        __syncthreads();
    }
    gpu_copy_wait<0>();
}

template <typename T, int DIM>
static __device__ void load_pairs(struct parts_shared<T, DIM> *shared, const struct columns &args,
                                  int head, int first)
{
    constexpr int PIECES = DIM / 8;
    int group = args.q_heads / args.kv_heads, d = args.head_dim;

    for (int i = (int)threadIdx.x; i < PAIRS * PIECES; i += BLOCK) {
        int number = first + i / PIECES, c = i % PIECES * 8, r = number / group;
        bool here = r < args.rows && c < d;
        size_t at = (size_t)r * (size_t)args.q_heads * (size_t)d + (size_t)c;

        gpu_copy16_async(&shared->q[tile_place<DIM>(i / PIECES, i % PIECES)],
                         queries_of<T>(args, head + number % group) + (here ? at : 0), here);
    }
    if (threadIdx.x < PAIRS) {
        shared->keys[threadIdx.x] = columns_keys_of(args, (first + (int)threadIdx.x) / group);
    }
}

/* The keys of a run that any pair of the block sees; from a multiple of a tile. */
static __device__ struct span keys_of_pairs(const struct span *keys, int begin, int end, int tile)
{
    struct span all = {end, begin};

    for (int i = 0; i < PAIRS; i++) {
        if (keys[i].to > keys[i].from) {
            all.from = min(all.from, keys[i].from);
            all.to = max(all.to, keys[i].to);
        }
    }
    return {max(all.from, begin) / tile * tile, min(all.to, end)};
}

/* The running softmax of a lane's keys, for one pair; peak in units of log2. */
template <int N>
static __device__ __forceinline__ void add_keys(float *peak, float *sum, const float s[N / 8][4],
                                                struct span keys, int half, int first,
                                                float to_log2)
{
    float v[N / 4], most = *peak;

#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        int j = first + i / 2 * 8 + i % 2;
        float score = s[i / 2][half * 2 + i % 2] * to_log2;

        v[i] = j >= keys.from && j < keys.to ? score : -INFINITY;
        most = fmaxf(most, v[i]);
    }
    float base = most > -INFINITY ? most : 0.0f;
    float total = *sum * gpu_exp2(*peak - base);
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        total += gpu_exp2(v[i] - base);
    }
    *peak = most;
    *sum = total;
}

/* The four lanes of a pair, joined; out (runs, 2, rows, q_heads). */
static __device__ void write_part(float *out, float peak, float sum, const struct columns &args,
                                  int head, int number)
{
    int group = args.q_heads / args.kv_heads, r = number / group;
    size_t n = (size_t)args.q_heads * (size_t)args.rows;
    size_t at = (size_t)blockIdx.x * 2 * n + (size_t)r * (size_t)args.q_heads +
                (size_t)(head + number % group);

    for (int by = 1; by <= 2; by *= 2) {
        float other_peak = __shfl_xor_sync((unsigned)WHOLE_WARP, peak, by);
        float other_sum = __shfl_xor_sync((unsigned)WHOLE_WARP, sum, by);
        float most = fmaxf(peak, other_peak), base = most > -INFINITY ? most : 0.0f;

        sum = sum * gpu_exp2(peak - base) + other_sum * gpu_exp2(other_peak - base);
        peak = most;
    }
    if (threadIdx.x % 4 == 0 && r < args.rows) {
        out[at] = peak;
        out[at + n] = sum;
    }
}

template <typename T, int DIM>
static __global__ void __launch_bounds__(BLOCK) parts_mma_kernel(struct columns args, float *out)
{
    constexpr int TILE = RUN_TILE<DIM>;
    auto *shared = gpu_shared<struct parts_shared<T, DIM>>();
    int kv_head = (int)blockIdx.y, head = kv_head * (args.q_heads / args.kv_heads);
    int first = (int)blockIdx.z * PAIRS, lane = (int)threadIdx.x % WARP;
    int pair = (int)threadIdx.x / WARP * WARP_ROWS + lane / 4;
    int begin = (int)blockIdx.x * COLUMNS_RUN_KEYS;
    float to_log2 = LOG2_E / sqrtf((float)args.head_dim);
    float peak[2] = {-INFINITY, -INFINITY}, sum[2] = {}, s[TILE / 8][4];
    const T *k = keys_of<T>(args, kv_head);
    size_t stride = (size_t)args.head_dim;
    struct left<DIM> left;

    load_pairs(shared, args, head, first);
    __syncthreads();
    struct span keys =
        keys_of_pairs(shared->keys, begin, min(begin + COLUMNS_RUN_KEYS, args.n_keys), TILE);
    tile_load<DIM, TILE, BLOCK>(shared->k[0], k, stride, keys.from, args.n_keys, args.head_dim);
    gpu_copy_commit();
    gpu_copy_wait<0>();
    __syncthreads();
    load_left(&left, shared->q);
    for (int key = keys.from, stage = 0; key < keys.to; key += TILE, stage ^= 1) {
        if (key + TILE < keys.to) {
            tile_load<DIM, TILE, BLOCK>(shared->k[stage ^ 1], k, stride, key + TILE, args.n_keys,
                                        args.head_dim);
        }
        gpu_copy_commit();
        gpu_copy_wait<1>();
        __syncthreads();
        score<DIM, TILE>(s, &left, shared->k[stage], TILE);
        for (int half = 0; half < 2; half++) {
            add_keys<TILE>(&peak[half], &sum[half], s, shared->keys[pair + half * 8], half,
                           key + lane % 4 * 2, to_log2);
        }
        __syncthreads();
    }
    gpu_copy_wait<0>();
    write_part(out, peak[0], sum[0], args, head, first + pair);
    write_part(out, peak[1], sum[1], args, head, first + pair + 8);
}

static status allow_shared(const void *kernel, size_t bytes)
{
    return cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
        "columns");
}

template <typename T, int DIM>
static status launch_sums(struct device *dev, const struct columns *args)
{
    constexpr size_t shared = sizeof(struct sums_shared<T, DIM>);
    dim3 grid(cuda_blocks((size_t)args->n_out, KEYS), (unsigned)args->kv_heads);
    status st = allow_shared((const void *)sums_mma_kernel<T, DIM>, shared);

    if (!st) {
        GPU_LAUNCH((sums_mma_kernel<T, DIM>), grid, BLOCK, shared, cuda_stream(dev), *args);
    }
    return st;
}

template <typename T, int DIM>
static status launch_parts(struct device *dev, const struct columns *args, float *out)
{
    constexpr size_t shared = sizeof(struct parts_shared<T, DIM>);
    size_t pairs = (size_t)args->rows * (size_t)(args->q_heads / args->kv_heads);
    dim3 grid(columns_runs(args), (unsigned)args->kv_heads, cuda_blocks(pairs, PAIRS));
    status st = allow_shared((const void *)parts_mma_kernel<T, DIM>, shared);

    if (!st) {
        GPU_LAUNCH((parts_mma_kernel<T, DIM>), grid, BLOCK, shared, cuda_stream(dev), *args, out);
    }
    return st;
}

status columns_mma_sums(struct device *dev, const struct columns *args)
{
    status st = STATUS_OK;

    cuda_with_narrow(dev, [&](auto act) {
        using T = decltype(act);
        st = args->head_dim <= 64    ? launch_sums<T, 64>(dev, args)
             : args->head_dim <= 128 ? launch_sums<T, 128>(dev, args)
                                     : launch_sums<T, 256>(dev, args);
    });
    return st;
}

status columns_mma_parts(struct device *dev, const struct columns *args, float *out)
{
    status st = STATUS_OK;

    cuda_with_narrow(dev, [&](auto act) {
        using T = decltype(act);
        st = args->head_dim <= 64    ? launch_parts<T, 64>(dev, args, out)
             : args->head_dim <= 128 ? launch_parts<T, 128>(dev, args, out)
                                     : launch_parts<T, 256>(dev, args, out);
    });
    return st;
}
