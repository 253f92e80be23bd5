/*
 * children.h - programs that this one starts, starts again when they end, and ends with itself.
 *
 * A child that dies is started again, at first at once and then with backoff.  Children are meant
 * to die with the thread that started them (PR_SET_PDEATHSIG, which they ask for themselves), so
 * one thread, which lives as long as the process serves, calls everything here.
 */
#ifndef COMMON_CHILDREN_H
#define COMMON_CHILDREN_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum children_limits {
    CHILDREN_MAX = 64,
    CHILDREN_MAX_ARGUMENTS = 256,
    CHILDREN_MIN_BACKOFF_MS = 100,
    CHILDREN_MAX_BACKOFF_MS = 5000,
    CHILDREN_SETTLED_MS = 10000, /* a child that lived so long starts from the minimum */
    CHILDREN_GRACE_MS = 2000,    /* from SIGTERM to SIGKILL at the end */
    CHILDREN_EXIT_MS = 50,       /* from the end of a child's connections to its own */
};

/* All is copied. */
struct children_config {
    const char *executable;       /* path */
    int n;                        /* 0..CHILDREN_MAX */
    int first;                    /* number of the first; the others follow */
    const char *const *arguments; /* [n_arguments], without the program's name; "{n}" in one stands
                                   * for the child's number */
    size_t n_arguments;
    const char *const *environment; /* ends with NULL */
};

struct children;

/* Nothing is started yet. */
status children_open(struct children **out, const struct children_config *config);
/* Starts, collects the dead, starts again. */
void children_tick(struct children *children, double now);
/* Why this child, whose connections ended, is dead, as the end of a sentence: "was killed by signal
 * 9".  False: it is not one of these children, or it lives.  Waits CHILDREN_EXIT_MS for it. */
bool children_cause(struct children *children, int64_t pid, char *out, size_t out_size, double now);
/* Ends this child, which says nothing any more: it may be stopped.  It is then started again. */
void children_kill(const struct children *children, int64_t pid);
/* A child ended itself with a failure: *number says which.  Then nothing can mend it. */
bool children_gave_up(const struct children *children, int *number);
/* Asks all children to end, which are then not started again; true from when they have. */
void children_ask(const struct children *children);
bool children_ended(struct children *children);
/* Ends all children and waits for them.  NULL is fine. */
void children_close(struct children *children);

/* The path of a program beside this one. */
status children_find_program(char *out, size_t out_size, const char *name);

#endif
