#include "coordinator/heap.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

void heap_fini(struct heap *heap)
{
    free(heap->nodes);
    *heap = (struct heap){0};
}

status heap_reserve(struct heap *heap, size_t n)
{
    size_t room = heap->room ? heap->room : 16;
    struct heap_node **nodes;

    if (n < heap->room) {
        return STATUS_OK;
    }
    while (room <= n) {
        room *= 2;
    }
    nodes = realloc(heap->nodes, room * sizeof(struct heap_node *));
    if (!nodes) {
        return status_fail(STATUS_EXHAUSTED, "no memory for a queue of %zu", room);
    }
    heap->nodes = nodes;
    heap->room = room;
    return STATUS_OK;
}

static bool before(const struct heap_node *a, const struct heap_node *b)
{
    return a->key < b->key || (a->key == b->key && a->tie < b->tie);
}

static void put(struct heap *heap, struct heap_node *node, size_t place)
{
    heap->nodes[place] = node;
    node->place = place;
}

static void rise(struct heap *heap, struct heap_node *node, size_t place)
{
    while (place > 1 && before(node, heap->nodes[place / 2])) {
        put(heap, heap->nodes[place / 2], place);
        place /= 2;
    }
    put(heap, node, place);
}

static void sink(struct heap *heap, struct heap_node *node, size_t place)
{
    while (2 * place <= heap->n) {
        size_t child = 2 * place;
        if (child < heap->n && before(heap->nodes[child + 1], heap->nodes[child])) {
            child++;
        }
        if (!before(heap->nodes[child], node)) {
            break;
        }
        put(heap, heap->nodes[child], place);
        place = child;
    }
    put(heap, node, place);
}

void heap_insert(struct heap *heap, struct heap_node *node)
{
    assert(node->place == 0 && heap->n + 1 < heap->room);
    heap->n++;
    rise(heap, node, heap->n);
}

void heap_remove(struct heap *heap, struct heap_node *node)
{
    size_t place = node->place;
    struct heap_node *last;

    if (place == 0) {
        return;
    }
    last = heap->nodes[heap->n];
    heap->n--;
    node->place = 0;
    if (last == node) {
        return;
    }
    if (place > 1 && before(last, heap->nodes[place / 2])) {
        rise(heap, last, place);
    } else {
        sink(heap, last, place);
    }
}

struct heap_node *heap_first(const struct heap *heap)
{
    return heap->n ? heap->nodes[1] : NULL;
}
