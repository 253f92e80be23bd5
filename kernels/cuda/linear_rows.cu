/*
 * linear_rows.cu - out = x w^T for 1 to 64 rows of different sequences, in one order along the
 * columns whatever the number of rows.
 *
 * bfloat16 and float16: tensor cores, 16 features by 8 rows a product.  The order of summation is
 * free, so a lane takes 8 neighbouring columns of a weight row, one 16-byte load, as its elements
 * of two products; x is taken likewise.  The warps of a block share the columns out by blocks of 32
 * and their sums are added in order. float32: a warp for each feature, every lane 4 columns in 128.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256, WARPS = BLOCK / WARP;
static constexpr int FEATURES = 16, TILE_ROWS = 8, STEP = 32, LANE_COLS = 8;

/* One weight of a launch, whose blocks begin at `block`. */
struct part {
    const void *w;
    void *out;
    size_t w_stride, n; /* n: features */
    unsigned block;
};

struct product {
    struct part part[OP_MAX_PRODUCTS];
    const void *x;
    size_t x_stride;
    int parts, rows, cols;
    bool wide_out; /* float32 */
    bool add;      /* to what is there; float32 */
};

/* That of this block. */
static __device__ __forceinline__ struct part part_of(const struct product &p)
{
    struct part part = p.part[0];

#pragma unroll
    for (int i = 1; i < OP_MAX_PRODUCTS; i++) {
        if (i < p.parts && blockIdx.x >= p.part[i].block) {
            part = p.part[i];
        }
    }
    return part;
}

/* Every element of x is read once for 16 * GROUPS features. */
template <int TILES> constexpr int GROUPS_OF = TILES < 4 ? 1 : 2;

template <int GROUPS, int TILES> struct linear_rows_shared {
    float sum[WARPS][TILES * TILE_ROWS][GROUPS * FEATURES + 1];
};

static __device__ __forceinline__ void write_wide(void *to, size_t at, float total, bool add)
{
    float *out = static_cast<float *>(to) + at;

    *out = add ? *out + total : total;
}

/* Columns c..c + 8 of a row that may end before, or does not lie well. */
template <typename T> static __device__ uint4 load_some(const T *row, int c, int cols)
{
    unsigned pair[4];

    for (int i = 0; i < 4; i++) {
        unsigned low = c + 2 * i < cols ? row[c + 2 * i].bits : 0;
        unsigned high = c + 2 * i + 1 < cols ? row[c + 2 * i + 1].bits : 0;
        pair[i] = low | high << 16;
    }
    return uint4{pair[0], pair[1], pair[2], pair[3]};
}

/* WHOLE: all 8 columns are there and lie well, which leaves loads without conditions. */
template <typename T, bool WHOLE>
static __device__ __forceinline__ uint4 load_columns(const T *row, int c, int cols)
{
    if constexpr (WHOLE) {
        return gpu_load16(row + c);
    } else {
        return c < cols ? load_some(row, c, cols) : uint4{0, 0, 0, 0};
    }
}

/* Row `row` of n; one that is not there stands for the last, and its sums are not used. */
template <typename T>
static __device__ __forceinline__ const T *row_of(const void *data, size_t row, size_t n,
                                                  size_t stride)
{
    return gpu_global(static_cast<const T *>(data) + (row < n ? row : n - 1) * stride);
}

/* The rows that a lane reads: of every 16 features two, of every tile of x one. */
template <typename T, int GROUPS, int TILES> struct lane_rows {
    const T *w[GROUPS][2], *x[TILES];
};

/* sum += the products of the lane's 8 columns from c on. */
template <typename T, int GROUPS, int TILES, bool WHOLE>
static __device__ __forceinline__ void add_columns(float sum[GROUPS][TILES][4],
                                                   const struct lane_rows<T, GROUPS, TILES> &rows,
                                                   int c, int cols)
{
    unsigned a[GROUPS][2][4];

#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        uint4 low = load_columns<T, WHOLE>(rows.w[g][0], c, cols);
        uint4 high = load_columns<T, WHOLE>(rows.w[g][1], c, cols);

        a[g][0][0] = low.x, a[g][0][1] = high.x, a[g][0][2] = low.y, a[g][0][3] = high.y;
        a[g][1][0] = low.z, a[g][1][1] = high.z, a[g][1][2] = low.w, a[g][1][3] = high.w;
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        uint4 x = load_columns<T, WHOLE>(rows.x[t], c, cols);
        const unsigned b[2][2] = {{x.x, x.y}, {x.z, x.w}};

#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            gpu_mma<T>(sum[g][t], a[g][0], b[0]);
            gpu_mma<T>(sum[g][t], a[g][1], b[1]);
        }
    }
}

