/* int8_avx2.c - rows in int8, with AVX2. */
#include "kernels/cpu/int8_template.h"

const struct int8_kernels int8_avx2 = INT8_KERNELS;
