/* logit_histogram.c - count and mass of logits by key: blocks of the vocabulary, ids ascending
 * in each, added up in ascending order, so that the number of threads changes no bit. */
#include "kernels/cpu/cpu.h"

#include <math.h>

enum { HISTOGRAM_BLOCK = 1 << 14 };

/* NaN has no place in a distribution: it is not counted. */
static void count_block(struct logit_bin *bins, const struct logit_histogram *args, int r,
                        int begin, int end)
{
    const struct logit_filter *filter = &args->filters[r];
    const float *row = args->logits + (size_t)filter->row * (size_t)args->n;
    double peak = args->peaks[filter->row].value, temperature = filter->temperature;
    uint32_t prefix = args->shift < 24 ? filter->prefix : 0;

    memset(bins, 0, OP_HISTOGRAM_BINS * sizeof(*bins));
    for (int i = begin; i < end; i++) {
        uint32_t key = op_key(row[i]);
        uint32_t above = args->shift < 24 ? key >> (args->shift + 8) : 0;

        if (key != 0 && above == prefix) {
            struct logit_bin *bin = &bins[(key >> args->shift) & 0xffu];

            bin->count++;
            bin->mass += exp((row[i] - peak) / temperature);
        }
    }
}

static size_t blocks_of(int n)
{
    return ((size_t)n + HISTOGRAM_BLOCK - 1) / HISTOGRAM_BLOCK;
}

size_t cpu_logit_histogram_workspace(int rows, int n)
{
    return ((size_t)rows * blocks_of(n) * OP_HISTOGRAM_BINS + 1) * sizeof(struct logit_bin);
}

status cpu_logit_histogram(struct device *dev, const struct logit_histogram *args)
{
    size_t blocks = blocks_of(args->n);
    size_t row_bins = blocks * OP_HISTOGRAM_BINS;
    struct logit_bin *parts;
    void *memory;
    status st = cpu_workspace(dev, &memory, cpu_logit_histogram_workspace(args->rows, args->n));

    if (st) {
        return st;
    }
    parts = memory;
#pragma omp parallel for schedule(dynamic, 1) collapse(2) \
    num_threads(cpu_threads(dev, (size_t)args->rows *(size_t)args->n, HISTOGRAM_BLOCK / 4))
    for (int r = 0; r < args->rows; r++) {
        for (size_t b = 0; b < blocks; b++) {
            int begin = (int)b * HISTOGRAM_BLOCK;
            int end = args->n - begin < HISTOGRAM_BLOCK ? args->n : begin + HISTOGRAM_BLOCK;

            count_block(parts + (size_t)r * row_bins + b * OP_HISTOGRAM_BINS, args, r, begin, end);
        }
    }
    for (int r = 0; r < args->rows; r++) {
        struct logit_bin *out = args->out + (size_t)r * OP_HISTOGRAM_BINS;

        memset(out, 0, OP_HISTOGRAM_BINS * sizeof(*out));
        for (size_t i = 0; i < row_bins; i++) {
            const struct logit_bin *part = &parts[(size_t)r * row_bins + i];

            out[i % OP_HISTOGRAM_BINS].count += part->count;
            out[i % OP_HISTOGRAM_BINS].mass += part->mass;
        }
    }
    return STATUS_OK;
}
