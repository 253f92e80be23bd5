#include "worker/kvcache_state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* For keys, then for values. */
static status allocate_scales(struct kvcache *cache, size_t rows)
{
    void *scales;
    status st = device_alloc(cache->dev, &scales, 2 * rows * sizeof(float), "KV scales");

    if (!st) {
        cache->pool.k_scale = scales;
        cache->pool.v_scale = cache->pool.k_scale + rows;
    }
    return st;
}

static status allocate_pool(struct kvcache *cache)
{
    size_t rows = ((size_t)cache->n_pages + 1) * (size_t)cache->config.page_rows;
    size_t row = (size_t)cache->config.head_dim *
                 (cache->config.int8 ? sizeof(int8_t) : dtype_bytes(device_dtype(cache->dev)));
    void *notes;
    status st = device_alloc(cache->dev, &cache->pool.k, rows * row, "KV pages (keys)");

    if (!st) {
        st = device_alloc(cache->dev, &cache->pool.v, rows * row, "KV pages (values)");
    }
    if (!st && cache->config.int8) {
        st = allocate_scales(cache, rows);
    }
    if (!st) {
        st = device_alloc(cache->dev, &notes, rows * sizeof(*cache->pool.notes), "notes of rows");
        cache->pool.notes = st ? NULL : notes;
    }
    return st;
}

static status allocate(struct kvcache *cache)
{
    size_t pages = (size_t)cache->n_pages;
    status st = allocate_pool(cache);

    if (!st) {
        st = kvcache_open_tables(cache);
    }
    if (st) {
        return st;
    }
    cache->free_pages = malloc(pages * sizeof(*cache->free_pages));
    cache->holders = calloc(pages, sizeof(*cache->holders));
    cache->positions = calloc(pages * (size_t)cache->config.page_rows, sizeof(*cache->positions));
    cache->slots = calloc((size_t)cache->config.slots, sizeof(*cache->slots));
    if (!cache->free_pages || !cache->holders || !cache->positions || !cache->slots) {
        return status_fail(STATUS_EXHAUSTED, "KV cache: out of memory");
    }
    for (int i = 0; i < cache->n_pages; i++) {
        cache->free_pages[i] = cache->n_pages - 1 - i;
    }
    cache->n_free = cache->n_pages;
    return STATUS_OK;
}

status kvcache_create(struct kvcache **out, struct device *dev, const struct kvcache_config *config)
{
    struct kvcache *cache;
    int n_pages = kvcache_pages_for(config, device_dtype(dev));
    status st;

    if (n_pages < 1) {
        return status_fail(STATUS_INVALID, "KV memory of %llu bytes is less than a page of %llu",
                           (unsigned long long)config->bytes,
                           (unsigned long long)kvcache_page_bytes(config, device_dtype(dev)));
    }
    if (config->int8 && !device_on_host(dev)) {
        return status_fail(STATUS_UNIMPLEMENTED, "int8 KV is of the cpu device only");
    }
    cache = calloc(1, sizeof(*cache));
    if (!cache) {
        return status_fail(STATUS_EXHAUSTED, "KV cache: out of memory");
    }
    cache->dev = dev;
    cache->config = *config;
    cache->n_pages = n_pages;
    cache->pool.page_rows = config->page_rows;
    cache->pool.head_dim = config->head_dim;
    st = allocate(cache);
    if (st) {
        kvcache_destroy(cache);
        return st;
    }
    *out = cache;
    return STATUS_OK;
}

void kvcache_destroy(struct kvcache *cache)
{
    if (!cache) {
        return;
    }
    for (int i = 0; cache->slots && i < cache->config.slots; i++) {
        kvcache_release(cache, i);
    }
    device_free(cache->dev, cache->pool.k);
    device_free(cache->dev, cache->pool.v);
    device_free(cache->dev, cache->pool.k_scale);
    device_free(cache->dev, cache->pool.notes);
    kvcache_close_tables(cache);
    free(cache->free_pages);
    free(cache->holders);
    free(cache->positions);
    free(cache->slots);
    free(cache);
}

static struct table *table_of(const struct kvcache *cache, int slot, int layer, int head)
{
    const struct slot *s = &cache->slots[slot];

