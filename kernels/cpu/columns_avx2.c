/* columns_avx2.c - column sums with AVX2 and FMA. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/columns.h"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/units_f32.h"
#include "kernels/cpu/mm_vector.h"
#include "kernels/cpu/pack_keys.h"
#include "kernels/cpu/columns_template.h"
/* clang-format on */

const struct columns_kernels columns_avx2 = {
    .load_rows = columns_load_rows,
    .lse = columns_lse,
    .sums = columns_sums,
};
