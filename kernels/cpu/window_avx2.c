/* window_avx2.c - window scores with simd_avx2.h. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/window.h"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/units_f32.h"
#include "kernels/cpu/mm_vector.h"
#include "kernels/cpu/pack_keys.h"
#include "kernels/cpu/window_template.h"
/* clang-format on */

const struct window_kernels window_avx2 = {
    .load_rows = window_load_rows,
    .sums = window_sums,
    .scores = window_run_scores,
};
