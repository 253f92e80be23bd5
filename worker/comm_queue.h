/*
 * comm_queue.h - sums over ranks that are on their way while the engine computes.
 *
 * A thread of its own carries them out one after the other, in the order in which they were added.
 * The engine thread adds and waits; it may use the transport itself once it has waited for the last
 * one.  After a failure nothing more is carried out: all that follow fail alike.
 */
#ifndef WORKER_COMM_QUEUE_H
#define WORKER_COMM_QUEUE_H

#include "common/status.h"

#include <stdint.h>

enum { COMM_QUEUE_LENGTH = 8 }; /* sums that are added and not carried out; one more waits */

struct comm_queue;

/* x (n) = the sum over all ranks. */
typedef status comm_queue_sum(void *context, float *x, size_t n);

status comm_queue_create(struct comm_queue **out, comm_queue_sum *sum, void *context);

/* Waits for the sum in progress only; NULL is fine. */
void comm_queue_destroy(struct comm_queue *queue);

/* x belongs to the queue until it was waited for.  The number of the sum, from 1 on. */
uint64_t comm_queue_add(struct comm_queue *queue, float *x, size_t n);

/* For the sum of that number and all before it. */
status comm_queue_wait(struct comm_queue *queue, uint64_t number);

/* The number of the last one added; 0: none yet. */
uint64_t comm_queue_last(const struct comm_queue *queue);

/* Milliseconds in sums that were carried out since the last call. */
double comm_queue_take_ms(struct comm_queue *queue);

#endif
