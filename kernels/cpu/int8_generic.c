/* int8_generic.c - rows in int8, for every processor. */
#include "kernels/cpu/int8_template.h"

const struct int8_kernels int8_generic = INT8_KERNELS;
