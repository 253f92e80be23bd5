/*
 * units_f32.h - matrix products of the kernel templates over float32 units.
 *
 * A unit is what one lane of an operand holds: here one float32, in units_bf16.h two bf16.
 * bf16 tensors are widened while they are packed.
 */
#ifndef KERNELS_CPU_UNITS_H
#define KERNELS_CPU_UNITS_H

#include "kernels/cpu/cpu.h"

enum { UNIT_ELEMENTS = 1 };

static inline vec unit_fma(vec sum, vec a, vec b)
{
    return vec_fma(a, b, sum);
}

/* Elements at..at + d of a tensor as units. */
static inline void units_load(float *out, enum dtype dtype, const void *data, size_t at, int d)
{
    if (dtype == DTYPE_F32) {
        memcpy(out, (const float *)data + at, (size_t)d * sizeof(*out));
        return;
    }
    for (int i = 0; i < d; i++) {
        out[i] = bf16_to_float(((const bf16 *)data)[at + (size_t)i]);
    }
}

/* VEC_LANES units from element `at`, or the first n of them and zeros. */
static inline vec units_vec(enum dtype dtype, const void *data, size_t at)
{
    return dtype == DTYPE_F32 ? vec_load((const float *)data + at)
                              : vec_load_bf16((const bf16 *)data + at);
}

static inline vec units_vec_part(enum dtype dtype, const void *data, size_t at, int n)
{
    return dtype == DTYPE_F32 ? vec_load_part((const float *)data + at, n)
                              : vec_load_bf16_part((const bf16 *)data + at, n);
}

/* `n` columns of a row of values into one packed row. */
static inline void units_pack_values(float *out, enum dtype dtype, const void *data,
                                     const size_t at[UNIT_ELEMENTS], int n)
{
    units_load(out, dtype, data, at[0], n);
}

/* Weights 2 * i and 2 * i + 1 vectors of a row; they replace its scores. */
static inline float *units_weights(float *s, const float *p)
{
    (void)p;
    return s;
}

static inline void units_store_weights(float *row, int i, vec a, vec b)
{
    vec_store(row + (size_t)2 * (size_t)i * VEC_LANES, a);
    vec_store(row + ((size_t)2 * (size_t)i + 1) * VEC_LANES, b);
}

static inline vec unit_exp2(vec x)
{
    return vec_exp2(x);
}

#endif
