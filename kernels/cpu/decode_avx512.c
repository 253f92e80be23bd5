/* decode_avx512.c - decode attention with simd_avx512.h. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/decode.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/decode_template.h"
/* clang-format on */

const struct decode_kernels decode_avx512 = {
    .split = decode_run_split,
    .mass = decode_run_mass,
};
