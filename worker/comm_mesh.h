/*
 * comm_mesh.h - a TCP connection to each other rank of a group.
 *
 * A rank publishes its address and a random key in the store; whoever connects says the key and its
 * own rank first, and strangers are hung up on.  Higher ranks connect to lower ones.
 */
#ifndef WORKER_COMM_MESH_H
#define WORKER_COMM_MESH_H

#include "worker/comm.h"

/* sockets (size), by rank: non-blocking, without Nagle's delay; -1 for this rank.  The caller
 * closes them with mesh_close(), after a failure as well.  A peer whose address is known and that
 * does not come within connect_ms, or a group that was dissolved, fails with STATUS_UNAVAILABLE. */
status mesh_open(int *sockets, const struct comm_config *config, int connect_ms);
void mesh_close(int *sockets, int size);

#endif
