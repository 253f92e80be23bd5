#include "common/rpc_call.h"

#include "common/clock.h"
#include "common/log.h"

#include <grpc/byte_buffer.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- references and what is known of a call ---- */

void rpc_call_ref(struct rpc_call *call)
{
    atomic_fetch_add(&call->refs, 1);
}

void rpc_call_unref(struct rpc_call *call)
{
    if (!call || atomic_fetch_sub(&call->refs, 1) != 1) {
        return;
    }
    assert(!call->call);
    rpc_outbox_clear(&call->outbox);
    grpc_slice_unref(call->text);
    for (size_t i = 0; i < call->n_trailing; i++) {
        grpc_slice_unref(call->trailing[i].key);
        grpc_slice_unref(call->trailing[i].value);
    }
    gpr_free(call->peer);
    free(call->certificate);
    free(call->metadata);
    pthread_mutex_destroy(&call->lock);
    free(call);
}

void rpc_call_set_user(struct rpc_call *call, void *user)
{
    atomic_store(&call->user, user);
}

void *rpc_call_user(struct rpc_call *call)
{
    return atomic_load(&call->user);
}

const char *rpc_call_peer(struct rpc_call *call)
{
    return call->peer ? call->peer : "unknown";
}

const char *rpc_call_certificate(struct rpc_call *call)
{
    return call->certificate;
}

void rpc_call_set_caller(struct rpc_call *call, const char *name)
{
    snprintf(call->caller, sizeof(call->caller), "%s", name);
}

const char *rpc_call_caller(struct rpc_call *call)
{
    return call->caller;
}

/* The first of the properties of this name that is not empty. */
static const grpc_auth_property *find_property(const grpc_auth_context *auth, const char *name)
{
    grpc_auth_property_iterator at = grpc_auth_context_find_properties_by_name(auth, name);
    const grpc_auth_property *found = grpc_auth_property_iterator_next(&at);

    while (found && !found->value_length) {
        found = grpc_auth_property_iterator_next(&at);
    }
    return found;
}

bool rpc_call_read_certificate(struct rpc_call *call)
{
    grpc_auth_context *auth = grpc_call_auth_context(call->call);
    const grpc_auth_property *name = find_property(auth, GRPC_X509_CN_PROPERTY_NAME);

    if (!name) {
        name = find_property(auth, GRPC_X509_SAN_PROPERTY_NAME);
    }
    if (name) {
        call->certificate = strndup(name->value, name->value_length);
    }
    grpc_auth_context_release(auth);
    return !name || call->certificate;
}

int64_t rpc_call_time_left_ms(struct rpc_call *call)
{
    gpr_timespec never = gpr_inf_future(call->deadline.clock_type);

    if (gpr_time_cmp(call->deadline, never) == 0) {
        return INT64_MAX;
    }
    gpr_timespec left = gpr_time_sub(call->deadline, gpr_now(call->deadline.clock_type));
    return left.tv_sec * 1000 + left.tv_nsec / 1000000;
}

const char *rpc_call_metadata(struct rpc_call *call, const char *key)
{
    const char *at = call->metadata;

    for (size_t i = 0; i < call->n_metadata; i++) {
        const char *value = at + strlen(at) + 1;
        if (strcmp(at, key) == 0) {
            return value;
        }
        at = value + strlen(value) + 1;
    }
    return NULL;
}

/* Values of binary keys may hold NUL; such pairs are of no use here and are left out. */
static bool is_text(grpc_slice slice)
{
    return !memchr(GRPC_SLICE_START_PTR(slice), 0, GRPC_SLICE_LENGTH(slice));
}

static bool copy_metadata(struct rpc_call *call, const grpc_metadata_array *from)
{
    size_t bytes = 0;
    char *at;

    for (size_t i = 0; i < from->count; i++) {
        bytes += GRPC_SLICE_LENGTH(from->metadata[i].key) + 1;
        bytes += GRPC_SLICE_LENGTH(from->metadata[i].value) + 1;
    }
    call->metadata = at = malloc(bytes + 1);
    if (!at) {
        return false;
    }
    for (size_t i = 0; i < from->count; i++) {
        const grpc_slice pair[2] = {from->metadata[i].key, from->metadata[i].value};
        if (!is_text(pair[0]) || !is_text(pair[1])) {
            continue;
        }
        for (int j = 0; j < 2; j++) {
            memcpy(at, GRPC_SLICE_START_PTR(pair[j]), GRPC_SLICE_LENGTH(pair[j]));
            at += GRPC_SLICE_LENGTH(pair[j]);
            *at++ = '\0';
        }
        call->n_metadata++;
    }
    return true;
}

/* ---- the life of a call ---- */

