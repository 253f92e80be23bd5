/* embed.c - rows of the embedding table, widened to float32. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/linear_packed.h"

enum { GRAIN = 1 << 16 };

static void embed_row(const struct device *dev, float *out, int32_t id, const struct matrix *table,
                      int first_id)
{
    int64_t row = (int64_t)id - first_id;
    size_t cols = (size_t)table->cols;

    if (row < 0 || row >= table->rows) {
        memset(out, 0, cols * sizeof(float));
        return;
    }
    if (table->layout == MATRIX_PACKED) {
        linear_packed_row(out, table, (size_t)row);
        return;
    }
    const void *from = act_const_at(dev, table->data, (size_t)row * table->stride);
    if (dev->dtype == DTYPE_F32) {
        memcpy(out, from, cols * sizeof(float));
    } else {
        cpu_device_const(dev)->isa->elementwise->widen(out, from, cols);
    }
}

status cpu_embed(struct device *dev, float *out, const int32_t *ids, int n,
                 const struct matrix *table, int first_id)
{
    size_t cols = (size_t)table->cols;
    int threads = cpu_threads(dev, (size_t)n * cols, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < n; r++) {
        embed_row(dev, out + (size_t)r * cols, ids[r], table, first_id);
    }
    return STATUS_OK;
}
