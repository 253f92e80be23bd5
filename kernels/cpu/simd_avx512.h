/* simd_avx512.h - the vector words of the kernel templates, 16 floats wide.  See simd_generic.h. */
#ifndef KERNELS_CPU_SIMD_AVX512_H
#define KERNELS_CPU_SIMD_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

enum { VEC_LANES = 16, MM_VECS = 4, MM_ROWS = 6 };

typedef __m512 vec;

static inline vec vec_zero(void)
{
    return _mm512_setzero_ps();
}

static inline vec vec_set1(float x)
{
    return _mm512_set1_ps(x);
}

static inline vec vec_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void vec_store(float *p, vec x)
{
    _mm512_storeu_ps(p, x);
}

static inline __mmask16 vec_first_lanes(int n)
{
    return (__mmask16)((1u << n) - 1u);
}

static inline vec vec_load_part(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(vec_first_lanes(n), p);
}

static inline void vec_store_part(float *p, vec x, int n)
{
    _mm512_mask_storeu_ps(p, vec_first_lanes(n), x);
}

static inline vec vec_from_bits16(__m256i bits)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

static inline vec vec_load_bf16(const uint16_t *p)
{
    return vec_from_bits16(_mm256_loadu_si256((const __m256i *)p));
}

static inline vec vec_load_bf16_part(const uint16_t *p, int n)
{
    return vec_from_bits16(_mm256_maskz_loadu_epi16(vec_first_lanes(n), p));
}

static inline vec vec_load_int8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

static inline vec vec_load_int8_part(const int8_t *p, int n)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(vec_first_lanes(n), p)));
}

/* Rounded to nearest, ties to even; NaN stays NaN. */
static inline __m256i vec_to_bits16(vec x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    __m512i chosen = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));

    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}

static inline void vec_store_bf16(uint16_t *p, vec x)
{
    _mm256_storeu_si256((__m256i *)p, vec_to_bits16(x));
}

static inline void vec_store_bf16_part(uint16_t *p, vec x, int n)
{
    _mm256_mask_storeu_epi16(p, vec_first_lanes(n), vec_to_bits16(x));
}

static inline vec vec_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}

static inline vec vec_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

static inline vec vec_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}

static inline vec vec_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}

static inline vec vec_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}

static inline vec vec_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline int vec_any_greater(vec a, vec b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
}

/* Lanes lo <= i < hi of x, `other` elsewhere. */
static inline vec vec_between(vec x, float other, int lo, int hi)
{
    uint32_t below_hi = hi >= 16 ? 0xffffu : hi <= 0 ? 0u : (1u << hi) - 1u;
    uint32_t below_lo = lo >= 16 ? 0xffffu : lo <= 0 ? 0u : (1u << lo) - 1u;

    return _mm512_mask_blend_ps((__mmask16)(below_hi & ~below_lo), _mm512_set1_ps(other), x);
}

static inline float vec_hmax(vec x)
{
    return _mm512_reduce_max_ps(x);
}

static inline float vec_hsum(vec x)
{
    return _mm512_reduce_add_ps(x);
}

static inline vec vec_round(vec x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline void vec_split_power(vec x, vec *whole, vec *rest)
{
    *whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    *rest = _mm512_sub_ps(x, *whole);
}

static inline vec vec_scale_power(vec x, vec whole)
{
    return _mm512_scalef_ps(x, whole);
}

/* Lane j of x[i] changes places with lane i of x[j]: inside the 128-bit lanes, then the lanes. */
static inline void vec_transpose(vec x[VEC_LANES])
{
    __m512 a[16], b[16];

#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const int j = 2 * i;

        a[j] = _mm512_unpacklo_ps(x[j], x[j + 1]);
        a[j + 1] = _mm512_unpackhi_ps(x[j], x[j + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 even01 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
        __m512 odd01 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
        __m512 even23 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
        __m512 odd23 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);

        x[i] = _mm512_shuffle_f32x4(even01, even23, 0x88);
        x[i + 4] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
        x[i + 8] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
        x[i + 12] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
    }
}

/* Sums of 16 vectors: lane i of the result is the sum of x[i]. */
static inline vec vec_sums(const vec *x)
{
    __m512 a[16], b[16];

    for (size_t i = 0; i < 8; i++) {
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]),
                             _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
    }
    for (size_t i = 0; i < 4; i++) {
        b[i] = _mm512_add_ps(_mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44),
                             _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
    }
    /* b[i]: in each 128-bit lane the partial sums of x[4i .. 4i+3] */
    __m512 c0 = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88),
                              _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
    __m512 c1 = _mm512_add_ps(_mm512_shuffle_f32x4(b[2], b[3], 0x88),
                              _mm512_shuffle_f32x4(b[2], b[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(c0, c1, 0x88), _mm512_shuffle_f32x4(c0, c1, 0xdd));
}

#endif
