/*
 * kvcache_state.h - what kvcache.c (slots and their rows) and kvcache_tables.c (page tables) share;
 * nobody else includes it.
 *
 * All page tables lie in one block, on the device and mirrored on the host.  A table is taken when
 * its head's rows are stored, as large as the head can come to be, at the end of the block; when
 * that is reached, the tables that are left move together.  Every page is in the tables of
 * PLAN_MAX_SAMPLES sequences at most, and tables are never larger than the pages that were promised
 * to their sequence, so the block is never full.
 */
#ifndef WORKER_KVCACHE_STATE_H
#define WORKER_KVCACHE_STATE_H

#include "common/plan.h"
#include "worker/kvcache.h"

/* The pages of one cache head of one layer. */
struct table {
    size_t begin; /* in the block */
    int pages;    /* entries there; 0 until rows are stored */
    int max_rows;
    int rows;
};

struct slot {
    int heads;            /* 0: not open */
    int appended;         /* rows that may join each head's stored ones */
    bool noted;           /* rows have notes */
    struct table *tables; /* (layers, heads) */
    size_t entries;       /* of all tables */
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
    struct slot *slots;

    size_t max_entries, n_entries; /* of the block: there are, are taken */
    size_t live_entries;           /* of these, of open slots */
    int32_t *entries;              /* (max_entries): page numbers */
    int32_t *moved;                /* likewise, while tables move together */
    int32_t *device_entries;

    struct unsettled unsettled;
    int owners[MAX_ENTRIES]; /* of unsettled.entries: slots */
    struct unsettled packed; /* without gaps between the lists */
    char *lists;             /* on the device, as packed; behind them the spare page's number */
};

static inline int kvcache_pages_of(const struct kvcache *cache, int rows)
{
    return (rows + cache->config.page_rows - 1) / cache->config.page_rows;
}

/* The block; closing is fine after half of it. */
status kvcache_open_tables(struct kvcache *cache);
void kvcache_close_tables(struct kvcache *cache);

/* *begin = where n entries are, for tables of the slot. */
status kvcache_take_entries(struct kvcache *cache, struct slot *s, size_t n, size_t *begin);

/* All tables of the slot. */
void kvcache_give_entries(struct kvcache *cache, struct slot *s);

/* The device's copy follows the host's: of one entry with the next settling, within which it
 * changes once (a page that became the slot's own stays so, and a table grows by one page); of n at
 * once. */
status kvcache_enter_page(struct kvcache *cache, const struct slot *s, size_t entry);
status kvcache_enter_pages(struct kvcache *cache, size_t entry, size_t n);

/* Row `to` of the pool becomes row `from` with the next settling. */
status kvcache_move_row(struct kvcache *cache, int32_t to, int32_t from);

#endif