/* Called without the lock whenever an operation completed; the last one tells the handler. */
static void settle(struct rpc_call *call)
{
    struct rpc_server *server = call->server;
    const struct rpc_handler *handler = call->handler;

    pthread_mutex_lock(&call->lock);
    bool over = call->call && call->closed && !call->receiving && !call->sending;
    grpc_call *grpc = call->call;
    if (over) {
        call->call = NULL;
    }
    bool finished = call->finish;
    pthread_mutex_unlock(&call->lock);
    if (!over) {
        return;
    }
    bool cancelled = call->cancelled && !finished;
    grpc_call_unref(grpc);
    if (handler && handler->on_done) {
        handler->on_done(call, cancelled, handler->context);
    }
    rpc_server_forget(server, call);
    rpc_call_unref(call);
    rpc_server_call_over(server);
}

void rpc_call_cut_stalled(struct rpc_call *call, double now, double limit_ms)
{
    bool cut = false;

    pthread_mutex_lock(&call->lock);
    if (call->call && call->sending && !call->cut) {
        double bytes = call->in_flight ? (double)call->in_flight->bytes : 0;
        cut = now - call->sending_since_ms > limit_ms + bytes / RPC_SEND_BYTES_PER_MS;
    }
    if (cut) {
        call->cut = true;
        grpc_call_cancel_with_status(call->call, GRPC_STATUS_RESOURCE_EXHAUSTED,
                                     "the client read nothing for too long", NULL);
    }
    pthread_mutex_unlock(&call->lock);
    if (cut) {
        log_warn("rpc: call cut, its client reads nothing peer=%s", rpc_call_peer(call));
    }
}

static void put_status(struct rpc_call *call, grpc_op *op)
{
    op->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op->data.send_status_from_server.status = (grpc_status_code)call->code;
    op->data.send_status_from_server.status_details = &call->text;
    op->data.send_status_from_server.trailing_metadata = call->trailing;
    op->data.send_status_from_server.trailing_metadata_count = call->n_trailing;
    call->finished = true;
}

/* With the lock held: starts the next batch of sends if none is under way. */
static void pump(struct rpc_call *call)
{
    grpc_op ops[3];
    size_t n = 0;

    if (call->sending || !call->call || call->send_failed || call->finished) {
        return;
    }
    if (!call->outbox.first && !call->finish) {
        return;
    }
    memset(ops, 0, sizeof(ops));
    if (!call->opened) {
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
        call->opened = true;
    }
    call->in_flight = rpc_outbox_take(&call->outbox);
    if (call->in_flight) {
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = call->in_flight->buffer;
    }
    if (call->finish && !call->outbox.first) {
        put_status(call, &ops[n++]);
    }
    call->sending = true;
    call->sending_since_ms = clock_ms();
    grpc_call_error error = rpc_start_batch(call->call, ops, n, &call->send_tag);
    assert(error == GRPC_CALL_OK);
}

static void on_sent(void *owner, bool ok)
{
    struct rpc_call *call = owner;
    const struct rpc_handler *handler = call->handler;

    pthread_mutex_lock(&call->lock);
    bool had_message = call->in_flight != NULL;
    rpc_outbox_sent(&call->outbox, call->in_flight);
    call->in_flight = NULL;
    call->sending = false;
    if (!ok) {
        call->send_failed = true; /* on_done follows: the client is gone */
        rpc_outbox_clear(&call->outbox);
    }
    pump(call);
    bool drained = ok && had_message && !call->sending && !call->finish;
    pthread_mutex_unlock(&call->lock);
    if (drained && handler && handler->on_drained) {
        handler->on_drained(call, handler->context);
    }
    settle(call);
}

static void on_closed(void *owner, bool ok)
{
    struct rpc_call *call = owner;

    (void)ok; /* `cancelled` says what there is to know */
    pthread_mutex_lock(&call->lock);
    call->closed = true;
    if (call->cancelled) {
        call->send_failed = true;
    }
    pthread_mutex_unlock(&call->lock);
    settle(call);
}

static void receive(struct rpc_call *call)
{
    grpc_op op;

    memset(&op, 0, sizeof(op));
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &call->received;
    pthread_mutex_lock(&call->lock);
    call->receiving = true;
    grpc_call_error error = rpc_start_batch(call->call, &op, 1, &call->recv_tag);
    pthread_mutex_unlock(&call->lock);
    assert(error == GRPC_CALL_OK);
}

