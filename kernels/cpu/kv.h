/* kv.h - how rows enter the pages of the cache. */
#ifndef KERNELS_CPU_KV_H
#define KERNELS_CPU_KV_H

#include "kernels/op.h"

/* key and value (head_dim) of act become row `row` of the pool. */
void kv_put_row(const struct device *dev, const struct kv_pool *pool, size_t row, const void *key,
                const void *value);

#endif
