/*
 * helpers_group.h - several ranks in one process, a thread each, over real collectives.
 *
 * group_run() starts `size` threads; each opens its comm over a shared in-memory store, calls
 * `body`, and closes it.  A failed status of any rank fails the test with its sentence.
 */
#ifndef TESTS_WORKER_HELPERS_GROUP_H
#define TESTS_WORKER_HELPERS_GROUP_H

#include "worker/comm.h"

typedef status group_body(struct comm *comm, void *context);

void group_run(int size, group_body *body, void *context);

/* Bit r: rank r refuses shared memory, so the group exchanges over TCP.  0 at start. */
extern unsigned group_tcp_ranks;

/* By rank, the devices whose memory the collectives take; NULL: the host's.  At start NULL. */
struct device;
extern struct device **group_devices;

/* Of one collective.  120000 at start: ranks under sanitizers on a busy machine are slow. */
extern int group_timeout_ms;

#endif
