/* columns_avx512.c - column sums with AVX-512. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/columns.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/units_f32.h"
#include "kernels/cpu/mm_vector.h"
#include "kernels/cpu/pack_keys.h"
#include "kernels/cpu/columns_template.h"
/* clang-format on */

const struct columns_kernels columns_avx512 = {
    .load_rows = columns_load_rows,
    .lse = columns_lse,
    .sums = columns_sums,
};
