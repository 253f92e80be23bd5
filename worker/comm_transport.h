/*
 * comm_transport.h - what carries the collectives of comm.h: NCCL where each rank has a GPU, shared
 * memory where all ranks are on one host, TCP otherwise (gloo, and short messages beside it).
 *
 * comm.c is the only caller.  It answers groups of one rank itself, so a transport always has
 * peers.  The rules of comm.h hold for each function.
 */
#ifndef WORKER_COMM_TRANSPORT_H
#define WORKER_COMM_TRANSPORT_H

#include "worker/comm.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct comm_transport {
    status (*reduce)(void *self, int first, int count, float *x, size_t n, int max);
    status (*gather)(void *self, void *out, const void *in, size_t bytes);
    void (*abort)(void *self);          /* from any thread */
    int (*waits_for)(const void *self); /* the last peer whose part was not there; any thread */
    void (*close)(void *self);
    bool in_background; /* sums gain from a thread of their own: most of their time is not work */

    /* NULL where a call has the result when it returns.  Else calls are work of a stream: what is
     * enqueued on the device's stream after a join() sees what was called before the mark(). */
    status (*mark)(void *self, uint64_t mark);
    status (*join)(void *self, uint64_t mark);
    void (*launched)(void *self); /* a graph was, on the device's stream */
};

/* Vectors up to this many floats are exchanged whole: one message instead of two in a row. */
enum { COMM_WHOLE_LIMIT = 4096 };

/* Elements first..first + count of n, dealt out to `parts`: what part `index` sums up. */
struct comm_part {
    size_t first, count;
};
static inline struct comm_part comm_part(size_t n, size_t parts, size_t index)
{
    size_t each = n / parts;
    size_t extra = n % parts;
    struct comm_part part = {index * each + (index < extra ? index : extra),
                             each + (index < extra ? 1 : 0)};
    return part;
}

/* x[i] += y[i], or the larger of the two. */
static inline void comm_add(float *x, const float *y, size_t n, int max)
{
    for (size_t i = 0; i < n; i++) {
        if (max) {
            x[i] = y[i] > x[i] ? y[i] : x[i];
        } else {
            x[i] += y[i];
        }
    }
}

/* Every rank calls both with the same configuration.  *shared is false on all ranks where one of
 * them cannot see the memory of the first; *self is NULL then. */
status comm_shm_open(void **self, bool *shared, const struct comm_config *config);
status comm_gloo_open(void **self, const struct comm_config *config);
/* Likewise before them; *usable is false on all ranks where one of them has no GPU or no NCCL.  Its
 * buffers are the device's memory. */
status comm_nccl_open(void **self, bool *usable, const struct comm_config *config);

extern const struct comm_transport comm_shm, comm_gloo, comm_nccl;

#ifdef __cplusplus
}
#endif

#endif
