/* units_bf16.h - the same words over pairs of bf16, for AVX512-BF16 and AMX. */
#ifndef KERNELS_CPU_UNITS_H
#define KERNELS_CPU_UNITS_H

#include "kernels/cpu/cpu.h"

enum { UNIT_ELEMENTS = 2 };

static inline vec unit_fma(vec sum, vec a, vec b)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

static inline void units_load(float *out, enum dtype dtype, const void *data, size_t at, int d)
{
    (void)dtype;
    memcpy(out, (const bf16 *)data + at, (size_t)d * sizeof(bf16));
}

static inline vec units_vec(enum dtype dtype, const void *data, size_t at)
{
    (void)dtype;
    return _mm512_castsi512_ps(_mm512_loadu_si512((const bf16 *)data + at));
}

static inline vec units_vec_part(enum dtype dtype, const void *data, size_t at, int n)
{
    (void)dtype;
    return _mm512_castsi512_ps(
        _mm512_maskz_loadu_epi32(vec_first_lanes(n), (const bf16 *)data + at));
}

/* Column c of two rows becomes unit c. */
static inline void units_pack_values(float *out, enum dtype dtype, const void *data,
                                     const size_t at[UNIT_ELEMENTS], int n)
{
    const bf16 *a = (const bf16 *)data + at[0];
    const bf16 *b = (const bf16 *)data + at[1];

    (void)dtype;
    for (int i = 0; i < n; i += VEC_LANES) {
        __mmask16 lanes = vec_first_lanes(n - i < VEC_LANES ? n - i : VEC_LANES);
        __m512i lo = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, a + i));
        __m512i hi = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, b + i));

        _mm512_mask_storeu_epi32(out + i, lanes, _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16)));
    }
}

static inline float *units_weights(const float *s, float *p)
{
    (void)s;
    return p;
}

static inline void units_store_weights(float *row, int i, vec a, vec b)
{
    vec_store(row + (size_t)i * VEC_LANES, (vec)_mm512_cvtne2ps_pbh(b, a));
}

static inline vec unit_exp2(vec x)
{
    return vec_exp2_bf16(x);
}

#endif
