/*
 * linear.c - out = x w^T for a chunk of one prompt, by the library's GEMM where w lies by rows.
 *
 * Where the processor has no bf16 arithmetic the library's bf16 product is missing or slow:
 * there, blocks of x and of the weights are widened to float32 in bounded scratch.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/int8.h"
#include "kernels/cpu/linear_packed.h"

enum {
    DIRECT_FEATURES = 2048,
    BLOCK_ROWS = 512,
    BLOCK_WEIGHTS = 2 << 20, /* elements */
    BLOCK_FEATURES = 64,     /* the fewest, whatever their length */
    GRAIN = 1 << 16,
};

/* rows of cols elements, stride apart, to a dense float32 block. */
static void widen_block(struct device *dev, float *out, const bf16 *in, int rows, size_t cols,
                        size_t stride)
{
    const struct elementwise_kernels *kernels = cpu_device(dev)->isa->elementwise;
    int threads = cpu_threads(dev, (size_t)rows * cols, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < rows; r++) {
        kernels->widen(out + (size_t)r * cols, in + (size_t)r * stride, cols);
    }
}

/* A dense float32 block to rows of bf16, stride apart. */
static void narrow_block(struct device *dev, bf16 *out, const float *in, int rows, size_t cols,
                         size_t stride)
{
    const struct elementwise_kernels *kernels = cpu_device(dev)->isa->elementwise;
    int threads = cpu_threads(dev, (size_t)rows * cols, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < rows; r++) {
        kernels->narrow(out + (size_t)r * stride, in + (size_t)r * cols, cols);
    }
}

/* Where one block of rows is on its way through the widened product. */
struct widened {
    struct device *dev;
    const struct matrix *w;
    enum dtype out_dtype;
    float *x;   /* (rows, cols) */
    float *w32; /* (features, cols) */
    float *sum; /* (rows, features), for a bf16 result */
    int rows;
};

/* out: row 0 of the block, feature `first`. */
static status widened_features(const struct widened *job, void *out, int first, int features)
{
    const struct matrix *w = job->w;
    size_t cols = (size_t)w->cols, n = (size_t)w->rows;
    bool narrow = job->out_dtype == DTYPE_BF16;
    struct gemm_shape shape = {
        .rows = job->rows,
        .n = features,
        .k = w->cols,
        .w_stride = cols,
        .out_stride = narrow ? (size_t)features : n,
        .in = DTYPE_F32,
        .out = DTYPE_F32,
    };
    status st;

    widen_block(job->dev, job->w32, (const bf16 *)w->data + (size_t)first * w->stride, features,
                cols, w->stride);
    st = gemms_run(cpu_device(job->dev)->gemms, &shape, narrow ? job->sum : out, job->x, job->w32,
                   cpu_device(job->dev)->threads);
    if (!st && narrow) {
        narrow_block(job->dev, out, job->sum, job->rows, (size_t)features, n);
    }
    return st;
}

static int block_features(const struct matrix *w)
{
    int fit = BLOCK_WEIGHTS / w->cols / BLOCK_FEATURES * BLOCK_FEATURES;
    int features = fit > BLOCK_FEATURES ? fit : BLOCK_FEATURES;

    return features < w->rows ? features : w->rows;
}

static size_t widened_bytes(const struct matrix *w, int rows)
{
    size_t most = (size_t)(rows < BLOCK_ROWS ? rows : BLOCK_ROWS);
    size_t features = (size_t)block_features(w);

    return ((most + features) * (size_t)w->cols + most * features) * sizeof(float);
}

static status linear_widened(struct device *dev, void *out, enum dtype out_dtype, const bf16 *x,
                             const struct matrix *w, int rows)
{
    size_t cols = (size_t)w->cols,
           out_size = out_dtype == DTYPE_BF16 ? sizeof(bf16) : sizeof(float);
    int most = rows < BLOCK_ROWS ? rows : BLOCK_ROWS;
    int features = block_features(w);
    struct widened job = {.dev = dev, .w = w, .out_dtype = out_dtype};
    void *scratch;
    status st = cpu_workspace(dev, &scratch, widened_bytes(w, rows));

    if (st) {
        return st;
    }
    job.x = scratch;
    job.w32 = job.x + (size_t)most * cols;
    job.sum = job.w32 + (size_t)features * cols;
    for (int r = 0; r < rows && !st; r += most) {
        job.rows = rows - r < most ? rows - r : most;
        widen_block(dev, job.x, x + (size_t)r * cols, job.rows, cols, cols);
        for (int first = 0; first < w->rows && !st; first += features) {
            size_t at = (size_t)r * (size_t)w->rows + (size_t)first;
            int n = w->rows - first < features ? w->rows - first : features;

            st = widened_features(&job, (char *)out + at * out_size, first, n);
        }
    }
    return st;
}

/* The library's own product, in blocks of features: their repacked weights stay in the cache,
 * which gains up to a quarter where w has many rows. */
static status linear_direct(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                            const struct matrix *w, int rows)
{
    struct cpu_device *cpu = cpu_device(dev);
    size_t out_size = out_dtype == DTYPE_BF16 ? sizeof(bf16) : sizeof(float);
    struct gemm_shape shape = {
        .rows = rows,
        .k = w->cols,
        .w_stride = w->stride,
        .out_stride = (size_t)w->rows,
        .in = dev->dtype,
        .out = out_dtype,
    };
    status st = STATUS_OK;

    for (int first = 0; first < w->rows && !st; first += DIRECT_FEATURES) {
        int rest = w->rows - first;

        shape.n = rest < DIRECT_FEATURES ? rest : DIRECT_FEATURES;
        st = gemms_run(cpu->gemms, &shape, (char *)out + (size_t)first * out_size, x,
                       act_const_at(dev, w->data, (size_t)first * w->stride), cpu->threads);
    }
    return st;
}

size_t cpu_linear_workspace(const struct device *dev, const struct matrix *w, int rows)
{
    if (w->scale) {
        return linear_int8_workspace(dev, w, rows);
    }
    if (w->layout == MATRIX_PACKED) {
        return linear_packed_workspace(dev, w, rows);
    }
    return dev->dtype == DTYPE_BF16 && !cpu_device_const(dev)->isa->bf16_gemm
               ? widened_bytes(w, rows)
               : 0;
}

status cpu_linear(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                  const struct matrix *w, int rows)
{
    if (rows == 0) {
        return STATUS_OK;
    }
    if (w->scale) {
        return linear_int8(dev, out, out_dtype, x, w, rows);
    }
    if (w->layout == MATRIX_PACKED) {
        return linear_packed(dev, out, out_dtype, x, w, rows);
    }
    if (dev->dtype == DTYPE_BF16 && !cpu_device(dev)->isa->bf16_gemm) {
        return linear_widened(dev, out, out_dtype, x, w, rows);
    }
    return linear_direct(dev, out, out_dtype, x, w, rows);
}

status cpu_linear_add(struct device *dev, float *sum, float *scratch, const void *x,
                      const struct matrix *w, int rows)
{
    if (w->layout == MATRIX_PACKED && rows > 0) {
        return linear_packed_add(dev, sum, x, w, rows);
    }
    status st = cpu_linear(dev, scratch, DTYPE_F32, x, w, rows);

    return st ? st : cpu_add(dev, sum, scratch, (size_t)rows * (size_t)w->rows);
}
