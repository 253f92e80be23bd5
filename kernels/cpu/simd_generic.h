/*
 * simd_generic.h - the vector words that the kernel templates are written in, in plain C.
 *
 * attention_template.h and its sisters are compiled once for each instruction set: the source
 * that includes them chooses one simd_*.h first.  MM_ROWS x MM_VECS accumulators of a matrix
 * product fit the registers; the rest reads like the arithmetic it stands for.
 */
#ifndef KERNELS_CPU_SIMD_GENERIC_H
#define KERNELS_CPU_SIMD_GENERIC_H

#include "kernels/cpu/bf16.h"

#include <stdint.h>
#include <string.h>

enum { VEC_LANES = 4, MM_VECS = 2, MM_ROWS = 6 };

typedef float vec __attribute__((vector_size(16)));
typedef int32_t vec_bits __attribute__((vector_size(16)));

static inline vec vec_zero(void)
{
    return (vec){0.0f, 0.0f, 0.0f, 0.0f};
}

static inline vec vec_set1(float x)
{
    return (vec){x, x, x, x};
}

static inline vec vec_load(const float *p)
{
    vec x;

    memcpy(&x, p, sizeof(x));
    return x;
}

static inline void vec_store(float *p, vec x)
{
    memcpy(p, &x, sizeof(x));
}

/* The first n lanes; zeros behind them. */
static inline vec vec_load_part(const float *p, int n)
{
    vec x = vec_zero();

    for (int i = 0; i < n; i++) {
        x[i] = p[i];
    }
    return x;
}

static inline void vec_store_part(float *p, vec x, int n)
{
    for (int i = 0; i < n; i++) {
        p[i] = x[i];
    }
}

static inline vec vec_load_bf16(const uint16_t *p)
{
    return (vec)(vec_bits){(int32_t)((uint32_t)p[0] << 16), (int32_t)((uint32_t)p[1] << 16),
                           (int32_t)((uint32_t)p[2] << 16), (int32_t)((uint32_t)p[3] << 16)};
}

static inline vec vec_load_bf16_part(const uint16_t *p, int n)
{
    uint16_t whole[VEC_LANES] = {0};

    for (int i = 0; i < n; i++) {
        whole[i] = p[i];
    }
    return vec_load_bf16(whole);
}

static inline vec vec_load_int8(const int8_t *p)
{
    return (vec){(float)p[0], (float)p[1], (float)p[2], (float)p[3]};
}

static inline vec vec_load_int8_part(const int8_t *p, int n)
{
    int8_t whole[VEC_LANES] = {0};

    for (int i = 0; i < n; i++) {
        whole[i] = p[i];
    }
    return vec_load_int8(whole);
}

static inline void vec_store_bf16_part(uint16_t *p, vec x, int n)
{
    for (int i = 0; i < n; i++) {
        p[i] = bf16_from_float(x[i]);
    }
}

static inline void vec_store_bf16(uint16_t *p, vec x)
{
    vec_store_bf16_part(p, x, VEC_LANES);
}

static inline vec vec_add(vec a, vec b)
{
    return a + b;
}

static inline vec vec_mul(vec a, vec b)
{
    return a * b;
}

static inline vec vec_sub(vec a, vec b)
{
    return a - b;
}

static inline vec vec_div(vec a, vec b)
{
    return a / b;
}

static inline vec vec_choose(vec_bits which, vec yes, vec no)
{
    return (vec)((which & (vec_bits)yes) | (~which & (vec_bits)no));
}

static inline vec vec_max(vec a, vec b)
{
    return vec_choose(a > b, a, b);
}

static inline vec vec_min(vec a, vec b)
{
    return vec_choose(a < b, a, b);
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return a * b + c;
}

static inline int vec_any_greater(vec a, vec b)
{
    vec_bits more = a > b;

    return (more[0] | more[1] | more[2] | more[3]) != 0;
}

/* Lanes lo <= i < hi of x, `other` elsewhere. */
static inline vec vec_between(vec x, float other, int lo, int hi)
{
    vec_bits i = {0, 1, 2, 3};
    vec_bits from = {lo, lo, lo, lo};
    vec_bits to = {hi, hi, hi, hi};

    return vec_choose((i >= from) & (i < to), x, vec_set1(other));
}

static inline float vec_hmax(vec x)
{
    float a = x[0] > x[1] ? x[0] : x[1];
    float b = x[2] > x[3] ? x[2] : x[3];

    return a > b ? a : b;
}

static inline float vec_hsum(vec x)
{
    return (x[0] + x[1]) + (x[2] + x[3]);
}

/* To the nearest whole number, for magnitudes below 2^22. */
static inline vec vec_round(vec x)
{
    const vec magic = vec_set1(12582912.0f); /* 1.5 * 2^23 */

    return (x + magic) - magic;
}

/* x = whole + rest, |rest| <= 1/2; what is below 2^-126 counts as -127. */
static inline void vec_split_power(vec x, vec *whole, vec *rest)
{
    const vec magic = vec_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */

    x = vec_max(x, vec_set1(-127.0f));
    *whole = (x + magic) - magic;
    *rest = x - *whole;
}

/* x * 2^whole for whole >= -127, which gives zero. */
static inline vec vec_scale_power(vec x, vec whole)
{
    vec_bits exponent = {(int32_t)whole[0] + 127, (int32_t)whole[1] + 127, (int32_t)whole[2] + 127,
                         (int32_t)whole[3] + 127};

    return x * (vec)(exponent << 23);
}

/* Lane j of x[i] changes places with lane i of x[j]. */
static inline void vec_transpose(vec x[VEC_LANES])
{
    for (int i = 0; i < VEC_LANES; i++) {
        for (int j = 0; j < i; j++) {
            float lane = x[i][j];

            x[i][j] = x[j][i];
            x[j][i] = lane;
        }
    }
}

/* Sums of VEC_LANES vectors: lane i of the result is the sum of x[i]. */
static inline vec vec_sums(const vec *x)
{
    return (vec){vec_hsum(x[0]), vec_hsum(x[1]), vec_hsum(x[2]), vec_hsum(x[3])};
}

#endif
