/* int8_dot_avx512.c - int8 dot products with AVX-512: products of 16 bits, added in pairs. */
#include "kernels/cpu/int8.h"

#include <immintrin.h>
#include <string.h>

typedef __m512i ivec;
typedef __m512i wvec;

enum { DOT_STEP = 32, DOT_OFFSET = 0 };

static inline ivec dot_zero(void)
{
    return _mm512_setzero_si512();
}

static inline wvec dot_load(const int8_t *w)
{
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w));
}

static inline wvec dot_load_part(const int8_t *w, size_t n)
{
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(((__mmask32)1 << n) - 1, w));
}

static inline ivec dot_add(ivec sum, wvec w, const int8_t *x)
{
    return _mm512_add_epi32(sum, _mm512_madd_epi16(w, dot_load(x)));
}

static inline int64_t dot_sum(ivec sum)
{
    __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(sum));
    __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(sum, 1));

    return _mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
}

#include "kernels/cpu/int8_dot_template.h"

void int8_dot_avx512(const struct int8_dot *args)
{
    dot_run(args);
}
