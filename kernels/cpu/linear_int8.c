/*
 * linear_int8.c - out = x w^T for a chunk of one prompt and weights in int8.
 *
 * Blocks of weights are widened in bounded scratch, to bf16 where the library multiplies it and to
 * float32 elsewhere, and multiplied by x as it is; the sums, in float32, get the scales of their
 * rows.  So weights alone are rounded.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/int8.h"

enum {
    BLOCK_ROWS = 512,
    BLOCK_WEIGHTS = 2 << 20, /* elements */
    MIN_FEATURES = 64,       /* of a block, whatever their length */
    GRAIN = 1 << 16,
};

struct job {
    struct device *dev;
    const struct matrix *w;
    void *out;
    enum dtype out_dtype;
    bool wide;   /* the product is of float32 */
    void *block; /* (features, cols) widened weights */
    float *sums; /* (rows, features) */
    float *x32;  /* (rows, cols), if x is widened, too */
};

/* Whether the library multiplies float32 better, else bf16. */
static bool int8_to_wide(const struct device *dev)
{
    return dev->dtype == DTYPE_F32 || !cpu_device_const(dev)->isa->bf16_gemm;
}

static void widen_weights(const struct job *job, int first, int features)
{
    const struct matrix *w = job->w;
    const struct int8_kernels *kernels = cpu_device(job->dev)->isa->int8;
    size_t cols = (size_t)w->cols, bytes = cols * (job->wide ? sizeof(float) : sizeof(bf16));
    int threads = cpu_threads(job->dev, (size_t)features * cols, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int j = 0; j < features; j++) {
        kernels->widen(job->wide, (char *)job->block + (size_t)j * bytes,
                       (const int8_t *)w->data + (size_t)(first + j) * w->stride, cols);
    }
}

/* Sums of rows `row`.. become outputs `first`.. of these rows. */
static void scale_sums(const struct job *job, int row, int rows, int first, int features)
{
    const struct cpu_isa *isa = cpu_device(job->dev)->isa;
    size_t n = (size_t)features, out_n = (size_t)job->w->rows;
    int threads = cpu_threads(job->dev, (size_t)rows * n, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < rows; r++) {
        float *sums = job->sums + (size_t)r * n;
        size_t at = (size_t)(row + r) * out_n + (size_t)first;

        isa->int8->scale(sums, job->w->scale + first, n);
        if (job->out_dtype == DTYPE_BF16) {
            isa->elementwise->narrow((bf16 *)job->out + at, sums, n);
        } else {
            memcpy((float *)job->out + at, sums, n * sizeof(float));
        }
    }
}

/* The product of x, rows `row`.., with all weights. */
static status multiply_rows(const struct job *job, const void *x, int row, int rows, int most)
{
    struct cpu_device *cpu = cpu_device(job->dev);
    const struct matrix *w = job->w;
    struct gemm_shape shape = {
        .rows = rows,
        .k = w->cols,
        .w_stride = (size_t)w->cols,
        .in = job->wide ? DTYPE_F32 : DTYPE_BF16,
        .out = DTYPE_F32,
    };
    status st = STATUS_OK;

    for (int first = 0; first < w->rows && !st; first += most) {
        int rest = w->rows - first;

        shape.n = rest < most ? rest : most;
        shape.out_stride = (size_t)shape.n;
        widen_weights(job, first, shape.n);
        st = gemms_run(cpu->gemms, &shape, job->sums, x, job->block, cpu->threads);
        if (!st) {
            scale_sums(job, row, rows, first, shape.n);
        }
    }
    return st;
}

static int block_features(const struct matrix *w)
{
    int fit = BLOCK_WEIGHTS / w->cols / MIN_FEATURES * MIN_FEATURES;
    int features = fit > MIN_FEATURES ? fit : MIN_FEATURES;

    return features < w->rows ? features : w->rows;
}

static bool widens_x(const struct device *dev)
{
    return int8_to_wide(dev) && dev->dtype == DTYPE_BF16;
}

size_t linear_int8_workspace(const struct device *dev, const struct matrix *w, int rows)
{
    size_t most = (size_t)(rows < BLOCK_ROWS ? rows : BLOCK_ROWS), cols = (size_t)w->cols;
    size_t features = (size_t)block_features(w);

    return (features * (cols + most) + most * (widens_x(dev) ? cols : 0)) * sizeof(float);
}

status linear_int8(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                   const struct matrix *w, int rows)
{
    size_t cols = (size_t)w->cols;
    int most = rows < BLOCK_ROWS ? rows : BLOCK_ROWS, features = block_features(w);
    struct job job = {.dev = dev, .w = w, .out = out, .out_dtype = out_dtype};
    void *scratch;
    status st = cpu_workspace(dev, &scratch, linear_int8_workspace(dev, w, rows));

    if (st) {
        return st;
    }
    job.wide = int8_to_wide(dev);
    job.block = scratch;
    job.sums = (float *)scratch + (size_t)features * cols;
    job.x32 = job.sums + (size_t)features * (size_t)most;
    for (int r = 0; r < rows && !st; r += most) {
        int n = rows - r < most ? rows - r : most;
        const void *rows_of_x = act_const_at(dev, x, (size_t)r * cols);

        if (widens_x(dev)) {
            cpu_device(dev)->isa->elementwise->widen(job.x32, rows_of_x, (size_t)n * cols);
            rows_of_x = job.x32;
        }
        st = multiply_rows(&job, rows_of_x, r, n, features);
    }
    return st;
}
