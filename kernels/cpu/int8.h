/*
 * int8.h - rows of weights and of the KV cache in int8, one scale a row.
 *
 * Every instruction set compiles int8_template.h.  `wide` says that activations are float32, else
 * they are bf16; int8 values are exact in both.  n may be any number.
 */
#ifndef KERNELS_CPU_INT8_H
#define KERNELS_CPU_INT8_H

#include "kernels/op.h"

#include <stddef.h>

struct int8_kernels {
    void (*widen)(bool wide, void *out, const int8_t *in, size_t n);

    /* A row as op_quantize() says; returns its scale, infinity or NaN if the row is not finite. */
    float (*quantize)(bool wide, int8_t *out, const void *in, size_t n);

    /* A row of x in planes, see below, zeros behind them; returns the scale, infinity or NaN (and
     * zeros) if the row is not finite. */
    float (*split)(bool wide, int8_t *planes, size_t padded, int32_t *sums, const void *x,
                   size_t n);

    /* x[i] *= by[i] */
    void (*scale)(float *x, const float *by, size_t n);
};

extern const struct int8_kernels int8_generic;
extern const struct int8_kernels int8_avx2;
extern const struct int8_kernels int8_avx512;

/*
 * Dot products of int8 weights with activations of 16 bits: a row of x is its scale times integers
 * 256 high + low, |high| <= 127, in two planes of int8.  Sums of integers are exact, so they are
 * the same in any order, with any instruction set and in any company.
 */
enum { INT8_PLANES = 2, INT8_STEP = 64 };

struct int8_dot {
    int64_t *out; /* (rows, out_stride): 256 high . w + low . w */
    size_t out_stride;
    const int8_t *x;      /* (rows, INT8_PLANES, padded): zeros from cols on */
    const int32_t *x_sum; /* (rows, INT8_PLANES) */
    size_t padded;        /* cols in whole INT8_STEPs */
    const int8_t *w;      /* (features, w_stride) */
    size_t w_stride;
    int rows, features, cols;
};

void int8_dot_generic(const struct int8_dot *args);
void int8_dot_avx2(const struct int8_dot *args);
void int8_dot_avx512(const struct int8_dot *args);
void int8_dot_avx512_bf16(const struct int8_dot *args);

/* op_linear() and op_linear_rows() for int8 weights. */
status linear_int8(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                   const struct matrix *w, int rows);
status linear_rows_int8(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                        const struct matrix *w, int rows);
size_t linear_int8_workspace(const struct device *dev, const struct matrix *w, int rows);
size_t linear_rows_int8_workspace(const struct matrix *w, int rows);

#endif
