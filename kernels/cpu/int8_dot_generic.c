/* int8_dot_generic.c - int8 dot products for every processor. */
#include "kernels/cpu/int8.h"

void int8_dot_generic(const struct int8_dot *args)
{
    for (int r = 0; r < args->rows; r++) {
        const int8_t *high = args->x + (size_t)r * INT8_PLANES * args->padded;
        const int8_t *low = high + args->padded;

        for (int j = 0; j < args->features; j++) {
            const int8_t *w = args->w + (size_t)j * args->w_stride;
            int64_t sum = 0;

            for (int k = 0; k < args->cols; k++) {
                sum += (int64_t)(256 * high[k] + low[k]) * w[k];
            }
            args->out[(size_t)r * args->out_stride + (size_t)j] = sum;
        }
    }
}
