/*
 * kvcache.h - the keys and values every live sequence still remembers.
 *
 * A slot is one sequence.  Its layers and cache heads differ in length: compression keeps what
 * each needs.  A page holds ENGINE_PAGE_ROWS rows of one cache head; each head of each layer has
 * its own page table.  Rows are stored after RoPE in ascending order of their original position,
 * which is kept beside them; where rows are dropped while decoding they stay in order only if the
 * cache is configured so.  Pool and page tables are allocated once: storing and appending fail with
 * STATUS_EXHAUSTED rather than grow.
 *
 * Slots that were forked share pages.  A shared page is read only: who would change a row of it
 * gets a copy first; the last one to hold it does not.  Slots whose rows have notes share none.
 */
#ifndef WORKER_KVCACHE_H
#define WORKER_KVCACHE_H

#include "kernels/op.h"

struct kvcache;

struct kvcache_config {
    int slots;
    int layers;
    int head_dim;
    int page_rows;
    bool int8;      /* rows are int8 with a scale each for keys and values; on a host */
    bool ordered;   /* kvcache_drop() keeps the order, which kvcache_first() needs */
    uint64_t bytes; /* of the pool: as many whole pages as fit */
};

/* What `config` makes of its bytes, without allocating. */
uint64_t kvcache_row_bytes(const struct kvcache_config *config, enum dtype dtype); /* k and v */
uint64_t kvcache_page_bytes(const struct kvcache_config *config, enum dtype dtype);
int kvcache_pages_for(const struct kvcache_config *config, enum dtype dtype);
/* Of all its pages, beside them: page tables, and a note of each row. */
uint64_t kvcache_list_bytes(const struct kvcache_config *config, enum dtype dtype);

status kvcache_create(struct kvcache **out, struct device *dev,
                      const struct kvcache_config *config);
void kvcache_destroy(struct kvcache *cache); /* NULL is fine */

/* Opens an empty slot.  Takes no pages. */
struct kv_slot {
    int heads;           /* cache heads of a layer */
    const int *max_rows; /* (layers) that a head ever holds */
    int appended;        /* that may join each head's stored ones */
    bool noted;          /* rows have notes, which are the caller's (op_kv_note(), op_evict()) */
};
status kvcache_begin(struct kvcache *cache, int slot, const struct kv_slot *config);
void kvcache_release(struct kvcache *cache, int slot); /* an unopened slot is fine */

/* Opens the slot `to` with all that `from` holds.  Takes no pages, or where rows have notes as many
 * as `from` has; then kvcache_settle() is due as after kvcache_append(). */
status kvcache_fork(struct kvcache *cache, int from, int to);

/* The rows that a layer's cache head keeps of the prompt; before any is appended. */
struct kv_rows {
    const void *k, *v;        /* (rows of the layer, head_dim) */
    const int32_t *index;     /* (n) on the device, ascending; NULL: the first n */
    const int32_t *positions; /* (n) on the host: original positions of the kept rows */
    int n;
};
status kvcache_store(struct kvcache *cache, int slot, int layer, int head,
                     const struct kv_rows *rows);

/* Makes room for one row of a head at `position`; *row is its number in the pool, for
 * op_kv_append().  The device knows of it after kvcache_settle(). */
status kvcache_append(struct kvcache *cache, int slot, int layer, int head, int position,
                      int32_t *row);

/* Original positions of rows page * page_rows .. + *n of a head. */
const int32_t *kvcache_positions(const struct kvcache *cache, int slot, int layer, int head,
                                 int page, int *n);

/* Row `row` of the head is forgotten: the last one takes its number, or in an ordered cache those
 * behind it move up.  Keys, values and notes follow with kvcache_settle(), which is due before the
 * next operation on the pool, as it is after kvcache_append(). */
status kvcache_drop(struct kvcache *cache, int slot, int layer, int head, int row);
status kvcache_settle(struct kvcache *cache);

int kvcache_rows(const struct kvcache *cache, int slot, int layer, int head);

/* The most pages that the slot can come to hold, once all its heads have their rows. */
uint64_t kvcache_most_pages(const struct kvcache *cache, int slot);

/* Of these, those that forks of the slot never copy, if no row leaves and `appended` more come. */
uint64_t kvcache_shared_pages(const struct kvcache *cache, int slot, int appended);

/* A page that is nobody's, for rows that only fill up a batch: its table, and its first row. */
const int32_t *kvcache_spare_table(const struct kvcache *cache);
int32_t kvcache_spare_row(const struct kvcache *cache);

/* On the device; it may move when a slot is forked or rows are stored. */
const int32_t *kvcache_table(const struct kvcache *cache, int slot, int layer, int head);

/* The first row whose position is at least `position`. */
int kvcache_first(const struct kvcache *cache, int slot, int layer, int head, int position);

const struct kvcache_config *kvcache_config(const struct kvcache *cache);
const struct kv_pool *kvcache_pool(const struct kvcache *cache);
int kvcache_pages_total(const struct kvcache *cache);
int kvcache_pages_used(const struct kvcache *cache);
uint64_t kvcache_bytes_total(const struct kvcache *cache);
uint64_t kvcache_bytes_used(const struct kvcache *cache);

#endif
