/* kvcache_tables.c - the block of page tables, and what the device has yet to hear of them. */
#include "worker/kvcache_state.h"

#include <stdlib.h>
#include <string.h>

status kvcache_open_tables(struct kvcache *cache)
{
    int32_t spare = (int32_t)cache->n_pages;
    void *memory;
    status st;

    cache->max_entries = (size_t)cache->n_pages * PLAN_MAX_SAMPLES;
    cache->entries = calloc(cache->max_entries, sizeof(*cache->entries));
    cache->moved = calloc(cache->max_entries, sizeof(*cache->moved));
    if (!cache->entries || !cache->moved) {
        return status_fail(STATUS_EXHAUSTED, "KV cache: out of memory");
    }
    st = device_alloc(cache->dev, &memory, cache->max_entries * sizeof(*cache->entries),
                      "page tables");
    cache->device_entries = st ? NULL : memory;
    if (!st) {
        st = device_alloc(cache->dev, &memory, sizeof(cache->packed) + sizeof(spare), "KV lists");
    }
    if (st) {
        return st;
    }
    cache->lists = memory;
    return device_upload(cache->dev, cache->lists + sizeof(cache->packed), &spare, sizeof(spare));
}

void kvcache_close_tables(struct kvcache *cache)
{
    device_free(cache->dev, cache->lists);
    device_free(cache->dev, cache->device_entries);
    free(cache->entries);
    free(cache->moved);
}

/* All tables lie one behind the other again, at the front of the block. */
static status move_together(struct kvcache *cache)
{
    size_t n = 0;
    status st = kvcache_settle(cache); /* it knows places in the block */

    for (int slot = 0; !st && slot < cache->config.slots; slot++) {
        const struct slot *s = &cache->slots[slot];
        for (int t = 0; t < cache->config.layers * s->heads; t++) {
            struct table *table = &s->tables[t];
            memcpy(cache->moved + n, cache->entries + table->begin,
                   (size_t)table->pages * sizeof(*cache->entries));
            table->begin = n;
            n += (size_t)table->pages;
        }
    }
    if (st) {
        return st;
    }
    int32_t *entries = cache->moved;
    cache->moved = cache->entries;
    cache->entries = entries;
    cache->n_entries = n;
    return kvcache_enter_pages(cache, 0, n);
}

status kvcache_take_entries(struct kvcache *cache, struct slot *s, size_t n, size_t *begin)
{
    status st = STATUS_OK;

    if (n > cache->max_entries - cache->live_entries) {
        return status_fail(STATUS_EXHAUSTED,
                           "KV cache: page tables have %zu of %zu entries, %zu more are needed",
                           cache->live_entries, cache->max_entries, n);
    }
    if (n > cache->max_entries - cache->n_entries) {
        st = move_together(cache);
    }
    *begin = cache->n_entries;
    cache->n_entries += n;
    cache->live_entries += n;
    s->entries += n;
    return st;
}

/* What was to be entered in the slot's tables has no place any more. */
static void forget_entries(struct kvcache *cache, int slot)
{
    struct unsettled *u = &cache->unsettled;
    int n = 0;

    for (int i = 0; i < u->n_entries; i++) {
        if (cache->owners[i] != slot) {
            cache->owners[n] = cache->owners[i];
            u->entries[n++] = u->entries[i];
        }
    }
    u->n_entries = n;
}

void kvcache_give_entries(struct kvcache *cache, struct slot *s)
{
    forget_entries(cache, (int)(s - cache->slots));
    cache->live_entries -= s->entries;
    s->entries = 0;
    if (cache->live_entries == 0) {
        cache->n_entries = 0;
    }
}

status kvcache_settle(struct kvcache *cache)
{
    struct unsettled *u = &cache->unsettled;
    size_t entries = (size_t)u->n_entries * sizeof(*u->entries);
    size_t moves = (size_t)u->n_moves * sizeof(*u->to);
    char *packed = (char *)&cache->packed;
    int32_t *to = (int32_t *)(void *)(cache->lists + entries);
    status st = STATUS_OK;

    if (entries + moves == 0) {
        return STATUS_OK;
    }
    memcpy(packed, u->entries, entries);
    memcpy(packed + entries, u->to, moves);
    memcpy(packed + entries + moves, u->from, moves);
    st = device_upload(cache->dev, cache->lists, packed, entries + 2 * moves);
    if (!st && entries > 0) {
        st = op_enter_pages(cache->dev, (void *)cache->lists, u->n_entries);
    }
    if (!st && moves > 0) {
        st = op_kv_move(cache->dev, &cache->pool, to, to + u->n_moves, u->n_moves);
    }
    u->n_entries = 0;
    u->n_moves = 0;
    return st;
}

status kvcache_enter_page(struct kvcache *cache, const struct slot *s, size_t entry)
{
    struct unsettled *u = &cache->unsettled;
    status st = u->n_entries == MAX_ENTRIES ? kvcache_settle(cache) : STATUS_OK;

    cache->owners[u->n_entries] = (int)(s - cache->slots);
    u->entries[u->n_entries++] =
        (struct page_entry){cache->device_entries + entry, cache->entries[entry]};
    return st;
}

status kvcache_enter_pages(struct kvcache *cache, size_t entry, size_t n)
{
    return device_upload(cache->dev, cache->device_entries + entry, cache->entries + entry,
                         n * sizeof(*cache->entries));
}

status kvcache_move_row(struct kvcache *cache, int32_t to, int32_t from)
{
    struct unsettled *u = &cache->unsettled;
    status st = u->n_moves == MAX_MOVES ? kvcache_settle(cache) : STATUS_OK;

    cache->positions[to] = cache->positions[from];
    u->to[u->n_moves] = to;
    u->from[u->n_moves++] = from;
    return st;
}