    assert(slot >= 0 && slot < cache->config.slots && layer >= 0 && layer < cache->config.layers);
    assert(head >= 0 && head < s->heads);
    return &s->tables[(size_t)layer * (size_t)s->heads + (size_t)head];
}

static int32_t pool_row(const struct kvcache *cache, const struct table *table, int row)
{
    int page_rows = cache->config.page_rows;

    return cache->entries[table->begin + (size_t)(row / page_rows)] * page_rows + row % page_rows;
}

static status open_slot(struct kvcache *cache, struct slot *s, int heads)
{
    assert(s->heads == 0 && heads > 0);
    s->heads = heads;
    s->tables = calloc((size_t)cache->config.layers * (size_t)heads, sizeof(*s->tables));
    return s->tables ? STATUS_OK : status_fail(STATUS_EXHAUSTED, "KV cache: out of memory");
}

status kvcache_begin(struct kvcache *cache, int slot, const struct kv_slot *config)
{
    struct slot *s = &cache->slots[slot];

    assert(slot >= 0 && slot < cache->config.slots);
    status st = open_slot(cache, s, config->heads);
    if (st) {
        kvcache_release(cache, slot);
        return st;
    }
    s->appended = config->appended;
    s->noted = config->noted;
    for (int i = 0; i < cache->config.layers * s->heads; i++) {
        s->tables[i].max_rows = config->max_rows[i / s->heads];
    }
    return STATUS_OK;
}

static status no_pages(const struct kvcache *cache, int needed)
{
    return status_fail(STATUS_EXHAUSTED, "KV cache: %d of %d pages are free, %d are needed",
                       cache->n_free, cache->n_pages, needed);
}

static int32_t take_page(struct kvcache *cache)
{
    int32_t page = cache->free_pages[--cache->n_free];

    cache->holders[page] = 1;
    return page;
}

static void give_page(struct kvcache *cache, int32_t page)
{
    if (--cache->holders[page] == 0) {
        cache->free_pages[cache->n_free++] = page;
    }
}

/* The fork's table is full of the source's pages, or where rows have notes, which every step
 * changes, of pages of its own. */
static void fill_table(struct kvcache *cache, const struct slot *s, const struct table *table,
                       const struct table *source)
{
    for (int i = 0; i < kvcache_pages_of(cache, table->rows); i++) {
        int32_t *page = &cache->entries[table->begin + (size_t)i];

        *page = s->noted ? take_page(cache) : cache->entries[source->begin + (size_t)i];
        cache->holders[*page] += !s->noted;
    }
}

static int pages_held(const struct kvcache *cache, const struct slot *s)
{
    int pages = 0;

    for (int i = 0; i < cache->config.layers * s->heads; i++) {
        pages += kvcache_pages_of(cache, s->tables[i].rows);
    }
    return pages;
}

static status fork_tables(struct kvcache *cache, const struct slot *source, struct slot *s)
{
    size_t begin;
    status st = kvcache_take_entries(cache, s, source->entries, &begin);
    size_t end = begin;

    for (int t = 0; !st && t < cache->config.layers * s->heads; t++) {
        s->tables[t] = source->tables[t];
        s->tables[t].begin = end;
        end += (size_t)s->tables[t].pages;
        fill_table(cache, s, &s->tables[t], &source->tables[t]);
    }
    if (!st) {
        st = kvcache_enter_pages(cache, begin, end - begin);
    }
    for (int t = 0; !st && s->noted && t < cache->config.layers * s->heads; t++) {
        for (int i = 0; !st && i < s->tables[t].rows; i++) {
            st = kvcache_move_row(cache, pool_row(cache, &s->tables[t], i),
                                  pool_row(cache, &source->tables[t], i));
        }
    }
    return st;
}

status kvcache_fork(struct kvcache *cache, int from, int to)
{
    const struct slot *source = &cache->slots[from];
    struct slot *s = &cache->slots[to];
    int copies = source->noted ? pages_held(cache, source) : 0;
    status st;

    assert(source->heads > 0);
    if (copies > cache->n_free) {
        return no_pages(cache, copies);
    }
    st = open_slot(cache, s, source->heads);
    s->appended = source->appended;
    s->noted = source->noted;
    if (!st) {
        st = fork_tables(cache, source, s);
    }
    if (st) {
        kvcache_release(cache, to);
    }
    return st;
}

