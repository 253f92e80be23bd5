/* kv.h - how rows enter the pages of the cache. */
#ifndef KERNELS_CPU_KV_H
#define KERNELS_CPU_KV_H

#include "kernels/op.h"

/* Where row i of a page table is in the pool. */
static inline size_t kv_row_of(const struct kv_pool *pool, const int32_t *pages, int i)
{
    return (size_t)pages[i / pool->page_rows] * (size_t)pool->page_rows +
           (size_t)(i % pool->page_rows);
}

/* key and value (head_dim) of act become row `row` of the pool. */
void kv_put_row(const struct device *dev, const struct kv_pool *pool, size_t row, const void *key,
                const void *value);

#endif
