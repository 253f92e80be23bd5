/* linear_rows_avx512_bf16.c - the matrix products of decoding with AVX512-BF16. */
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/simd_avx512.h"

enum dot_kind { DOT_F32, DOT_WIDEN, DOT_PAIRS };

/* A vector holds 32 bf16; its type is that of the sums, and the bits are never read as floats. */
static inline size_t dot_lanes(enum dot_kind kind)
{
    (void)kind;
    return 32;
}

static inline vec dot_load(bool wide, const void *p, size_t i)
{
    (void)wide;
    return _mm512_loadu_ps((const bf16 *)p + i);
}

static inline vec dot_load_part(bool wide, const void *p, size_t i, size_t n)
{
    (void)wide;
    return _mm512_castsi512_ps(
        _mm512_maskz_loadu_epi16((__mmask32)((1u << n) - 1u), (const bf16 *)p + i));
}

static inline vec dot_step(enum dot_kind kind, vec x, vec w, vec sum)
{
    (void)kind;
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
}

#include "kernels/cpu/linear_rows_template.h"

static void dot_rows_pairs(const struct dot_rows *args)
{
    dot_rows(args, DOT_PAIRS);
}

const struct linear_rows_kernels linear_rows_bf16_avx512_bf16 = {.dot_rows = dot_rows_pairs};