void kvcache_release(struct kvcache *cache, int slot)
{
    struct slot *s = &cache->slots[slot];

    /* The pages return in the order opposite to their use, so the next sequence finds them alike.
     */
    for (int t = cache->config.layers * s->heads - 1; s->tables && t >= 0; t--) {
        const struct table *table = &s->tables[t];
        for (int page = kvcache_pages_of(cache, table->rows) - 1; page >= 0; page--) {
            give_page(cache, cache->entries[table->begin + (size_t)page]);
        }
    }
    kvcache_give_entries(cache, s);
    free(s->tables);
    *s = (struct slot){0};
}

/* Grows the table to `rows` rows. */
static status grow(struct kvcache *cache, const struct slot *s, struct table *table, int rows)
{
    int have = kvcache_pages_of(cache, table->rows);
    int need = kvcache_pages_of(cache, rows);
    size_t first = table->begin + (size_t)have;
    status st = STATUS_OK;

    assert(rows <= table->max_rows && need <= table->pages);
    if (need - have > cache->n_free) {
        return no_pages(cache, need - have);
    }
    for (int i = have; i < need; i++) {
        cache->entries[table->begin + (size_t)i] = take_page(cache);
    }
    table->rows = rows;
    if (need == have + 1) {
        st = kvcache_enter_page(cache, s, first);
    } else if (need > have) {
        st = kvcache_enter_pages(cache, first, (size_t)(need - have));
    }
    return st;
}

uint64_t kvcache_most_pages(const struct kvcache *cache, int slot)
{
    return cache->slots[slot].entries;
}

uint64_t kvcache_shared_pages(const struct kvcache *cache, int slot, int appended)
{
    const struct slot *s = &cache->slots[slot];
    uint64_t pages = 0;

    for (int t = 0; t < cache->config.layers * s->heads; t++) {
        int rows = s->tables[t].rows;
        pages += (uint64_t)(appended > 0 ? rows / cache->config.page_rows
                                         : kvcache_pages_of(cache, rows));
    }
    return pages;
}

/* As large as it can come to be. */
static status take_table(struct kvcache *cache, struct slot *s, struct table *table, int rows)
{
    int most = rows < table->max_rows - s->appended ? rows + s->appended : table->max_rows;
    int pages = kvcache_pages_of(cache, most);

    if (table->pages > 0) { /* there was no page for its rows */
        return STATUS_OK;
    }
    status st = kvcache_take_entries(cache, s, (size_t)pages, &table->begin);
    if (!st) {
        table->pages = pages;
        table->max_rows = most;
    }
    return st;
}

status kvcache_store(struct kvcache *cache, int slot, int layer, int head,
                     const struct kv_rows *rows)
{
    struct slot *s = &cache->slots[slot];
    struct table *table = table_of(cache, slot, layer, head);
    status st;

    assert(table->rows == 0 && rows->n > 0);
    st = take_table(cache, s, table, rows->n);
    if (!st) {
        st = grow(cache, s, table, rows->n);
    }
    if (!st) {
        st = kvcache_settle(cache);
    }
    if (st) {
        return st;
    }
    for (int i = 0; i < rows->n; i++) {
        int32_t row = pool_row(cache, table, i);
        cache->positions[row] = rows->positions[i];
    }
    return op_kv_gather(cache->dev, &cache->pool, cache->device_entries + table->begin, rows->k,
                        rows->v, rows->index, rows->n);
}

/* The page of the table becomes this slot's alone: shared, its rows move to a fresh one. */
static status own_page(struct kvcache *cache, const struct slot *s, const struct table *table,
                       int page)
{
    size_t entry = table->begin + (size_t)page;
    int page_rows = cache->config.page_rows;
    int left = table->rows - page * page_rows;
    int32_t shared = cache->entries[entry];
    status st = STATUS_OK;

    if (cache->holders[shared] == 1) {
        return STATUS_OK;
    }
    if (cache->n_free == 0) {
        return no_pages(cache, 1);
    }
    int32_t own = take_page(cache);
    cache->entries[entry] = own;
    give_page(cache, shared);
    for (int i = 0; !st && i < left && i < page_rows; i++) {
        st = kvcache_move_row(cache, own * page_rows + i, shared * page_rows + i);
    }
    return st ? st : kvcache_enter_page(cache, s, entry);
}

