/* int8_avx512.c - rows in int8, with AVX-512. */
#include "kernels/cpu/int8_template.h"

const struct int8_kernels int8_avx512 = INT8_KERNELS;
