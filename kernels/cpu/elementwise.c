/* elementwise.c - the additions and products between the matrix products, and row gathers. */
#include "kernels/cpu/elementwise.h"

#include "kernels/cpu/cpu.h"

enum { GRAIN = 1 << 15 };

status cpu_gather_rows(struct device *dev, void *out, const void *in, const int32_t *index, int n,
                       size_t row_bytes)
{
    int threads = cpu_threads(dev, (size_t)n * row_bytes, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int i = 0; i < n; i++) {
        memcpy((char *)out + (size_t)i * row_bytes, (const char *)in + (size_t)index[i] * row_bytes,
               row_bytes);
    }
    return STATUS_OK;
}

/* Pieces of GRAIN elements, so that a result never depends on the number of threads. */
static size_t pieces(size_t n)
{
    return (n + GRAIN - 1) / GRAIN;
}

static size_t piece_size(size_t n, size_t piece)
{
    size_t rest = n - piece * GRAIN;

    return rest < GRAIN ? rest : GRAIN;
}

status cpu_add(struct device *dev, float *x, const float *y, size_t n)
{
    const struct elementwise_kernels *kernels = cpu_device(dev)->isa->elementwise;
    int threads = cpu_threads(dev, n, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (size_t p = 0; p < pieces(n); p++) {
        kernels->add(x + p * GRAIN, y + p * GRAIN, piece_size(n, p));
    }
    return STATUS_OK;
}

status cpu_silu_mul(struct device *dev, void *out, const void *gate, const void *up, size_t n)
{
    const struct elementwise_kernels *kernels = cpu_device(dev)->isa->elementwise;
    bool wide = dev->dtype == DTYPE_F32;
    int threads = cpu_threads(dev, n, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (size_t p = 0; p < pieces(n); p++) {
        kernels->silu_mul(wide, act_at(dev, out, p * GRAIN), act_const_at(dev, gate, p * GRAIN),
                          act_const_at(dev, up, p * GRAIN), piece_size(n, p));
    }
    return STATUS_OK;
}
