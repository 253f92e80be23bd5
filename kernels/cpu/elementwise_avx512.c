/* elementwise_avx512.c - what lies between the matrix products, with AVX-512. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/elementwise_template.h"
/* clang-format on */

const struct elementwise_kernels elementwise_avx512 = ELEMENTWISE_KERNELS;