template <typename T, int GROUPS, int TILES, bool LIES_WELL>
static __device__ void multiply(float sum[GROUPS][TILES][4], const struct product &p,
                                const struct part &part, size_t feature)
{
    constexpr int COLS = WARPS * STEP;
    int lane = (int)threadIdx.x % WARP;
    int first = (int)threadIdx.x / WARP * STEP + lane % 4 * LANE_COLS;
    int whole = LIES_WELL ? p.cols / COLS * COLS : 0;
    struct lane_rows<T, GROUPS, TILES> rows;

#pragma unroll
    for (int i = 0; i < GROUPS * 2; i++) {
        rows.w[i / 2][i % 2] =
            row_of<T>(part.w, feature + (size_t)(i * 8 + lane / 4), part.n, part.w_stride);
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        rows.x[t] = row_of<T>(p.x, (size_t)(t * TILE_ROWS + lane / 4), (size_t)p.rows, p.x_stride);
    }
#pragma unroll(TILES <= 2 ? 4 : 2)
    for (int at = 0; at < whole; at += COLS) {
        add_columns<T, GROUPS, TILES, true>(sum, rows, at + first, p.cols);
    }
    for (int at = whole; at < p.cols; at += COLS) {
        add_columns<T, GROUPS, TILES, false>(sum, rows, at + first, p.cols);
    }
}

template <typename T, int GROUPS, int TILES, bool LIES_WELL>
static __global__ void __launch_bounds__(BLOCK) mma_kernel(struct product p)
{
    constexpr int N = GROUPS * FEATURES;
    auto *shared = gpu_shared<struct linear_rows_shared<GROUPS, TILES>>();
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    struct part part = part_of(p);
    size_t feature = (size_t)(blockIdx.x - part.block) * N;
    float sum[GROUPS][TILES][4] = {};

    multiply<T, GROUPS, TILES, LIES_WELL>(sum, p, part, feature);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            for (int i = 0; i < 4; i++) {
                int r = t * TILE_ROWS + lane % 4 * 2 + i % 2;

                shared->sum[warp][r][g * FEATURES + lane / 4 + i / 2 * 8] = sum[g][t][i];
            }
        }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < p.rows * N; i += BLOCK) {
        int r = i / N, f = i % N;
        size_t at = (size_t)r * part.n + feature + (size_t)f;
        float total = shared->sum[0][r][f];

        for (int w = 1; w < WARPS; w++) {
            total += shared->sum[w][r][f];
        }
        if (feature + (size_t)f >= part.n) {
            continue;
        }
        if (p.wide_out) {
            write_wide(part.out, at, total, p.add);
        } else {
            gpu_store(static_cast<T *>(part.out) + at, total);
        }
    }
}

template <bool LIES_WELL>
static __device__ void load_columns4(float v[4], const float *row, int c, int cols)
{
    if constexpr (LIES_WELL) {
        gpu_load4(v, row + c);
    } else {
        for (int i = 0; i < 4; i++) {
            v[i] = c + i < cols ? row[c + i] : 0.0f;
        }
    }
}

template <bool LIES_WELL>
static __global__ void __launch_bounds__(BLOCK) f32_kernel(struct product p)
{
    constexpr int LANE = 4, ROWS = TILE_ROWS;
    struct part part = part_of(p);
    size_t feature = (size_t)(blockIdx.x - part.block) * WARPS + threadIdx.x / WARP;
    int lane = (int)threadIdx.x % WARP;
    const float *w = static_cast<const float *>(part.w) + feature * part.w_stride;

    /* whole warps leave */
    for (int r = 0; feature < part.n && r < p.rows; r += ROWS) {
        const float *x = static_cast<const float *>(p.x) + (size_t)r * p.x_stride;
        float sum[ROWS] = {};

        for (int c = lane * LANE; c < p.cols; c += WARP * LANE) {
            float a[LANE], b[LANE];

            load_columns4<LIES_WELL>(a, w, c, p.cols);
            for (int t = 0; t < ROWS && r + t < p.rows; t++) {
                load_columns4<LIES_WELL>(b, x + (size_t)t * p.x_stride, c, p.cols);
                for (int i = 0; i < LANE; i++) {
                    sum[t] = fmaf(a[i], b[i], sum[t]);
                }
            }
        }
        for (int t = 0; t < ROWS && r + t < p.rows; t++) {
            float total = gpu_warp_reduce(sum[t], gpu_sum());

            if (lane == 0) {
                write_wide(part.out, (size_t)(r + t) * part.n + feature, total, p.add);
            }
        }
    }
}

