/* int8_dot_avx2.c - int8 dot products with AVX2: products of 16 bits, added in pairs. */
#include "kernels/cpu/int8.h"

#include <immintrin.h>
#include <string.h>

typedef __m256i ivec;
typedef __m256i wvec;

enum { DOT_STEP = 16, DOT_OFFSET = 0 };

static inline ivec dot_zero(void)
{
    return _mm256_setzero_si256();
}

static inline wvec dot_load(const int8_t *w)
{
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
}

static inline wvec dot_load_part(const int8_t *w, size_t n)
{
    int8_t part[DOT_STEP] = {0};

    memcpy(part, w, n);
    return dot_load(part);
}

static inline ivec dot_add(ivec sum, wvec w, const int8_t *x)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(w, dot_load(x)));
}

static inline int64_t dot_sum(ivec sum)
{
    int32_t lane[8];
    int64_t total = 0;

    _mm256_storeu_si256((__m256i *)lane, sum);
    for (int i = 0; i < 8; i++) {
        total += lane[i];
    }
    return total;
}

#include "kernels/cpu/int8_dot_template.h"

void int8_dot_avx2(const struct int8_dot *args)
{
    dot_run(args);
}
