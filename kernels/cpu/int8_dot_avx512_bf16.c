/* int8_dot_avx512_bf16.c - int8 dot products with AVX512-VNNI, which processors with AVX512-BF16
 * have, too.  One operand of its products is unsigned: the weights, with 128 added. */
#include "kernels/cpu/int8.h"

#include <immintrin.h>
#include <string.h>

typedef __m512i ivec;
typedef __m512i wvec;

enum { DOT_STEP = 64, DOT_OFFSET = 128 };

static inline ivec dot_zero(void)
{
    return _mm512_setzero_si512();
}

static inline wvec dot_load(const int8_t *w)
{
    return _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8((char)0x80));
}

static inline wvec dot_load_part(const int8_t *w, size_t n)
{
    __m512i part = _mm512_maskz_loadu_epi8(((__mmask64)1 << n) - 1, w);

    return _mm512_xor_si512(part, _mm512_set1_epi8((char)0x80));
}

static inline ivec dot_add(ivec sum, wvec w, const int8_t *x)
{
    return _mm512_dpbusd_epi32(sum, w, _mm512_loadu_si512(x));
}

static inline int64_t dot_sum(ivec sum)
{
    __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(sum));
    __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(sum, 1));

    return _mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
}

#include "kernels/cpu/int8_dot_template.h"

void int8_dot_avx512_bf16(const struct int8_dot *args)
{
    dot_run(args);
}