status kvcache_append(struct kvcache *cache, int slot, int layer, int head, int position,
                      int32_t *row)
{
    struct slot *s = &cache->slots[slot];
    struct table *table = table_of(cache, slot, layer, head);
    status st = STATUS_OK;

    if (table->rows % cache->config.page_rows != 0) {
        st = own_page(cache, s, table, table->rows / cache->config.page_rows);
    }
    if (!st) {
        st = grow(cache, s, table, table->rows + 1);
    }
    if (st) {
        return st;
    }
    *row = pool_row(cache, table, table->rows - 1);
    cache->positions[*row] = position;
    return STATUS_OK;
}

const int32_t *kvcache_positions(const struct kvcache *cache, int slot, int layer, int head,
                                 int page, int *n)
{
    const struct table *table = table_of(cache, slot, layer, head);
    int page_rows = cache->config.page_rows;
    int left = table->rows - page * page_rows;

    *n = left < page_rows ? left : page_rows;
    return cache->positions + pool_row(cache, table, page * page_rows);
}

/* Row `to` of the head becomes row `from`. */
static status replace_row(struct kvcache *cache, const struct slot *s, const struct table *table,
                          int to, int from)
{
    status st = own_page(cache, s, table, to / cache->config.page_rows);

    return st ? st
              : kvcache_move_row(cache, pool_row(cache, table, to), pool_row(cache, table, from));
}

status kvcache_drop(struct kvcache *cache, int slot, int layer, int head, int row)
{
    struct slot *s = &cache->slots[slot];
    struct table *table = table_of(cache, slot, layer, head);
    int last = table->rows - 1;
    status st = STATUS_OK;

    assert(row >= 0 && row <= last);
    for (int i = row; !st && cache->config.ordered && i < last; i++) {
        st = replace_row(cache, s, table, i, i + 1);
    }
    if (!cache->config.ordered && row < last) {
        st = replace_row(cache, s, table, row, last);
    }
    if (kvcache_pages_of(cache, last) < kvcache_pages_of(cache, table->rows)) {
        int page = kvcache_pages_of(cache, last);
        give_page(cache, cache->entries[table->begin + (size_t)page]);
    }
    table->rows = last;
    return st;
}

int kvcache_rows(const struct kvcache *cache, int slot, int layer, int head)
{
    return table_of(cache, slot, layer, head)->rows;
}

const int32_t *kvcache_table(const struct kvcache *cache, int slot, int layer, int head)
{
    return cache->device_entries + table_of(cache, slot, layer, head)->begin;
}

int kvcache_first(const struct kvcache *cache, int slot, int layer, int head, int position)
{
    const struct table *table = table_of(cache, slot, layer, head);
    int low = 0;
    int high = table->rows;

    while (low < high) {
        int middle = low + (high - low) / 2;
        if (cache->positions[pool_row(cache, table, middle)] < position) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

const int32_t *kvcache_spare_table(const struct kvcache *cache)
{
    return (const int32_t *)(const void *)(cache->lists + sizeof(cache->packed));
}

int32_t kvcache_spare_row(const struct kvcache *cache)
{
    return cache->n_pages * cache->config.page_rows;
}

const struct kvcache_config *kvcache_config(const struct kvcache *cache)
{
    return &cache->config;
}

const struct kv_pool *kvcache_pool(const struct kvcache *cache)
{
    return &cache->pool;
}

int kvcache_pages_total(const struct kvcache *cache)
{
    return cache->n_pages;
}

int kvcache_pages_used(const struct kvcache *cache)
{
    return cache->n_pages - cache->n_free;
}

uint64_t kvcache_bytes_total(const struct kvcache *cache)
{
    return (uint64_t)cache->n_pages * kvcache_page_bytes(&cache->config, device_dtype(cache->dev));
}

uint64_t kvcache_bytes_used(const struct kvcache *cache)
{
    return (uint64_t)kvcache_pages_used(cache) *
           kvcache_page_bytes(&cache->config, device_dtype(cache->dev));
}
