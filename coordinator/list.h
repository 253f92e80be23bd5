/* list.h - doubly linked lists whose links lie in the things they hold. */
#ifndef COORDINATOR_LIST_H
#define COORDINATOR_LIST_H

#include <stdbool.h>
#include <stddef.h>

/* A list's head, or one member's place in it.  A link alone (not in a list) points to itself. */
struct link {
    struct link *prev, *next;
};

/* The struct of `type` whose member is at `link`. */
#define HOLDER_OF(link, type, member) ((type *)(void *)((char *)(link)-offsetof(type, member)))

static inline void list_init(struct link *head)
{
    head->prev = head->next = head;
}

static inline bool list_empty(const struct link *head)
{
    return head->next == head;
}

static inline void list_append(struct link *head, struct link *link)
{
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}

/* Also of a link that is in no list. */
static inline void list_remove(struct link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    list_init(link);
}

#endif