/* True: another message may come. */
static bool deliver(struct rpc_call *call)
{
    const struct rpc_handler *handler = call->handler;
    size_t limit = call->max_message;
    size_t bytes = grpc_byte_buffer_length(call->received);
    char text[128];
    grpc_slice slice;

    if (bytes > limit) {
        snprintf(text, sizeof(text), "a message of %zu bytes exceeds the limit of %zu", bytes,
                 limit);
        rpc_call_finish(call, STATUS_EXHAUSTED, text, NULL, 0);
        return false;
    }
    if (!rpc_flatten(call->received, &slice)) {
        rpc_call_finish(call, STATUS_INVALID, "the message cannot be unpacked", NULL, 0);
        return false;
    }
    handler->on_message(call, GRPC_SLICE_START_PTR(slice), bytes, handler->context);
    grpc_slice_unref(slice);
    return handler->client_streaming;
}

static void on_received(void *owner, bool ok)
{
    struct rpc_call *call = owner;
    const struct rpc_handler *handler = call->handler;
    bool more = false;

    if (ok && call->received) {
        more = deliver(call);
    } else if (ok && !handler->client_streaming) {
        rpc_call_finish(call, STATUS_INVALID, "the call holds no request", NULL, 0);
    } else if (ok && handler->on_half_close) {
        handler->on_half_close(call, handler->context);
    }
    if (call->received) {
        grpc_byte_buffer_destroy(call->received);
        call->received = NULL;
    }
    if (more) {
        receive(call);
        return;
    }
    pthread_mutex_lock(&call->lock);
    call->receiving = false;
    pthread_mutex_unlock(&call->lock);
    settle(call);
}

struct rpc_call *rpc_call_create_take(struct rpc_server *server, const struct rpc_handler *handler,
                                      grpc_call *grpc, const grpc_call_details *details,
                                      const grpc_metadata_array *metadata)
{
    struct rpc_call *call = calloc(1, sizeof(*call));

    if (!call) {
        return NULL;
    }
    call->refs = 1;
    call->server = server;
    call->handler = handler;
    call->deadline = details->deadline;
    call->text = grpc_empty_slice();
    call->recv_tag = (struct rpc_tag){.done = on_received, .owner = call};
    call->send_tag = (struct rpc_tag){.done = on_sent, .owner = call};
    call->close_tag = (struct rpc_tag){.done = on_closed, .owner = call};
    if (!copy_metadata(call, metadata)) {
        free(call);
        return NULL;
    }
    pthread_mutex_init(&call->lock, NULL);
    call->peer = grpc_call_get_peer(grpc);
    call->call = grpc;
    return call;
}

static void await_close(struct rpc_call *call)
{
    grpc_op op;

    memset(&op, 0, sizeof(op));
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &call->cancelled;
    pthread_mutex_lock(&call->lock);
    grpc_call_error error = rpc_start_batch(call->call, &op, 1, &call->close_tag);
    pthread_mutex_unlock(&call->lock);
    assert(error == GRPC_CALL_OK);
}

void rpc_call_begin(struct rpc_call *call, size_t max_message)
{
    call->max_message = max_message;
    await_close(call);
    if (call->handler) {
        receive(call);
    }
}

/* ---- what handlers do ---- */

bool rpc_call_send(struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    bool accepted = false;

    pthread_mutex_lock(&call->lock);
    if (call->call && !call->send_failed && !call->finish) {
        accepted = rpc_outbox_put(&call->outbox, data, bytes);
        pump(call);
    }
    pthread_mutex_unlock(&call->lock);
    return accepted;
}

size_t rpc_call_unsent_bytes(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    size_t bytes = call->outbox.bytes;
    pthread_mutex_unlock(&call->lock);
    return bytes;
}

static void keep_trailing(struct rpc_call *call, const char *const *trailing, size_t n)
{
    for (size_t i = 0; i < n && call->n_trailing < RPC_MAX_METADATA; i++) {
        grpc_metadata *pair = &call->trailing[call->n_trailing];
        pair->key = grpc_slice_from_copied_string(trailing[2 * i]);
        pair->value = grpc_slice_from_copied_string(trailing[2 * i + 1]);
        if (grpc_header_key_is_legal(pair->key) && grpc_header_nonbin_value_is_legal(pair->value)) {
            call->n_trailing++;
            continue;
        }
        log_warn("rpc: not a trailer key=%s value=%s", trailing[2 * i], trailing[2 * i + 1]);
        grpc_slice_unref(pair->key);
        grpc_slice_unref(pair->value);
    }
}

void rpc_call_finish(struct rpc_call *call, status code, const char *message,
                     const char *const *trailing, size_t n_trailing)
{
    pthread_mutex_lock(&call->lock);
    if (call->call && !call->finish && !call->closed) {
        call->finish = true;
        call->code = code;
        call->text = grpc_slice_from_copied_string(message ? message : "");
        keep_trailing(call, trailing, n_trailing);
        pump(call);
    }
    pthread_mutex_unlock(&call->lock);
}
