/* gemm.c - the one file that speaks oneDNN. */
#include "kernels/cpu/gemm.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdint.h>
#include <stdlib.h>

/* A prompt uses some ten shapes twice: whole chunks and the last one. */
enum { GEMMS_KEPT = 128, OPERANDS = 3 };

struct gemm {
    struct gemm_shape shape;
    uint64_t used; /* when, by the count of calls; 0: empty */
    dnnl_primitive_t primitive;
    dnnl_memory_t operand[OPERANDS]; /* x, w, out */
};

struct gemms {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    uint64_t calls;
    struct gemm kept[GEMMS_KEPT];
};

static status check(dnnl_status_t code, const char *what)
{
    if (code == dnnl_success) {
        return STATUS_OK;
    }
    return status_fail(code == dnnl_out_of_memory ? STATUS_EXHAUSTED : STATUS_INTERNAL,
                       "cpu: oneDNN %s: error %d", what, (int)code);
}

status gemms_create(struct gemms **out)
{
    struct gemms *gemms = calloc(1, sizeof(*gemms));
    status st;

    if (!gemms) {
        return status_fail(STATUS_EXHAUSTED, "cpu: no memory for the GEMM library");
    }
    st = check(dnnl_engine_create(&gemms->engine, dnnl_cpu, 0), "engine");
    if (!st) {
        st = check(dnnl_stream_create(&gemms->stream, gemms->engine, dnnl_stream_default_flags),
                   "stream");
    }
    if (st) {
        gemms_destroy(gemms);
        return st;
    }
    *out = gemms;
    return STATUS_OK;
}

static void gemm_clear(struct gemm *gemm)
{
    for (int i = 0; i < OPERANDS; i++) {
        if (gemm->operand[i]) {
            dnnl_memory_destroy(gemm->operand[i]);
        }
    }
    if (gemm->primitive) {
        dnnl_primitive_destroy(gemm->primitive);
    }
    *gemm = (struct gemm){0};
}

void gemms_destroy(struct gemms *gemms)
{
    if (!gemms) {
        return;
    }
    for (int i = 0; i < GEMMS_KEPT; i++) {
        gemm_clear(&gemms->kept[i]);
    }
    if (gemms->stream) {
        dnnl_stream_destroy(gemms->stream);
    }
    if (gemms->engine) {
        dnnl_engine_destroy(gemms->engine);
    }
    free(gemms);
}

static dnnl_data_type_t data_type(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* A matrix of rows x cols whose elements lie row_stride and col_stride apart. */
static status describe(dnnl_memory_desc_t *out, enum dtype dtype, size_t rows, size_t cols,
                       size_t row_stride, size_t col_stride)
{
    dnnl_dims_t dims = {(dnnl_dim_t)rows, (dnnl_dim_t)cols};
    dnnl_dims_t strides = {(dnnl_dim_t)row_stride, (dnnl_dim_t)col_stride};

    return check(dnnl_memory_desc_init_by_strides(out, 2, dims, data_type(dtype), strides),
                 "matrix description");
}

static status make_primitive(dnnl_primitive_t *out, dnnl_engine_t engine,
                             const dnnl_memory_desc_t *operand)
{
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t chosen;
    status st =
        check(dnnl_matmul_desc_init(&desc, &operand[0], &operand[1], NULL, &operand[2]), "product");

    if (!st) {
        st = check(dnnl_primitive_desc_create(&chosen, &desc, NULL, engine, NULL),
                   "choice of a product");
    }
    if (st) {
        return st;
    }
    st = check(dnnl_primitive_create(out, chosen), "code for a product");
    dnnl_primitive_desc_destroy(chosen);
    return st;
}

/* Into an empty entry; what was made stays in it for gemm_clear(). */
static status gemm_make(struct gemm *gemm, dnnl_engine_t engine, const struct gemm_shape *shape)
{
    size_t rows = (size_t)shape->rows, n = (size_t)shape->n, k = (size_t)shape->k;
    dnnl_memory_desc_t operand[OPERANDS];
    status st = describe(&operand[0], shape->in, rows, k, k, 1);

    if (!st) {
        st = describe(&operand[1], shape->in, k, n, 1, shape->w_stride);
    }
    if (!st) {
        st = describe(&operand[2], shape->out, rows, n, shape->out_stride, 1);
    }
    if (!st) {
        st = make_primitive(&gemm->primitive, engine, operand);
    }
    for (int i = 0; i < OPERANDS && !st; i++) {
        st = check(dnnl_memory_create(&gemm->operand[i], &operand[i], engine, DNNL_MEMORY_NONE),
                   "matrix");
    }
    if (!st) {
        gemm->shape = *shape;
    }
    return st;
}

static int same_shape(const struct gemm_shape *a, const struct gemm_shape *b)
{
    return a->rows == b->rows && a->n == b->n && a->k == b->k && a->w_stride == b->w_stride &&
           a->out_stride == b->out_stride && a->in == b->in && a->out == b->out;
}

/* The entry of this shape, made now if there is none, in place of the least recently used. */
static status gemm_find(struct gemm **out, struct gemms *gemms, const struct gemm_shape *shape)
{
    struct gemm *oldest = &gemms->kept[0];
    status st = STATUS_OK;

    *out = NULL;
    for (int i = 0; i < GEMMS_KEPT && !*out; i++) {
        struct gemm *gemm = &gemms->kept[i];

        if (gemm->used && same_shape(&gemm->shape, shape)) {
            *out = gemm;
        } else if (gemm->used < oldest->used) {
            oldest = gemm;
        }
    }
    if (!*out) {
        gemm_clear(oldest);
        st = gemm_make(oldest, gemms->engine, shape);
        if (st) {
            gemm_clear(oldest);
            return status_note(st, "%d x %d x %d", shape->rows, shape->n, shape->k);
        }
        *out = oldest;
    }
    (*out)->used = ++gemms->calls;
    return STATUS_OK;
}

status gemms_run(struct gemms *gemms, const struct gemm_shape *shape, void *out, const void *x,
                 const void *w, int threads)
{
    /* The library wants pointers to non-const, but only writes to the destination. */
    void *data[OPERANDS] = {(void *)x, (void *)w, out};
    const int role[OPERANDS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    dnnl_exec_arg_t args[OPERANDS];
    struct gemm *gemm;
    status st;

    omp_set_num_threads(threads); /* of parallel regions that this thread starts */
    st = gemm_find(&gemm, gemms, shape);
    for (int i = 0; i < OPERANDS && !st; i++) {
        st = check(dnnl_memory_set_data_handle(gemm->operand[i], data[i]), "operand");
        args[i] = (dnnl_exec_arg_t){.arg = role[i], .memory = gemm->operand[i]};
    }
    if (!st) {
        st = check(dnnl_primitive_execute(gemm->primitive, gemms->stream, OPERANDS, args),
                   "product");
    }
    return st ? st : check(dnnl_stream_wait(gemms->stream), "stream");
}
