/*
 * rpc_accept.h - servers that go on listening when file descriptors run out.
 *
 * gRPC 1.51 gives a listening socket up for good when one accept4() fails (CVE-2023-4785): a client
 * that opens connections until there is no descriptor left would lock everybody out for ever.
 * rpc_accept.c takes the place of accept4() in this process: with few descriptors left, further
 * connections are closed at once, and failures that will pass mean "nothing to accept just now".
 */
#ifndef COMMON_RPC_ACCEPT_H
#define COMMON_RPC_ACCEPT_H

enum rpc_accept_limits {
    RPC_ACCEPT_MAX = 65536,  /* descriptors that a process asks the system for */
    RPC_ACCEPT_RESERVE = 32, /* that connections leave to files, memory and logs */
};

/* Raises this process's limit of descriptors, as far as it may. */
void rpc_accept_init(void);

#endif
