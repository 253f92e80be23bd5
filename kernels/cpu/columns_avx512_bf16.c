/* columns_avx512_bf16.c - column sums on pairs of bf16 with AVX512-BF16. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/columns.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/units_bf16.h"
#include "kernels/cpu/mm_vector.h"
#include "kernels/cpu/pack_keys.h"
#include "kernels/cpu/columns_template.h"
/* clang-format on */

const struct columns_kernels columns_avx512_bf16 = {
    .load_rows = columns_load_rows,
    .lse = columns_lse,
    .sums = columns_sums,
};
