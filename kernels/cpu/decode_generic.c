/* decode_generic.c - decode attention with simd_generic.h. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/decode.h"
#include "kernels/cpu/simd_generic.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/decode_template.h"
/* clang-format on */

const struct decode_kernels decode_generic = {
    .split = decode_run_split,
    .mass = decode_run_mass,
};
