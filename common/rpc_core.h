/*
 * rpc_core.h - what rpc_server.c and rpc_client.c share; nobody else includes it.
 *
 * A tag embeds its callback, so the completion loop knows nothing of calls.  Each loop is one
 * thread with its own queue: what happens to one call happens on one thread, in order.
 */
#ifndef COMMON_RPC_CORE_H
#define COMMON_RPC_CORE_H

#include <grpc/grpc.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct rpc_tag {
    void (*done)(void *owner, bool ok);
    void *owner;
    atomic_bool handed; /* to gRPC; see rpc_tag_hand() */
};

struct rpc_loop {
    grpc_completion_queue *queue;
    pthread_t thread;
};

/* Messages waiting to be sent, in order; the caller's lock guards it. */
struct rpc_outgoing {
    struct rpc_outgoing *next;
    grpc_byte_buffer *buffer;
    size_t bytes;
};

struct rpc_outbox {
    struct rpc_outgoing *first, *last;
    size_t bytes; /* of all that is not yet written, the one in flight included */
};

/* Before a tag is given to gRPC.  What this thread wrote is seen by the loop that gets the tag
 * back: gRPC sees to that too, but not in a way that tools which look for races can follow. */
void rpc_tag_hand(struct rpc_tag *tag);
grpc_call_error rpc_start_batch(grpc_call *call, const grpc_op *ops, size_t n_ops,
                                struct rpc_tag *tag);

bool rpc_loop_start(struct rpc_loop *loop); /* false: no thread or no memory */
void rpc_loop_stop(struct rpc_loop *loop);  /* every event has been delivered when it returns */

/* False: out of memory. */
bool rpc_outbox_put(struct rpc_outbox *box, const uint8_t *data, size_t bytes);
struct rpc_outgoing *rpc_outbox_take(struct rpc_outbox *box); /* NULL: empty */
/* The message has been written, or never will be. */
void rpc_outbox_sent(struct rpc_outbox *box, struct rpc_outgoing *message);
void rpc_outbox_clear(struct rpc_outbox *box);

/* The bytes of a received message in one piece; false: not readable.  Unref the slice. */
bool rpc_flatten(grpc_byte_buffer *buffer, grpc_slice *out);

/* Channel arguments that both sides set: sizes, keepalive, no proxies. */
enum { RPC_COMMON_ARGS = 8 };
size_t rpc_common_args(grpc_arg *args, size_t max_message, int keepalive_ms,
                       int keepalive_timeout_ms);
grpc_arg rpc_int_arg(const char *key, int value);

#endif
