/* decode.h - one token for every sequence of a plan's decode list, up to 64 rows at once. */
#ifndef WORKER_DECODE_H
#define WORKER_DECODE_H

#include "worker/kvcache.h"
#include "worker/member.h"
#include "worker/sequence.h"

/* Feeds each sequence the token it chose last; its keys and values join the cache.  Brings `rows`
 * into an order of its own, and leaves the logits (n, vocabulary rows) in scratch in that order.
 * A row's bits do not depend on the others. */
status decode_step(struct member *member, struct kvcache *cache, struct sequence **rows, int n);

/* Behind a device_sync() after decode_step(), of the same rows: those that the device chose leave
 * the cache. */
status decode_end(struct member *member, struct kvcache *cache, struct sequence **rows, int n);

#endif
