/*
 * rpc_call.h - one call on the server side; shared by rpc_server.c and rpc_call.c only.
 *
 * A call is over when its close has come and no operation is outstanding; then the handler is
 * told, once, and the gRPC call is released.  The structure lives as long as its references.
 */
#ifndef COMMON_RPC_CALL_H
#define COMMON_RPC_CALL_H

#include "common/rpc.h"
#include "common/rpc_core.h"

#include <stdatomic.h>

struct rpc_call {
    atomic_int refs;
    struct rpc_server *server;
    struct rpc_call *previous, *next;  /* of the server's, guarded by its lock */
    size_t max_message;                /* of the client */
    const struct rpc_handler *handler; /* NULL: refused */
    _Atomic(void *) user;
    char *peer;        /* of gpr_malloc */
    char *certificate; /* NULL: none */
    char caller[RPC_MAX_CALLER + 1];
    char *metadata; /* key NUL value NUL ... */
    size_t n_metadata;
    gpr_timespec deadline;

    pthread_mutex_t lock; /* guards what follows */
    grpc_call *call;      /* NULL once over */
    struct rpc_outbox outbox;
    struct rpc_outgoing *in_flight;
    bool sending, receiving;
    double sending_since_ms;
    bool cut;              /* its client read nothing for too long */
    bool opened;           /* initial metadata is on its way */
    bool finish, finished; /* asked for; on its way */
    bool send_failed;
    bool closed;
    int cancelled;
    status code;
    grpc_slice text;
    grpc_metadata trailing[RPC_MAX_METADATA];
    size_t n_trailing;

    struct rpc_tag recv_tag, send_tag, close_tag;
    grpc_byte_buffer *received;
};

/* What arrived: `handler` NULL if the call is only to be refused with rpc_call_finish().  Takes
 * the gRPC call; NULL when memory is short, and then the gRPC call is still the caller's. */
struct rpc_call *rpc_call_create_take(struct rpc_server *server, const struct rpc_handler *handler,
                                      grpc_call *grpc, const grpc_call_details *details,
                                      const grpc_metadata_array *metadata);
/* Reads the verified certificate of the client; false: out of memory. */
bool rpc_call_read_certificate(struct rpc_call *call);
/* Events may come from now on; `max_message`: bytes of a client's message. */
void rpc_call_begin(struct rpc_call *call, size_t max_message);

/* Cancels the call if what is being sent makes no way for limit_ms; any thread. */
void rpc_call_cut_stalled(struct rpc_call *call, double now, double limit_ms);

/* The server looks after the call no more; before the call's own reference is given back. */
void rpc_server_forget(struct rpc_server *server, struct rpc_call *call);

/* The last word of a call: nothing of it touches the server afterwards. */
void rpc_server_call_over(struct rpc_server *server);

#endif
