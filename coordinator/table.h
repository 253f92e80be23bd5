/*
 * table.h - a hash table whose nodes lie in the things it finds.
 *
 * It knows hashes only: whoever looks something up walks the nodes of that hash and compares
 * the real keys.
 */
#ifndef COORDINATOR_TABLE_H
#define COORDINATOR_TABLE_H

#include "common/status.h"

#include <stdint.h>

struct table_node {
    struct table_node *next;
    uint64_t hash;
};

struct table {
    struct table_node **buckets;
    size_t n_buckets; /* a power of two */
    size_t n;
};

uint64_t table_hash(uint64_t key);
uint64_t table_hash_text(const char *text);

void table_fini(struct table *table);
status table_insert(struct table *table, struct table_node *node, uint64_t hash);
void table_remove(struct table *table, struct table_node *node); /* nothing if not inside */
/* First node of this hash, and the one after it; NULL: no more. */
struct table_node *table_first(const struct table *table, uint64_t hash);
struct table_node *table_next(const struct table_node *node);

#endif
