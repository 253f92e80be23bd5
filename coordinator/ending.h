/*
 * ending.h - from the wish to stop to the last running request.
 *
 * A first SIGTERM or SIGINT: health says NOT_SERVING at once, but new requests are accepted for a
 * short window still, because load balancers learn of it late.  Then new requests are refused, and
 * running ones have a bounded time to end; those that do not are failed.  A second signal ends
 * both waits at once, a third one the process.
 */
#ifndef COORDINATOR_ENDING_H
#define COORDINATOR_ENDING_H

#include "common/health.h"
#include "coordinator/service.h"

struct ending {
    struct health *health;
    struct service *service;
    int64_t window_ms; /* in which new requests are accepted still */
    int64_t drain_ms;  /* then, for running requests */
};

/* Once, before threads start. */
void ending_watch_signals(void);

/* The service's on_hopeless: as a signal, but nobody is waited for and the cause is kept. */
void ending_give_up(const struct failure *failure, void *context);

/* Waits until somebody wants the end.  A failure: it is hopeless, and why. */
status ending_await(void);

/* The rest of the way; after ending_await(). */
void ending_drain(const struct ending *ending);

#endif
