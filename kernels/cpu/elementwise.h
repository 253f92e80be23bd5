/*
 * elementwise.h - inner kernels of what lies between the matrix products.
 *
 * Every instruction set compiles elementwise_template.h into one struct elementwise_kernels.
 * `wide` says that activations are float32, else they are bf16.  n may be any number.
 */
#ifndef KERNELS_CPU_ELEMENTWISE_H
#define KERNELS_CPU_ELEMENTWISE_H

#include "kernels/cpu/bf16.h"

#include <stdbool.h>
#include <stddef.h>

struct elementwise_kernels {
    void (*widen)(float *out, const bf16 *in, size_t n);
    void (*narrow)(bf16 *out, const float *in, size_t n);
    void (*add)(float *x, const float *y, size_t n);
    void (*silu_mul)(bool wide, void *out, const void *gate, const void *up, size_t n);

    /* One row of n. */
    void (*rmsnorm)(bool wide, void *out, const float *x, const float *weight, size_t n, float eps);

    /* One head: pairs (i, half + i) turned by the angle of cosine[i] and sine[i]. */
    void (*rotate)(bool wide, void *out, const void *x, const float *cosine, const float *sine,
                   size_t half);
};

extern const struct elementwise_kernels elementwise_generic;
extern const struct elementwise_kernels elementwise_avx2;
extern const struct elementwise_kernels elementwise_avx512;

#endif
