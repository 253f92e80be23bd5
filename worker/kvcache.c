#include "worker/kvcache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* The pages of one cache head of one layer. */
struct table {
    size_t begin; /* of the head's entries in the slot's page numbers */
    size_t notes; /* likewise in its notes */
    int max_rows;
    int rows;
};

struct slot {
    int heads;            /* 0: not open */
    struct table *tables; /* (layers, heads) */
    size_t entries;
    int32_t *pages; /* (entries): page numbers of all tables */
    int32_t *device_pages;
    size_t n_notes;
    struct kv_note *notes; /* (n_notes) on the device; NULL: none */
};

/* What the device does not know yet: page numbers of tables, and rows of the pool that move, in
 * this order.  One upload takes all of it there, so a decode step needs one at most. */
enum { MAX_ENTRIES = 4096, MAX_MOVES = 4096 };
struct unsettled {
    int n_entries, n_moves;
    struct page_entry entries[MAX_ENTRIES];
    int32_t to[MAX_MOVES], from[MAX_MOVES];
};

struct kvcache {
    struct device *dev;
    struct kvcache_config config;
    struct kv_pool pool;
    int n_pages;
    int n_free;
    int32_t *free_pages; /* a stack */
    uint16_t *holders;   /* (n_pages): slots that have the page in a table */
    int32_t *positions;  /* (n_pages * page_rows) */
    struct unsettled unsettled;
    struct unsettled packed; /* without gaps between the lists */
    char *lists;             /* on the device, as packed; behind them the spare page's number */
    struct slot *slots;
};

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

