/* kvcache_bytes.c - what rows and pages take, without a cache. */
#include "common/plan.h"
#include "worker/kvcache.h"

static size_t element_bytes(const struct kvcache_config *config, enum dtype dtype)
{
    return config->int8 ? sizeof(int8_t) : dtype_bytes(dtype);
}

uint64_t kvcache_row_bytes(const struct kvcache_config *config, enum dtype dtype)
{
    uint64_t scale = config->int8 ? sizeof(float) : 0;

    return 2 * ((uint64_t)config->head_dim * element_bytes(config, dtype) + scale);
}

uint64_t kvcache_page_bytes(const struct kvcache_config *config, enum dtype dtype)
{
    uint64_t row = kvcache_row_bytes(config, dtype) + sizeof(int32_t);

    return row * (uint64_t)config->page_rows;
}

int kvcache_pages_for(const struct kvcache_config *config, enum dtype dtype)
{
    uint64_t pages = config->bytes / kvcache_page_bytes(config, dtype);
    uint64_t limit = (uint64_t)(INT32_MAX / config->page_rows); /* rows are numbered in int32 */

    return (int)(pages < limit ? pages : limit);
}

uint64_t kvcache_list_bytes(const struct kvcache_config *config, enum dtype dtype)
{
    uint64_t tables = PLAN_MAX_SAMPLES * sizeof(int32_t);
    uint64_t notes = (uint64_t)config->page_rows * sizeof(struct kv_note);

    return (uint64_t)kvcache_pages_for(config, dtype) * (tables + notes);
}
