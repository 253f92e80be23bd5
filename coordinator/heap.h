/*
 * heap.h - a priority queue whose nodes lie in the things it orders.
 *
 * Smallest key first, then smallest tie.  A node knows its place, so that any of them can be
 * removed in logarithmic time.
 */
#ifndef COORDINATOR_HEAP_H
#define COORDINATOR_HEAP_H

#include "common/status.h"

#include <stdint.h>

struct heap_node {
    int64_t key;
    uint64_t tie;
    size_t place; /* 1..n; 0: in no heap */
};

struct heap {
    struct heap_node **nodes; /* nodes[1..n] */
    size_t n, room;
};

void heap_fini(struct heap *heap); /* of a zeroed heap, too */
status heap_reserve(struct heap *heap, size_t n);
/* There is room: heap_reserve() was called for as many nodes as are ever inside at a time. */
void heap_insert(struct heap *heap, struct heap_node *node);
void heap_remove(struct heap *heap, struct heap_node *node); /* nothing if it is in no heap */
struct heap_node *heap_first(const struct heap *heap);       /* NULL: empty */

#endif
