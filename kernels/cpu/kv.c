/* kv.c - rows of keys and values into the pages of the cache, as they are or in int8. */
#include "kernels/cpu/kv.h"

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/int8.h"

enum { GRAIN = 1 << 15 };

void kv_put_row(const struct device *dev, const struct kv_pool *pool, size_t row, const void *key,
                const void *value)
{
    const struct int8_kernels *kernels = cpu_device_const(dev)->isa->int8;
    size_t d = (size_t)pool->head_dim, bytes = d * act_bytes(dev);
    bool wide = dev->dtype == DTYPE_F32;

    if (pool->k_scale) {
        pool->k_scale[row] = kernels->quantize(wide, (int8_t *)pool->k + row * d, key, d);
        pool->v_scale[row] = kernels->quantize(wide, (int8_t *)pool->v + row * d, value, d);
    } else {
        memcpy((char *)pool->k + row * bytes, key, bytes);
        memcpy((char *)pool->v + row * bytes, value, bytes);
    }
}

status cpu_kv_gather(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                     const void *k, const void *v, const int32_t *index, int n)
{
    size_t bytes = (size_t)n * (size_t)pool->head_dim * act_bytes(dev);
    int threads = cpu_threads(dev, bytes, GRAIN);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int i = 0; i < n; i++) {
        size_t from = (index ? (size_t)index[i] : (size_t)i) * (size_t)pool->head_dim;

        kv_put_row(dev, pool, kv_row_of(pool, pages, i), act_const_at(dev, k, from),
                   act_const_at(dev, v, from));
    }
    return STATUS_OK;
}

status cpu_kv_note(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                   const struct kv_note *notes, int n)
{
    (void)dev;
    for (int i = 0; i < n; i++) {
        pool->notes[kv_row_of(pool, pages, i)] = notes[i];
    }
    return STATUS_OK;
}

status cpu_kv_move(struct device *dev, const struct kv_pool *pool, const int32_t *to,
                   const int32_t *from, int n)
{
    size_t bytes = (size_t)pool->head_dim * (pool->k_scale ? sizeof(int8_t) : act_bytes(dev));

    for (int i = 0; i < n; i++) {
        size_t a = (size_t)to[i], b = (size_t)from[i];

        memmove((char *)pool->k + a * bytes, (const char *)pool->k + b * bytes, bytes);
        memmove((char *)pool->v + a * bytes, (const char *)pool->v + b * bytes, bytes);
        if (pool->k_scale) {
            pool->k_scale[a] = pool->k_scale[b];
            pool->v_scale[a] = pool->v_scale[b];
        }
        if (pool->notes) {
            pool->notes[a] = pool->notes[b];
        }
    }
    return STATUS_OK;
}

status cpu_enter_pages(struct device *dev, const struct page_entry *list, int n)
{
    (void)dev;
    for (int i = 0; i < n; i++) {
        *list[i].at = list[i].page;
    }
    return STATUS_OK;
}
