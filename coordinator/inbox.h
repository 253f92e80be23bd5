/*
 * inbox.h - events on their way to the one thread that handles them, in order.
 *
 * An event lies at the start of the sender's own struct.  Whoever may send without limit asks
 * inbox_try_put(); those whose events are bounded by something else use inbox_put().
 */
#ifndef COORDINATOR_INBOX_H
#define COORDINATOR_INBOX_H

#include "common/status.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct inbox_event {
    struct inbox_event *next;
    int kind;
};

struct inbox {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct inbox_event *first, **last;
    size_t n, most;
};

status inbox_init(struct inbox *inbox, size_t most);
void inbox_fini(struct inbox *inbox); /* it is empty */

void inbox_put(struct inbox *inbox, struct inbox_event *event);
bool inbox_try_put(struct inbox *inbox, struct inbox_event *event); /* false: it is full */

/* All events that wait, linked by next, or NULL after timeout_ms without any. */
struct inbox_event *inbox_take_all(struct inbox *inbox, int64_t timeout_ms);

#endif
