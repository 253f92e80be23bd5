/*
 * convert.h - numbers of a weight file in another dtype.
 *
 * To bfloat16 the nearest value, ties to even, is taken; float16 goes through float32, exactly.
 */
#ifndef WORKER_CONVERT_H
#define WORKER_CONVERT_H

#include "common/model_config.h"

/* n numbers at `from`, which need not be aligned, to `to` of DTYPE_F32 or DTYPE_BF16 (or any
 * dtype that is that of `from`). */
void convert(void *to, enum dtype to_dtype, const void *from, enum dtype from_dtype, size_t n);

#endif
