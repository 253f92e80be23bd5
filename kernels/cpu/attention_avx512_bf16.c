/* attention_avx512_bf16.c - prompt attention on pairs of bf16 with AVX512-BF16. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/attention.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/units_bf16.h"
#include "kernels/cpu/mm_vector.h"
#include "kernels/cpu/pack_keys.h"
#include "kernels/cpu/attention_template.h"
/* clang-format on */

const struct attention_kernels attention_avx512_bf16 = {
    .name = "avx512_bf16",
    .item = attention_run_item,
};
