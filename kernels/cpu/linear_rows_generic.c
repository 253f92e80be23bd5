/* linear_rows_generic.c - the matrix products of decoding, in plain C. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/simd_generic.h"
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

const struct linear_rows_kernels linear_rows_f32_generic = {.dot_rows = dot_rows_f32};
const struct linear_rows_kernels linear_rows_bf16_generic = {
    .x_form = DOT_X_WIDENED,
    .dot_rows = dot_rows_widened,
};
