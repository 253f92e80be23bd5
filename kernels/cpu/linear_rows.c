/*
 * linear_rows.c - out = x w^T for the rows of a decode batch.
 *
 * Weights are streamed once, in the order in which they lie in memory; every dot product has
 * the order of linear_rows_template.h, whatever the number of rows and threads.
 */
#include "kernels/cpu/linear_rows.h"

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/int8.h"
#include "kernels/cpu/linear_packed.h"

enum {
    FEATURES = 32,       /* of one task */
    MIN_BYTES = 1 << 16, /* of weights that are worth a second thread */
    MIN_WORDS = 1 << 14, /* of packed x likewise */
};

struct job {
    struct device *dev;
    void *out;
    enum dtype out_dtype;
    const void *x; /* in the form that the kernels want */
    size_t x_stride;
    const struct matrix *w;
    int rows;
};

static const struct linear_rows_kernels *kernels_of(const struct device *dev)
{
    const struct cpu_isa *isa = cpu_device_const(dev)->isa;

    return dev->dtype == DTYPE_BF16 ? isa->linear_rows_bf16 : isa->linear_rows_f32;
}

/* Features first.. of one task: sums in float32 on the stack, then stored in the dtype asked. */
static void linear_task(const struct job *job, int first)
{
    float sums[OP_MAX_DECODE_ROWS * FEATURES];
    const struct matrix *w = job->w;
    int rest = w->rows - first;
    size_t n = (size_t)(rest < FEATURES ? rest : FEATURES);
    struct dot_rows args = {
        .out = sums,
        .out_stride = FEATURES,
        .x = job->x,
        .x_stride = job->x_stride,
        .w = act_const_at(job->dev, w->data, (size_t)first * w->stride),
        .w_stride = w->stride,
        .rows = job->rows,
        .features = (int)n,
        .cols = w->cols,
    };

    kernels_of(job->dev)->dot_rows(&args);
    for (int r = 0; r < job->rows; r++) {
        size_t at = (size_t)r * (size_t)w->rows + (size_t)first;

        if (job->out_dtype == DTYPE_BF16) {
            cpu_device(job->dev)->isa->elementwise->narrow((bf16 *)job->out + at,
                                                           sums + (size_t)r * FEATURES, n);
        } else {
            memcpy((float *)job->out + at, sums + (size_t)r * FEATURES, n * sizeof(float));
        }
    }
}

/* One step along the columns of a group of rows: DOT_TILE_COLS columns, as pairs. */
static void pack_tile(uint32_t *out, const bf16 *x, size_t stride, int rows, size_t cols)
{
    uint32_t row[DOT_TILE_COLS / 2];

    memset(out, 0, DOT_TILE_ROWS * sizeof(row));
    for (int r = 0; r < rows; r++) {
        memset(row, 0, sizeof(row));
        memcpy(row, x + (size_t)r * stride, cols * sizeof(bf16));
        for (int p = 0; p < DOT_TILE_COLS / 2; p++) {
            out[p * DOT_TILE_ROWS + r] = row[p];
        }
    }
}

static size_t tiles_bytes(const struct matrix *w, int rows)
{
    size_t steps = ((size_t)w->cols + DOT_TILE_COLS - 1) / DOT_TILE_COLS;
    size_t groups = ((size_t)rows + DOT_TILE_ROWS - 1) / DOT_TILE_ROWS;

    return groups * steps * DOT_TILE_ROWS * DOT_TILE_COLS / 2 * sizeof(uint32_t);
}

static status pack_tiles(struct job *job)
{
    size_t cols = (size_t)job->w->cols, steps = (cols + DOT_TILE_COLS - 1) / DOT_TILE_COLS;
    size_t tile_words = DOT_TILE_ROWS * DOT_TILE_COLS / 2, group_words = steps * tile_words;
    int groups = (job->rows + DOT_TILE_ROWS - 1) / DOT_TILE_ROWS;
    int threads = cpu_threads(job->dev, (size_t)groups * group_words, MIN_WORDS);
    const bf16 *x = job->x;
    void *packed;
    status st = cpu_workspace(job->dev, &packed, tiles_bytes(job->w, job->rows));

    if (st) {
        return st;
    }
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
    for (int g = 0; g < groups; g++) {
        for (size_t s = 0; s < steps; s++) {
            int first = g * DOT_TILE_ROWS, rest = job->rows - first;
            size_t k = s * DOT_TILE_COLS;

            pack_tile((uint32_t *)packed + (size_t)g * group_words + s * tile_words,
                      x + (size_t)first * cols + k, cols,
                      rest < DOT_TILE_ROWS ? rest : DOT_TILE_ROWS,
                      cols - k < DOT_TILE_COLS ? cols - k : DOT_TILE_COLS);
        }
    }
    job->x = packed;
    job->x_stride = group_words;
    return STATUS_OK;
}

static status widen_x(struct job *job)
{
    size_t n = (size_t)job->rows * (size_t)job->w->cols;
    void *wide;
    status st = cpu_workspace(job->dev, &wide, n * sizeof(float));

    if (!st) {
        cpu_device(job->dev)->isa->elementwise->widen(wide, job->x, n);
        job->x = wide;
    }
    return st;
}

size_t cpu_linear_rows_workspace(const struct device *dev, const struct matrix *w, int rows)
{
    enum dot_x form = kernels_of(dev)->x_form;

    if (w->scale) {
        return linear_rows_int8_workspace(w, rows);
    }
    if (w->layout == MATRIX_PACKED) {
        return linear_packed_workspace(dev, w, rows);
    }
    if (form == DOT_X_PLAIN) {
        return 0;
    }
    return form == DOT_X_WIDENED ? (size_t)rows * (size_t)w->cols * sizeof(float)
                                 : tiles_bytes(w, rows);
}

status cpu_linear_rows(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                       const struct matrix *w, int rows)
{
    if (w->scale) {
        return linear_rows_int8(dev, out, out_dtype, x, w, rows);
    }
    if (w->layout == MATRIX_PACKED) {
        return linear_packed(dev, out, out_dtype, x, w, rows);
    }
    struct job job = {dev, out, out_dtype, x, (size_t)w->cols, w, rows};
    size_t bytes = (size_t)w->rows * (size_t)w->cols * act_bytes(dev);
    int threads = cpu_threads(dev, bytes, MIN_BYTES);
    int tasks = (w->rows + FEATURES - 1) / FEATURES;
    enum dot_x form = kernels_of(dev)->x_form;
    status st = STATUS_OK;

    if (form != DOT_X_PLAIN) {
        st = form == DOT_X_WIDENED ? widen_x(&job) : pack_tiles(&job);
    }
    if (st) {
        return st;
    }
    /* Long runs first: each new place in memory takes time to come up to speed. */
#pragma omp parallel for num_threads(threads) schedule(guided) if (threads > 1)
    for (int task = 0; task < tasks; task++) {
        linear_task(&job, task * FEATURES);
    }
    return STATUS_OK;
}

status cpu_linear_rows_add(struct device *dev, float *sum, float *scratch, const void *x,
                           const struct matrix *w, int rows)
{
    if (w->layout == MATRIX_PACKED) {
        return linear_packed_add(dev, sum, x, w, rows);
    }
    status st = cpu_linear_rows(dev, scratch, DTYPE_F32, x, w, rows);

    return st ? st : cpu_add(dev, sum, scratch, (size_t)rows * (size_t)w->rows);
}
