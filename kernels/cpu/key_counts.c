/* key_counts.c - scores counted by 8 bits of their keys, each row by itself. */
#include "kernels/cpu/cpu.h"

enum { GRAIN = 1 << 15 };

static void count_row(int32_t *bins, const float *scores, const struct key_counts *args)
{
    memset(bins, 0, OP_KEY_BINS * sizeof(*bins));
    if (args->shift == 24) {
        for (int i = 0; i < args->n; i++) {
            bins[op_key(scores[i] + 0.0f) >> 24]++;
        }
        return;
    }
    for (int i = 0; i < args->n; i++) {
        uint32_t key = op_key(scores[i] + 0.0f); /* -0 equals +0 */

        if (key >> (args->shift + 8) == args->prefix) {
            bins[(key >> args->shift) % OP_KEY_BINS]++;
        }
    }
}

status cpu_key_counts(struct device *dev, const struct key_counts *args)
{
    size_t n = (size_t)args->n;

#pragma omp parallel for num_threads(cpu_threads(dev, (size_t)args->rows *n, GRAIN))
    for (int r = 0; r < args->rows; r++) {
        count_row(args->out + (size_t)r * OP_KEY_BINS, args->scores + (size_t)r * n, args);
    }
    return STATUS_OK;
}
