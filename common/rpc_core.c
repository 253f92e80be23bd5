#include "common/rpc_core.h"

#include "common/log.h"
#include "common/rpc.h"
#include "common/rpc_accept.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/support/log.h>

#include <assert.h>
#include <limits.h>
#include <stdlib.h>

/* What gRPC reports is told to callers as a status; the rest is for those who look for it. */
static void forward_log(gpr_log_func_args *args)
{
    log_debug("grpc: %s", args->message);
}

void rpc_init(void)
{
    rpc_accept_init();
    gpr_set_log_function(forward_log);
    /* The system's resolver: gRPC's own asks a name server for names that /etc/hosts has, and waits
     * 3 s where there is none.  It takes no channel argument. */
    setenv("GRPC_DNS_RESOLVER", "native", 0);
    grpc_init();
}

void rpc_fini(void)
{
    grpc_shutdown_blocking();
}

void rpc_tag_hand(struct rpc_tag *tag)
{
    atomic_store_explicit(&tag->handed, true, memory_order_release);
}

grpc_call_error rpc_start_batch(grpc_call *call, const grpc_op *ops, size_t n_ops,
                                struct rpc_tag *tag)
{
    rpc_tag_hand(tag);
    return grpc_call_start_batch(call, ops, n_ops, tag, NULL);
}

static void *run_loop(void *context)
{
    struct rpc_loop *loop = context;

    for (;;) {
        grpc_event event =
            grpc_completion_queue_next(loop->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN) {
            return NULL;
        }
        if (event.type == GRPC_OP_COMPLETE) {
            struct rpc_tag *tag = event.tag;
            bool handed = atomic_load_explicit(&tag->handed, memory_order_acquire);
            assert(handed);
            tag->done(tag->owner, event.success != 0);
        }
    }
}

bool rpc_loop_start(struct rpc_loop *loop)
{
    loop->queue = grpc_completion_queue_create_for_next(NULL);
    if (pthread_create(&loop->thread, NULL, run_loop, loop)) {
        grpc_completion_queue_shutdown(loop->queue);
        grpc_completion_queue_destroy(loop->queue);
        loop->queue = NULL;
        return false;
    }
    return true;
}

void rpc_loop_stop(struct rpc_loop *loop)
{
    if (!loop->queue) {
        return;
    }
    grpc_completion_queue_shutdown(loop->queue);
    pthread_join(loop->thread, NULL);
    grpc_completion_queue_destroy(loop->queue);
    loop->queue = NULL;
}

bool rpc_outbox_put(struct rpc_outbox *box, const uint8_t *data, size_t bytes)
{
    struct rpc_outgoing *message = calloc(1, sizeof(*message));

    if (!message) {
        return false;
    }
    grpc_slice slice = grpc_slice_from_copied_buffer((const char *)data, bytes);
    message->buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    message->bytes = bytes + RPC_MESSAGE_COST;
    if (box->last) {
        box->last->next = message;
    } else {
        box->first = message;
    }
    box->last = message;
    box->bytes += message->bytes;
    return true;
}

struct rpc_outgoing *rpc_outbox_take(struct rpc_outbox *box)
{
    struct rpc_outgoing *message = box->first;

    if (message) {
        box->first = message->next;
        box->last = box->first ? box->last : NULL;
        message->next = NULL;
    }
    return message;
}

void rpc_outbox_sent(struct rpc_outbox *box, struct rpc_outgoing *message)
{
    if (message) {
        box->bytes -= message->bytes;
        grpc_byte_buffer_destroy(message->buffer);
        free(message);
    }
}

void rpc_outbox_clear(struct rpc_outbox *box)
{
    struct rpc_outgoing *message;

    while ((message = rpc_outbox_take(box))) {
        rpc_outbox_sent(box, message);
    }
}

bool rpc_flatten(grpc_byte_buffer *buffer, grpc_slice *out)
{
    grpc_byte_buffer_reader reader;

    if (!grpc_byte_buffer_reader_init(&reader, buffer)) {
        return false;
    }
    *out = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    return true;
}

grpc_arg rpc_int_arg(const char *key, int value)
{
    return (grpc_arg){
        .type = GRPC_ARG_INTEGER,
        .key = (char *)key,
        .value.integer = value,
    };
}

size_t rpc_common_args(grpc_arg *args, size_t max_message, int keepalive_ms,
                       int keepalive_timeout_ms)
{
    int bytes = max_message > INT_MAX ? INT_MAX : (int)max_message;
    size_t n = 0;

    args[n++] = rpc_int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, bytes);
    args[n++] = rpc_int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, keepalive_ms);
    args[n++] = rpc_int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, keepalive_timeout_ms);
    args[n++] = rpc_int_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    args[n++] = rpc_int_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    /* The size limit counts compressed bytes: a small message could unpack to any size. */
    args[n++] = rpc_int_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1);
    return n;
}
