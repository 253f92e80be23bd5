/*
 * convert.h - numbers of a weight file in another dtype.
 *
 * To bfloat16 and float16 the nearest value, ties to even, is taken; what float16 cannot hold
 * becomes infinite there.  Everything goes through float32, exactly.
 */
#ifndef WORKER_CONVERT_H
#define WORKER_CONVERT_H

#include "common/model_config.h"

/* n numbers at `from`, which need not be aligned. */
void convert(void *to, enum dtype to_dtype, const void *from, enum dtype from_dtype, size_t n);

#endif
