/*
 * comm_direct.h - short messages between the ranks of a group on several hosts.
 *
 * A connection to each peer that carries what the ranks say and nothing else, written and read by
 * the thread that calls: no announcements, no other thread to wake.  Messages are so short that
 * sockets take them whole as a rule; longer ones are right, too.
 *
 * Calls as in comm.h: the same ones in the same order on every rank that takes part.  After a
 * failure all later calls fail.
 */
#ifndef WORKER_COMM_DIRECT_H
#define WORKER_COMM_DIRECT_H

#include "worker/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

struct direct;

/* Every rank calls; STATUS_UNAVAILABLE as mesh_open() says. */
status direct_open(struct direct **out, const struct comm_config *config, int connect_ms);
void direct_close(struct direct *direct); /* NULL is fine */

/* all (count, bytes): member i is rank first + i.  The place of this rank, one of them, holds its
 * message; the others get theirs.  STATUS_UNAVAILABLE: aborted, a peer is gone, or nothing came
 * from it within the configuration's timeout_ms. */
status direct_exchange(struct direct *direct, int first, int count, void *all, size_t bytes);

/* From any thread. */
void direct_abort(struct direct *direct);
int direct_waits_for(const struct direct *direct); /* the last peer whose message was not there */

#ifdef __cplusplus
}
#endif

#endif
