/* rmsnorm.c - each row over its root mean square, times the weight; after an addition, if wanted.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/elementwise.h"

enum { GRAIN = 1 << 14 };

status cpu_rmsnorm(struct device *dev, void *out, const float *x, const float *weight, int rows,
                   int cols, float eps)
{
    const struct elementwise_kernels *kernels = cpu_device(dev)->isa->elementwise;
    bool wide = dev->dtype == DTYPE_F32;
    size_t n = (size_t)cols;
    int threads = cpu_threads(dev, (size_t)rows * n, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < rows; r++) {
        kernels->rmsnorm(wide, act_at(dev, out, (size_t)r * n), x + (size_t)r * n, weight, n, eps);
    }
    return STATUS_OK;
}

status cpu_add_rmsnorm(struct device *dev, void *out, float *x, const float *y, const float *weight,
                       int rows, int cols, float eps)
{
    const struct elementwise_kernels *kernels = cpu_device(dev)->isa->elementwise;
    bool wide = dev->dtype == DTYPE_F32;
    size_t n = (size_t)cols;
    int threads = cpu_threads(dev, (size_t)rows * n, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < rows; r++) {
        float *row = x + (size_t)r * n;

        kernels->add(row, y + (size_t)r * n, n);
        kernels->rmsnorm(wide, act_at(dev, out, (size_t)r * n), row, weight, n, eps);
    }
    return STATUS_OK;
}
