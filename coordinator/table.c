#include "coordinator/table.h"

#include <stdlib.h>

uint64_t table_hash(uint64_t key)
{
    key ^= key >> 33;
    key *= 0xff51afd7ed558ccdULL;
    key ^= key >> 33;
    key *= 0xc4ceb9fe1a85ec53ULL;
    return key ^ (key >> 33);
}

uint64_t table_hash_text(const char *text)
{
    uint64_t hash = 0xcbf29ce484222325ULL;

    for (; *text; text++) {
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3ULL;
    }
    return table_hash(hash);
}

void table_fini(struct table *table)
{
    free(table->buckets);
    *table = (struct table){0};
}

static struct table_node **bucket(const struct table *table, uint64_t hash)
{
    return &table->buckets[hash & (table->n_buckets - 1)];
}

static status grow(struct table *table)
{
    size_t n_buckets = table->n_buckets ? 2 * table->n_buckets : 64;
    struct table old = *table;

    table->buckets = calloc(n_buckets, sizeof(struct table_node *));
    if (!table->buckets) {
        *table = old;
        return status_fail(STATUS_EXHAUSTED, "no memory for a table of %zu", n_buckets);
    }
    table->n_buckets = n_buckets;
    for (size_t i = 0; i < old.n_buckets; i++) {
        struct table_node *next;
        for (struct table_node *node = old.buckets[i]; node; node = next) {
            struct table_node **head = bucket(table, node->hash);
            next = node->next;
            node->next = *head;
            *head = node;
        }
    }
    free(old.buckets);
    return STATUS_OK;
}

status table_insert(struct table *table, struct table_node *node, uint64_t hash)
{
    struct table_node **head;

    if (table->n >= table->n_buckets) {
        status st = grow(table);
        if (st) {
            return st;
        }
    }
    head = bucket(table, hash);
    node->hash = hash;
    node->next = *head;
    *head = node;
    table->n++;
    return STATUS_OK;
}

void table_remove(struct table *table, struct table_node *node)
{
    if (!table->n_buckets) {
        return;
    }
    for (struct table_node **at = bucket(table, node->hash); *at; at = &(*at)->next) {
        if (*at == node) {
            *at = node->next;
            table->n--;
            return;
        }
    }
}

static struct table_node *same_hash(struct table_node *node, uint64_t hash)
{
    while (node && node->hash != hash) {
        node = node->next;
    }
    return node;
}

struct table_node *table_first(const struct table *table, uint64_t hash)
{
    return table->n_buckets ? same_hash(*bucket(table, hash), hash) : NULL;
}

struct table_node *table_next(const struct table_node *node)
{
    return same_hash(node->next, node->hash);
}
