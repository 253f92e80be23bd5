/* elementwise_avx2.c - what lies between the matrix products, with AVX2. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/elementwise_template.h"
/* clang-format on */

const struct elementwise_kernels elementwise_avx2 = ELEMENTWISE_KERNELS;
