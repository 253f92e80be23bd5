/* simd_math.h - what the kernel templates share on top of one simd_*.h. */
#ifndef KERNELS_CPU_SIMD_MATH_H
#define KERNELS_CPU_SIMD_MATH_H

#include <stdbool.h>
#include <stddef.h>

/* Element i of activations, and those behind it: `wide` ones are float32, others bf16. */
static inline vec vec_load_act(bool wide, const void *p, size_t i)
{
    return wide ? vec_load((const float *)p + i) : vec_load_bf16((const uint16_t *)p + i);
}

static inline vec vec_load_act_part(bool wide, const void *p, size_t i, int n)
{
    return wide ? vec_load_part((const float *)p + i, n)
                : vec_load_bf16_part((const uint16_t *)p + i, n);
}

static inline void vec_store_act(bool wide, void *p, size_t i, vec x)
{
    if (wide) {
        vec_store((float *)p + i, x);
    } else {
        vec_store_bf16((uint16_t *)p + i, x);
    }
}

static inline void vec_store_act_part(bool wide, void *p, size_t i, vec x, int n)
{
    if (wide) {
        vec_store_part((float *)p + i, x, n);
    } else {
        vec_store_bf16_part((uint16_t *)p + i, x, n);
    }
}

/*
 * e^x to about one unit in the last place, over all floats: 0 below -104, infinity above 89.
 *
 * e^x = 2^n e^r with n whole and |r| <= ln(2)/2; e^r = 1 + r + r^2 q(r), q fitted for the least
 * largest relative error (4e-9).  2^n is applied in two steps, so that it may leave the range.
 */
static inline vec vec_exp(vec x)
{
    const vec log2e = vec_set1(0x1.715476p0f);
    const vec minus_ln2_high = vec_set1(-0x1.63p-1f); /* few bits: n * high is exact */
    const vec minus_ln2_low = vec_set1(0x1.bd0106p-13f);

    x = vec_min(vec_set1(89.0f), vec_max(vec_set1(-104.0f), x));
    vec n = vec_round(vec_mul(x, log2e));
    vec r = vec_fma(n, minus_ln2_low, vec_fma(n, minus_ln2_high, x));

    vec q = vec_fma(vec_set1(0x1.6a2352p-10f), r, vec_set1(0x1.123a6cp-7f));
    q = vec_fma(q, r, vec_set1(0x1.5558f4p-5f));
    q = vec_fma(q, r, vec_set1(0x1.55549p-3f));
    q = vec_fma(q, r, vec_set1(0x1.fffffcp-2f));
    vec e = vec_add(vec_set1(1.0f), vec_fma(vec_mul(r, r), q, r));

    vec half = vec_round(vec_mul(n, vec_set1(0.5f)));
    return vec_scale_power(vec_scale_power(e, half), vec_sub(n, half));
}

/* 2^x for x <= 0 (relative error 1e-7; exactly 1 at 0; zero below 2^-126, or a denormal). */
static inline vec vec_exp2(vec x)
{
    vec whole, f;

    vec_split_power(x, &whole, &f);
    vec p = vec_set1(0x1.41fbbcp-13f);
    p = vec_fma(p, f, vec_set1(0x1.5f3e54p-10f));
    p = vec_fma(p, f, vec_set1(0x1.3b2d4cp-7f));
    p = vec_fma(p, f, vec_set1(0x1.c6aee8p-5f));
    p = vec_fma(p, f, vec_set1(0x1.ebfbdcp-3f));
    p = vec_fma(p, f, vec_set1(0x1.62e430p-1f));
    p = vec_fma(p, f, vec_set1(1.0f));
    return vec_scale_power(p, whole);
}

/* The same to 3e-6, for what is rounded to bf16 anyway. */
static inline vec vec_exp2_bf16(vec x)
{
    vec whole, f;

    vec_split_power(x, &whole, &f);
    vec p = vec_set1(0x1.3a02ccp-7f);
    p = vec_fma(p, f, vec_set1(0x1.c9fc46p-5f));
    p = vec_fma(p, f, vec_set1(0x1.ec0378p-3f));
    p = vec_fma(p, f, vec_set1(0x1.62e12cp-1f));
    p = vec_fma(p, f, vec_set1(1.0f));
    return vec_scale_power(p, whole);
}

#endif
