/* attention_avx2.c - prompt attention with AVX2 and FMA. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/attention.h"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/units_f32.h"
#include "kernels/cpu/mm_vector.h"
#include "kernels/cpu/pack_keys.h"
#include "kernels/cpu/attention_template.h"
/* clang-format on */

const struct attention_kernels attention_avx2 = {
    .name = "avx2",
    .item = attention_run_item,
};
