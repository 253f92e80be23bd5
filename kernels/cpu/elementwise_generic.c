/* elementwise_generic.c - what lies between the matrix products, in plain C. */
/* Each header is written in the words of the ones before it. */
/* clang-format off */
#include "kernels/cpu/simd_generic.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/elementwise_template.h"
/* clang-format on */

const struct elementwise_kernels elementwise_generic = ELEMENTWISE_KERNELS;
