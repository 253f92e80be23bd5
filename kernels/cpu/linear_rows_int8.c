/*
 * linear_rows_int8.c - out = x w^T for the rows of a decode batch and weights in int8.
 *
 * Rows of x become integers of 16 bits with a scale of their own; what that rounds is small beside
 * the rounding of the weights (docs/decisions.md).  Weights are streamed once.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/int8.h"

enum {
    FEATURES = 32,       /* of one task */
    RUNS = 8,            /* of tasks for each thread: a late one does not hold up the others */
    MIN_BYTES = 1 << 16, /* of weights that are worth a second thread */
};

struct job {
    const struct cpu_isa *isa;
    const struct matrix *w;
    void *out;
    enum dtype out_dtype;
    int rows;
    size_t padded;
    int8_t *planes; /* (rows, INT8_PLANES, padded) */
    int32_t sums[OP_MAX_DECODE_ROWS * INT8_PLANES];
    float scale[OP_MAX_DECODE_ROWS];
};

/* Features first.. of one task. */
static void run_task(const struct job *job, int first)
{
    int64_t dots[OP_MAX_DECODE_ROWS * FEATURES];
    const struct matrix *w = job->w;
    int rest = w->rows - first, n = rest < FEATURES ? rest : FEATURES;

    job->isa->int8_dot(&(struct int8_dot){
        .out = dots,
        .out_stride = FEATURES,
        .x = job->planes,
        .x_sum = job->sums,
        .padded = job->padded,
        .w = (const int8_t *)w->data + (size_t)first * w->stride,
        .w_stride = w->stride,
        .rows = job->rows,
        .features = n,
        .cols = w->cols,
    });
    for (int r = 0; r < job->rows; r++) {
        size_t at = (size_t)r * (size_t)w->rows + (size_t)first;
        float row[FEATURES];

        for (int j = 0; j < n; j++) {
            row[j] = (float)((double)dots[r * FEATURES + j] * (double)job->scale[r] *
                             (double)w->scale[first + j]);
        }
        if (job->out_dtype == DTYPE_BF16) {
            job->isa->elementwise->narrow((bf16 *)job->out + at, row, (size_t)n);
        } else {
            memcpy((float *)job->out + at, row, (size_t)n * sizeof(float));
        }
    }
}

/* Tasks side by side in memory. */
static void run_tasks(const struct job *job, int first, int features)
{
    for (int at = first; at < first + features && at < job->w->rows; at += FEATURES) {
        run_task(job, at);
    }
}

static size_t padded_cols(const struct matrix *w)
{
    return ((size_t)w->cols + INT8_STEP - 1) / INT8_STEP * INT8_STEP;
}

size_t linear_rows_int8_workspace(const struct matrix *w, int rows)
{
    return (size_t)rows * INT8_PLANES * padded_cols(w);
}

static status split_rows(struct job *job, struct device *dev, const void *x)
{
    size_t cols = (size_t)job->w->cols;
    void *planes;

    job->padded = padded_cols(job->w);
    status st = cpu_workspace(dev, &planes, linear_rows_int8_workspace(job->w, job->rows));
    if (st) {
        return st;
    }
    job->planes = planes;
    for (int r = 0; r < job->rows; r++) {
        job->scale[r] = job->isa->int8->split(dev->dtype == DTYPE_F32,
                                              job->planes + (size_t)r * INT8_PLANES * job->padded,
                                              job->padded, job->sums + (size_t)r * INT8_PLANES,
                                              act_const_at(dev, x, (size_t)r * cols), cols);
    }
    return STATUS_OK;
}

status linear_rows_int8(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                        const struct matrix *w, int rows)
{
    struct job job = {
        .isa = cpu_device(dev)->isa,
        .w = w,
        .out = out,
        .out_dtype = out_dtype,
        .rows = rows,
    };
    int threads = cpu_threads(dev, (size_t)w->rows * (size_t)w->cols, MIN_BYTES);
    int run = (w->rows / FEATURES / threads / RUNS + 1) * FEATURES;
    status st = split_rows(&job, dev, x);

    if (st) {
        return st;
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int first = 0; first < w->rows; first += run) {
        run_tasks(&job, first, run);
    }
    return STATUS_OK;
}