static status allocate(struct kvcache *cache)
{
    size_t pages = (size_t)cache->n_pages;
    size_t page = (size_t)cache->config.page_rows * (size_t)cache->config.head_dim *
                  (cache->config.int8 ? sizeof(int8_t) : dtype_bytes(device_dtype(cache->dev)));
    void *lists;
    int32_t spare = (int32_t)pages;
    status st = device_alloc(cache->dev, &cache->pool.k, (pages + 1) * page, "KV pages (keys)");

    if (!st) {
        st = device_alloc(cache->dev, &cache->pool.v, (pages + 1) * page, "KV pages (values)");
    }
    if (!st && cache->config.int8) {
        st = allocate_scales(cache, (pages + 1) * (size_t)cache->config.page_rows);
    }
    if (!st) {
        st = device_alloc(cache->dev, &lists, sizeof(cache->packed) + sizeof(spare), "KV lists");
    }
    if (!st) {
        cache->lists = lists;
        st = device_upload(cache->dev, cache->lists + sizeof(cache->packed), &spare, sizeof(spare));
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
    free(cache->free_pages);
    free(cache->holders);
    device_free(cache->dev, cache->lists);
    free(cache->positions);
    free(cache->slots);
    free(cache);
}

static int pages_of(const struct kvcache *cache, int rows)
{
    return (rows + cache->config.page_rows - 1) / cache->config.page_rows;
}

static struct table *table_of(const struct kvcache *cache, int slot, int layer, int head)
{
    const struct slot *s = &cache->slots[slot];

    assert(slot >= 0 && slot < cache->config.slots && layer >= 0 && layer < cache->config.layers);
    assert(head >= 0 && head < s->heads);
    return &s->tables[(size_t)layer * (size_t)s->heads + (size_t)head];
}

/* Opens a slot whose tables have `entries` pages, and n_notes notes, in all. */
static status open_slot(struct kvcache *cache, struct slot *s, int heads, size_t entries,
                        size_t n_notes)
{
    void *memory;

    assert(heads > 0);
    s->heads = heads;
    s->entries = entries;
    s->tables = calloc((size_t)cache->config.layers * (size_t)heads + 1, sizeof(*s->tables));
    s->pages = calloc(entries + 1, sizeof(*s->pages));
    if (!s->tables || !s->pages) {
        return status_fail(STATUS_EXHAUSTED, "KV cache: out of memory");
    }
    status st = device_alloc(cache->dev, &memory, (entries + 1) * sizeof(*s->pages), "page tables");
    s->device_pages = st ? NULL : memory;
    s->n_notes = n_notes;
    if (!st && n_notes > 0) {
        st = device_alloc(cache->dev, &memory, n_notes * sizeof(*s->notes), "notes of rows");
        s->notes = st ? NULL : memory;
    }
    return st;
}

status kvcache_begin(struct kvcache *cache, int slot, int heads, const int *max_rows, bool noted)
{
    struct slot *s = &cache->slots[slot];
    size_t n_tables = (size_t)cache->config.layers * (size_t)heads;
    size_t entries = 0;
    size_t rows = 0;

    assert(slot >= 0 && slot < cache->config.slots && s->heads == 0 && heads > 0);
    for (size_t i = 0; i < n_tables; i++) {
        entries += (size_t)pages_of(cache, max_rows[i / (size_t)heads]);
        rows += (size_t)max_rows[i / (size_t)heads];
    }
    status st = open_slot(cache, s, heads, entries, noted ? rows : 0);
    if (st) {
        kvcache_release(cache, slot);
        return st;
    }
    entries = 0;
    rows = 0;
    for (size_t i = 0; i < n_tables; i++) {
        s->tables[i].begin = entries;
        s->tables[i].notes = rows;
        s->tables[i].max_rows = max_rows[i / (size_t)heads];
        rows += (size_t)s->tables[i].max_rows;
        entries += (size_t)pages_of(cache, s->tables[i].max_rows);
    }
    return STATUS_OK;
}

status kvcache_fork(struct kvcache *cache, int from, int to)
{
    const struct slot *source = &cache->slots[from];
    struct slot *s = &cache->slots[to];
    size_t n_tables = (size_t)cache->config.layers * (size_t)source->heads;

    assert(source->heads > 0 && s->heads == 0);
    status st = open_slot(cache, s, source->heads, source->entries, source->n_notes);
    if (st) {
        kvcache_release(cache, to); /* its tables are empty still */
        return st;
    }
    memcpy(s->tables, source->tables, n_tables * sizeof(*s->tables));
    memcpy(s->pages, source->pages, s->entries * sizeof(*s->pages));
    for (size_t i = 0; i < n_tables; i++) {
        for (int page = 0; page < pages_of(cache, s->tables[i].rows); page++) {
            cache->holders[s->pages[s->tables[i].begin + (size_t)page]]++;
        }
    }
    if (s->notes) {
        st = device_copy(cache->dev, s->notes, source->notes, s->n_notes * sizeof(*s->notes));
    }
    return st ? st
              : device_upload(cache->dev, s->device_pages, s->pages,
                              s->entries * sizeof(*s->pages));
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

/* What was to be entered in the slot's tables has no place any more. */
static void forget_entries(struct kvcache *cache, const struct slot *s)
{
    struct unsettled *u = &cache->unsettled;
    int n = 0;

    for (int i = 0; i < u->n_entries; i++) {
        const int32_t *at = u->entries[i].at;
        if (at < s->device_pages || at >= s->device_pages + s->entries) {
            u->entries[n++] = u->entries[i];
        }
    }
    u->n_entries = n;
}

void kvcache_release(struct kvcache *cache, int slot)
{
    struct slot *s = &cache->slots[slot];

    forget_entries(cache, s);
    /* The pages return in the order opposite to their use, so the next sequence finds them alike.
     */
    for (int t = cache->config.layers * s->heads - 1; s->tables && s->pages && t >= 0; t--) {
        const struct table *table = &s->tables[t];
        for (int page = pages_of(cache, table->rows) - 1; page >= 0; page--) {
            give_page(cache, s->pages[table->begin + (size_t)page]);
        }
    }
    device_free(cache->dev, s->device_pages);
    device_free(cache->dev, s->notes);
    free(s->pages);
    free(s->tables);
    *s = (struct slot){0};
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

/* The device's copy of a slot's page numbers follows the host's.  Within one settling an entry
 * changes once: a page that became the slot's own stays so, and a table grows by one page. */
static status enter_page(struct kvcache *cache, const struct slot *s, size_t entry)
{
    struct unsettled *u = &cache->unsettled;
    status st = u->n_entries == MAX_ENTRIES ? kvcache_settle(cache) : STATUS_OK;

    u->entries[u->n_entries++] = (struct page_entry){s->device_pages + entry, s->pages[entry]};
    return st;
}

/* Grows the table to `rows` rows. */
static status grow(struct kvcache *cache, struct slot *s, struct table *table, int rows)
{
    int have = pages_of(cache, table->rows);
    int need = pages_of(cache, rows);
    size_t first = table->begin + (size_t)have;
    status st = STATUS_OK;

    assert(rows <= table->max_rows);
    if (need - have > cache->n_free) {
        return status_fail(STATUS_EXHAUSTED, "KV cache: %d of %d pages are free, %d are needed",
                           cache->n_free, cache->n_pages, need - have);
    }
    for (int i = have; i < need; i++) {
        s->pages[table->begin + (size_t)i] = take_page(cache);
    }
    table->rows = rows;
    if (need == have + 1) {
        st = enter_page(cache, s, first);
    } else if (need > have) {
        st = device_upload(cache->dev, s->device_pages + first, s->pages + first,
                           (size_t)(need - have) * sizeof(*s->pages));
    }
    return st;
}

uint64_t kvcache_most_pages(const struct kvcache *cache, int slot, int appended)
{
    const struct slot *s = &cache->slots[slot];
    uint64_t pages = 0;

    for (int t = 0; t < cache->config.layers * s->heads; t++) {
        const struct table *table = &s->tables[t];
        int most = table->rows + appended;
        pages += (uint64_t)pages_of(cache, most < table->max_rows ? most : table->max_rows);
    }
    return pages;
}

uint64_t kvcache_shared_pages(const struct kvcache *cache, int slot, int appended)
{
    const struct slot *s = &cache->slots[slot];
    uint64_t pages = 0;

    for (int t = 0; t < cache->config.layers * s->heads; t++) {
        int rows = s->tables[t].rows;
        pages += (uint64_t)(appended > 0 ? rows / cache->config.page_rows : pages_of(cache, rows));
    }
    return pages;
}

static int32_t pool_row(const struct kvcache *cache, const struct slot *s,
                        const struct table *table, int row)
{
    int page_rows = cache->config.page_rows;

    return s->pages[table->begin + (size_t)(row / page_rows)] * page_rows + row % page_rows;
}

status kvcache_store(struct kvcache *cache, int slot, int layer, int head,
                     const struct kv_rows *rows)
{
    struct slot *s = &cache->slots[slot];
    struct table *table = table_of(cache, slot, layer, head);
    status st;

    assert(table->rows == 0 && rows->n > 0);
    st = grow(cache, s, table, rows->n);
    if (!st) {
        st = kvcache_settle(cache);
    }
    if (st) {
        return st;
    }
    for (int i = 0; i < rows->n; i++) {
        int32_t row = pool_row(cache, s, table, i);
        cache->positions[row] = rows->positions[i];
    }
    return op_kv_gather(cache->dev, &cache->pool, s->device_pages + table->begin, rows->k, rows->v,
                        rows->index, rows->n);
}

static status move_row(struct kvcache *cache, int32_t to, int32_t from)
{
    struct unsettled *u = &cache->unsettled;
    status st = u->n_moves == MAX_MOVES ? kvcache_settle(cache) : STATUS_OK;

    cache->positions[to] = cache->positions[from];
    u->to[u->n_moves] = to;
    u->from[u->n_moves++] = from;
    return st;
}

/* The page of the table becomes this slot's alone: shared, its rows move to a fresh one. */
static status own_page(struct kvcache *cache, struct slot *s, const struct table *table, int page)
{
    size_t entry = table->begin + (size_t)page;
    int page_rows = cache->config.page_rows;
    int left = table->rows - page * page_rows;
    int32_t shared = s->pages[entry];
    status st = STATUS_OK;

    if (cache->holders[shared] == 1) {
        return STATUS_OK;
    }
    if (cache->n_free == 0) {
        return status_fail(STATUS_EXHAUSTED, "KV cache: none of %d pages is free for a copy",
                           cache->n_pages);
    }
    s->pages[entry] = take_page(cache);
    give_page(cache, shared);
    for (int i = 0; !st && i < left && i < page_rows; i++) {
        st = move_row(cache, s->pages[entry] * page_rows + i, shared * page_rows + i);
    }
    return st ? st : enter_page(cache, s, entry);
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
    *row = pool_row(cache, s, table, table->rows - 1);
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
    return cache->positions + pool_row(cache, &cache->slots[slot], table, page * page_rows);
}

struct kv_note *kvcache_notes(const struct kvcache *cache, int slot, int layer, int head)
{
    assert(cache->slots[slot].notes);
    return cache->slots[slot].notes + table_of(cache, slot, layer, head)->notes;
}

/* Row `to` of the head becomes row `from`. */
static status replace_row(struct kvcache *cache, struct slot *s, const struct table *table, int to,
                          int from)
{
    status st = own_page(cache, s, table, to / cache->config.page_rows);

    return st ? st
              : move_row(cache, pool_row(cache, s, table, to), pool_row(cache, s, table, from));
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
    if (pages_of(cache, last) < pages_of(cache, table->rows)) {
        int page = pages_of(cache, last);
        give_page(cache, s->pages[table->begin + (size_t)page]);
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
    return cache->slots[slot].device_pages + table_of(cache, slot, layer, head)->begin;
}

int kvcache_first(const struct kvcache *cache, int slot, int layer, int head, int position)
{
    const struct slot *s = &cache->slots[slot];
    const struct table *table = table_of(cache, slot, layer, head);
    int low = 0;
    int high = table->rows;

    while (low < high) {
        int middle = low + (high - low) / 2;
        if (cache->positions[pool_row(cache, s, table, middle)] < position) {
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
