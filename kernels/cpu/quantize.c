/* quantize.c - weights in int8, row by row. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/int8.h"

#include <math.h>

enum { GRAIN = 1 << 16 };

status cpu_quantize(struct device *dev, int8_t *out, float *scale, const struct matrix *w)
{
    const struct int8_kernels *kernels = cpu_device(dev)->isa->int8;
    bool wide = dev->dtype == DTYPE_F32;
    size_t cols = (size_t)w->cols;
    int threads = cpu_threads(dev, (size_t)w->rows * cols, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < w->rows; r++) {
        const void *row = act_const_at(dev, w->data, (size_t)r * w->stride);

        scale[r] = kernels->quantize(wide, out + (size_t)r * cols, row, cols);
    }
    for (int r = 0; r < w->rows; r++) {
        if (!isfinite(scale[r])) {
            return status_fail(STATUS_INVALID, "int8: row %d is not finite", r);
        }
    }
    return STATUS_OK;
}