/* Shares out blocks of so many features; returns their number. */
static unsigned lay_out(struct product *p, size_t features)
{
    unsigned blocks = 0;

    for (int i = 0; i < p->parts; i++) {
        p->part[i].block = blocks;
        blocks += cuda_blocks(p->part[i].n, features);
    }
    return blocks;
}

template <typename T, int TILES>
static status launch_mma(struct device *dev, struct product *p, bool well)
{
    constexpr int GROUPS = GROUPS_OF<TILES>;
    constexpr size_t shared = sizeof(struct linear_rows_shared<GROUPS, TILES>);
    auto kernel = well ? mma_kernel<T, GROUPS, TILES, true> : mma_kernel<T, GROUPS, TILES, false>;
    unsigned blocks = lay_out(p, GROUPS * FEATURES);
    status st =
        cuda_check(cudaFuncSetAttribute((const void *)kernel,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                   "linear_rows");

    if (!st) {
        GPU_LAUNCH(kernel, blocks, BLOCK, shared, cuda_stream(dev), *p);
    }
    return st;
}

template <typename T> static status launch_tiles(struct device *dev, struct product *p, bool well)
{
    return p->rows <= TILE_ROWS       ? launch_mma<T, 1>(dev, p, well)
           : p->rows <= 2 * TILE_ROWS ? launch_mma<T, 2>(dev, p, well)
           : p->rows <= 4 * TILE_ROWS ? launch_mma<T, 4>(dev, p, well)
                                      : launch_mma<T, 8>(dev, p, well);
}

static void launch_f32(struct device *dev, struct product *p, bool well)
{
    unsigned blocks = lay_out(p, WARPS);

    if (well) {
        GPU_LAUNCH(f32_kernel<true>, blocks, BLOCK, 0, cuda_stream(dev), *p);
    } else {
        GPU_LAUNCH(f32_kernel<false>, blocks, BLOCK, 0, cuda_stream(dev), *p);
    }
}

static status launch(struct device *dev, struct product *p, const struct weight_product *products,
                     int n)
{
    size_t each = 16 / cuda_act_bytes(dev);
    bool well = (uintptr_t)p->x % 16 == 0 && (size_t)p->cols % each == 0;
    status st = STATUS_OK;

    p->parts = n;
    for (int i = 0; i < n; i++) {
        const struct matrix *w = products[i].w;

        p->part[i] = {w->data, products[i].out, w->stride, (size_t)w->rows, 0};
        well = well && (uintptr_t)w->data % 16 == 0 && w->stride % each == 0;
    }
    if (cuda_is_narrow(dev)) {
        cuda_with_narrow(dev, [&](auto act) { st = launch_tiles<decltype(act)>(dev, p, well); });
    } else {
        launch_f32(dev, p, well);
    }
    return st ? st : cuda_launched("linear_rows");
}

static struct product product_of(const void *x, int rows, int cols)
{
    return {.part = {},
            .x = x,
            .x_stride = (size_t)cols,
            .parts = 0,
            .rows = rows,
            .cols = cols,
            .wide_out = true,
            .add = false};
}

status cuda_linear_rows(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                        const struct matrix *w, int rows)
{
    const struct weight_product output = {out, w};
    struct product p = product_of(x, rows, w->cols);

    p.wide_out = out_dtype == DTYPE_F32;
    return launch(dev, &p, &output, 1);
}

status cuda_linear_rows_each(struct device *dev, const struct weight_product *products, int n,
                             const void *x, int rows)
{
    struct product p = product_of(x, rows, products[0].w->cols);

    p.wide_out = !cuda_is_narrow(dev);
    return launch(dev, &p, products, n);
}

status cuda_linear_rows_add(struct device *dev, float *sum, float *, const void *x,
                            const struct matrix *w, int rows)
{
    const struct weight_product output = {sum, w};
    struct product p = product_of(x, rows, w->cols);

    p.add = true;
    return launch(dev, &p, &output, 1);
}
