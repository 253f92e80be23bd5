/*
 * gemm.h - the library's matrix product (oneDNN), its primitives made once for each shape.
 *
 * Making a primitive takes milliseconds (it generates code), so the most recently used ones are
 * kept.  Weights stay as they lie in the model file; nothing is packed or copied here.
 */
#ifndef KERNELS_CPU_GEMM_H
#define KERNELS_CPU_GEMM_H

#include "common/model_config.h"
#include "common/status.h"

#include <stddef.h>

struct gemms;

/* out (rows, n) = x (rows, k) w^T, w (n, k); rows of w and out are *_stride elements apart. */
struct gemm_shape {
    int rows, n, k;
    size_t w_stride;
    size_t out_stride;
    enum dtype in, out;
};

status gemms_create(struct gemms **out);
void gemms_destroy(struct gemms *gemms); /* NULL is fine */
status gemms_run(struct gemms *gemms, const struct gemm_shape *shape, void *out, const void *x,
                 const void *w, int threads);

#endif
