/* select.c - scores of query heads become scores of cache heads: group reduction and pooling. */
#include "kernels/cpu/cpu.h"

#include <math.h>

enum { SELECT_BLOCK = 1024 }; /* columns that stay in the first-level cache */

/* to[j] = to[j] + from[j], or the larger one. */
static void accumulate(float *to, const float *from, int n, bool largest)
{
    if (largest) {
        for (int j = 0; j < n; j++) {
            to[j] = from[j] > to[j] ? from[j] : to[j];
        }
    } else {
        for (int j = 0; j < n; j++) {
            to[j] += from[j];
        }
    }
}

static void divide(float *to, int n, float by)
{
    for (int j = 0; j < n; j++) {
        to[j] /= by;
    }
}

status cpu_group_reduce(struct device *dev, float *out, const float *in, int groups, int group,
                        int n, enum group_reduce how)
{
    size_t cols = (size_t)n;
    int blocks = (n + SELECT_BLOCK - 1) / SELECT_BLOCK;

    /* Groups one after the other: out may alias in, and group i is written where only heads of
     * groups up to i lie. */
    for (int i = 0; i < groups; i++) {
        const float *first = in + (size_t)i * (size_t)group * cols;

#pragma omp parallel for schedule(static) \
    num_threads(cpu_threads(dev, (size_t)groups *(size_t)group *cols, 1 << 16))
        for (int b = 0; b < blocks; b++) {
            size_t col = (size_t)b * SELECT_BLOCK;
            int width = n - (int)col < SELECT_BLOCK ? n - (int)col : SELECT_BLOCK;
            float sum[SELECT_BLOCK];

            memcpy(sum, first + col, (size_t)width * sizeof(*sum));
            for (int h = 1; h < group; h++) {
                accumulate(sum, first + (size_t)h * cols + col, width, how == GROUP_MAX);
            }
            if (how == GROUP_MEAN) {
                divide(sum, width, (float)group);
            }
            memcpy(out + (size_t)i * cols + col, sum, (size_t)width * sizeof(*sum));
        }
    }
    return STATUS_OK;
}

/* Columns col..col + width of one row: taps in ascending order. */
static void pool_block(float *to, const float *from, const int span[3], int kernel,
                       enum pooling how)
{
    const int n = span[0], col = span[1], width = span[2];
    const int reach = kernel / 2;

    for (int j = 0; j < width; j++) {
        to[j] = how == POOLING_MAX ? -INFINITY : 0.0f;
    }
    for (int tap = -reach; tap <= reach; tap++) {
        int lo = col + tap < 0 ? -(col + tap) : 0;
        int hi = col + tap + width > n ? n - col - tap : width;

        if (lo < hi) {
            accumulate(to + lo, from + col + tap + lo, hi - lo, how == POOLING_MAX);
        }
    }
    if (how == POOLING_AVG) {
        divide(to, width, (float)kernel);
    }
}

status cpu_pool(struct device *dev, float *out, const float *in, int rows, int n, int kernel,
                enum pooling how)
{
    size_t cols = (size_t)n;
    int blocks = (n + SELECT_BLOCK - 1) / SELECT_BLOCK;
    size_t items = (size_t)rows * (size_t)blocks;

#pragma omp parallel for schedule(static) \
    num_threads(cpu_threads(dev, (size_t)rows *cols *(size_t)kernel, 1 << 17))
    for (size_t i = 0; i < items; i++) {
        size_t row = i / (size_t)blocks * cols;
        int col = (int)(i % (size_t)blocks) * SELECT_BLOCK;
        int width = n - col < SELECT_BLOCK ? n - col : SELECT_BLOCK;

        pool_block(out + row + (size_t)col, in + row, (const int[3]){n, col, width}, kernel, how);
    }
    return STATUS_OK;
}
