/* kv.c - rows of keys and values into the pages of the cache. */
#include "kernels/cpu/cpu.h"

enum { GRAIN = 1 << 15 };

status cpu_kv_gather(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                     const void *k, const void *v, const int32_t *index, int n)
{
    size_t bytes = (size_t)pool->head_dim * act_bytes(dev);

#pragma omp parallel for num_threads(cpu_threads(dev, (size_t)n *bytes, GRAIN))
    for (int i = 0; i < n; i++) {
        size_t row = (size_t)pages[i / pool->page_rows] * (size_t)pool->page_rows +
                     (size_t)(i % pool->page_rows);
        size_t from = index ? (size_t)index[i] : (size_t)i;

        memcpy((char *)pool->k + row * bytes, (const char *)k + from * bytes, bytes);
        memcpy((char *)pool->v + row * bytes, (const char *)v + from * bytes, bytes);
    }
    return STATUS_OK;
}

status cpu_kv_move(struct device *dev, const struct kv_pool *pool, const int32_t *to,
                   const int32_t *from, int n)
{
    size_t bytes = (size_t)pool->head_dim * act_bytes(dev);

    for (int i = 0; i < n; i++) {
        size_t a = (size_t)to[i] * bytes, b = (size_t)from[i] * bytes;

        memmove((char *)pool->k + a, (const char *)pool->k + b, bytes);
        memmove((char *)pool->v + a, (const char *)pool->v + b, bytes);
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

status cpu_kv_read(struct device *dev, const struct kv_pool *pool, const int32_t *pages, void *k,
                   void *v, int n)
{
    size_t bytes = (size_t)pool->head_dim * act_bytes(dev);

    for (int i = 0; i < n; i++) {
        size_t row = (size_t)pages[i / pool->page_rows] * (size_t)pool->page_rows +
                     (size_t)(i % pool->page_rows);

        memcpy((char *)k + (size_t)i * bytes, (const char *)pool->k + row * bytes, bytes);
        memcpy((char *)v + (size_t)i * bytes, (const char *)pool->v + row * bytes, bytes);
    }
    return STATUS_OK;
}
