/* linear_rows_avx512.c - the matrix products of decoding, with AVX-512. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/linear_rows_template.h"
/* clang-format on */

static void dot_rows_f32(const struct dot_rows *args)
{
    dot_rows(args, true);
}

static void dot_rows_widened(const struct dot_rows *args)
{
    dot_rows(args, false);
}

const struct linear_rows_kernels linear_rows_f32_avx512 = {.dot_rows = dot_rows_f32};
const struct linear_rows_kernels linear_rows_bf16_avx512 = {
    .x_form = DOT_X_WIDENED,
    .dot_rows = dot_rows_widened,
};
