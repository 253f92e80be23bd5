#include "common/keyring.h"
#include "common/log.h"
#include "common/rpc.h"
#include "common/rpc_core.h"
#include "common/rpc_tls.h"

#include <grpc/byte_buffer.h>
#include <grpc/support/alloc.h>

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CLIENT_KEEPALIVE_MS = 3000, /* a silent peer is noticed after this and */
    CLIENT_KEEPALIVE_TIMEOUT_MS = 10000,
    CLIENT_RECONNECT_MS = 100, /* first pause between attempts to connect, and the longest */
    CLIENT_RECONNECT_MAX_MS = 2000,
};

struct rpc_client {
    struct rpc_tls_files *tls; /* NULL: plaintext */
    struct keyring *secrets;   /* NULL: none */
    char *target;
    grpc_channel *channel; /* another one when the certificates change; guarded by lock */
    struct rpc_loop loop;
    pthread_mutex_t lock;
    pthread_cond_t idle;
    struct rpc_stream *streams; /* those not over */
    bool closing;
};

struct rpc_stream {
    atomic_int refs;
    struct rpc_client *client;
    struct rpc_stream *previous, *next; /* guarded by the client's lock */
    struct rpc_events events;

    pthread_mutex_t lock; /* guards what follows */
    grpc_call *call;      /* NULL once over */
    struct rpc_outbox outbox;
    struct rpc_outgoing *in_flight;
    bool sending; /* a batch of send operations is outstanding */
    bool half_close, half_closed;
    bool send_failed;
    bool receiving, ended; /* a receive is outstanding; the last one has come */

    struct rpc_tag start_tag, recv_tag, send_tag, end_tag;
    grpc_metadata authorization; /* sent if the client has a secret */
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *received;
    grpc_status_code code;
    grpc_slice text;
};

/* ---- one call ---- */

static void drop_ref(struct rpc_stream *stream)
{
    if (atomic_fetch_sub(&stream->refs, 1) != 1) {
        return;
    }
    assert(!stream->call);
    rpc_outbox_clear(&stream->outbox);
    grpc_slice_unref(stream->authorization.key);
    grpc_slice_unref(stream->authorization.value);
    pthread_mutex_destroy(&stream->lock);
    free(stream);
}

void rpc_stream_unref(struct rpc_stream *stream)
{
    if (stream) {
        drop_ref(stream);
    }
}

static void forget(struct rpc_stream *stream)
{
    struct rpc_client *client = stream->client;

    pthread_mutex_lock(&client->lock);
    if (stream->previous) {
        stream->previous->next = stream->next;
    } else {
        client->streams = stream->next;
    }
    if (stream->next) {
        stream->next->previous = stream->previous;
    }
    pthread_cond_broadcast(&client->idle);
    pthread_mutex_unlock(&client->lock);
}

static void describe_end(struct rpc_stream *stream, struct failure *end)
{
    size_t bytes = GRPC_SLICE_LENGTH(stream->text);

    memset(end, 0, sizeof(*end));
    end->code = (status)stream->code;
    if (stream->code == GRPC_STATUS_OK) {
        return;
    }
    if (!bytes) {
        snprintf(end->text, sizeof(end->text), "the call ended with status %d", (int)stream->code);
        return;
    }
    snprintf(end->text, sizeof(end->text), "%.*s", (int)bytes,
             (const char *)GRPC_SLICE_START_PTR(stream->text));
}

/* Called without the lock whenever an operation completed; the last one tells the owner. */
static void settle(struct rpc_stream *stream)
{
    struct failure end;
    grpc_call *call;

    pthread_mutex_lock(&stream->lock);
    bool over = stream->call && stream->ended && !stream->receiving && !stream->sending;
    call = stream->call;
    if (over) {
        stream->call = NULL;
    }
    pthread_mutex_unlock(&stream->lock);
    if (!over) {
        return;
    }
    describe_end(stream, &end);
    grpc_slice_unref(stream->text);
    grpc_metadata_array_destroy(&stream->initial);
    grpc_metadata_array_destroy(&stream->trailing);
    grpc_call_unref(call);
    stream->events.on_done(stream, &end, stream->events.context);
    forget(stream);
    drop_ref(stream);
}

/* With the lock held: starts the next batch of sends if none is under way. */
static void pump(struct rpc_stream *stream)
{
    grpc_op ops[2];
    size_t n = 0;

    if (stream->sending || !stream->call || stream->send_failed || stream->half_closed) {
        return;
    }
    memset(ops, 0, sizeof(ops));
    stream->in_flight = rpc_outbox_take(&stream->outbox);
    if (stream->in_flight) {
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = stream->in_flight->buffer;
    }
    if (stream->half_close && !stream->outbox.first) {
        ops[n++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
        stream->half_closed = true;
    }
    if (!n) {
        return;
    }
    stream->sending = true;
    grpc_call_error error = rpc_start_batch(stream->call, ops, n, &stream->send_tag);
    assert(error == GRPC_CALL_OK);
}

static void on_sent(void *owner, bool ok)
{
    struct rpc_stream *stream = owner;

    pthread_mutex_lock(&stream->lock);
    rpc_outbox_sent(&stream->outbox, stream->in_flight);
    stream->in_flight = NULL;
    stream->sending = false;
    if (!ok) {
        stream->send_failed = true; /* the status says why */
        rpc_outbox_clear(&stream->outbox);
    }
    pump(stream);
    pthread_mutex_unlock(&stream->lock);
    settle(stream);
}

static void receive(struct rpc_stream *stream)
{
    grpc_op op;

    memset(&op, 0, sizeof(op));
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &stream->received;
    pthread_mutex_lock(&stream->lock);
    stream->receiving = true;
    grpc_call_error error = rpc_start_batch(stream->call, &op, 1, &stream->recv_tag);
    pthread_mutex_unlock(&stream->lock);
    assert(error == GRPC_CALL_OK);
}

static void on_received(void *owner, bool ok)
{
    struct rpc_stream *stream = owner;
    bool more = ok && stream->received;
    grpc_slice slice;

    if (more) {
        if (rpc_flatten(stream->received, &slice)) {
            stream->events.on_message(stream, GRPC_SLICE_START_PTR(slice), GRPC_SLICE_LENGTH(slice),
                                      stream->events.context);
            grpc_slice_unref(slice);
        } else {
            rpc_stream_cancel(stream);
        }
    }
    if (stream->received) {
        grpc_byte_buffer_destroy(stream->received);
        stream->received = NULL;
    }
    if (more) {
        receive(stream);
        return;
    }
    pthread_mutex_lock(&stream->lock);
    stream->receiving = false;
    pthread_mutex_unlock(&stream->lock);
    settle(stream);
}

static void on_started(void *owner, bool ok)
{
    struct rpc_stream *stream = owner;

    pthread_mutex_lock(&stream->lock);
    stream->sending = false;
    stream->send_failed = stream->send_failed || !ok;
    pump(stream);
    pthread_mutex_unlock(&stream->lock);
    settle(stream);
}

static void on_end(void *owner, bool ok)
{
    struct rpc_stream *stream = owner;

    (void)ok; /* receiving the status never fails */
    pthread_mutex_lock(&stream->lock);
    stream->ended = true;
    pthread_mutex_unlock(&stream->lock);
    settle(stream);
}

static void start_batches(struct rpc_stream *stream)
{
    grpc_op ops[2];
    grpc_call_error errors[3];

    memset(ops, 0, sizeof(ops));
    pthread_mutex_lock(&stream->lock);
    stream->sending = true;
    stream->receiving = true;
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[0].data.send_initial_metadata.metadata = &stream->authorization;
    ops[0].data.send_initial_metadata.count = stream->client->secrets ? 1 : 0;
    errors[0] = rpc_start_batch(stream->call, ops, 1, &stream->start_tag);
    memset(ops, 0, sizeof(ops));
    ops[0].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[0].data.recv_status_on_client.trailing_metadata = &stream->trailing;
    ops[0].data.recv_status_on_client.status = &stream->code;
    ops[0].data.recv_status_on_client.status_details = &stream->text;
    errors[1] = rpc_start_batch(stream->call, ops, 1, &stream->end_tag);
    memset(ops, 0, sizeof(ops));
    ops[0].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[0].data.recv_initial_metadata.recv_initial_metadata = &stream->initial;
    ops[1].op = GRPC_OP_RECV_MESSAGE;
    ops[1].data.recv_message.recv_message = &stream->received;
    errors[2] = rpc_start_batch(stream->call, ops, 2, &stream->recv_tag);
    pthread_mutex_unlock(&stream->lock);
    assert(errors[0] == GRPC_CALL_OK && errors[1] == GRPC_CALL_OK && errors[2] == GRPC_CALL_OK);
}

static void put_secret(struct rpc_stream *stream)
{
    static const char scheme[] = "Bearer ";
    char value[sizeof(scheme) + KEYRING_MAX_SECRET];

    memcpy(value, scheme, sizeof(scheme));
    keyring_first(stream->client->secrets, value + sizeof(scheme) - 1);
    stream->authorization.key = grpc_slice_from_static_string("authorization");
    stream->authorization.value = grpc_slice_from_copied_string(value);
}

static struct rpc_stream *stream_create(struct rpc_client *client, const struct rpc_events *events)
{
    struct rpc_stream *stream = calloc(1, sizeof(*stream));

    if (!stream) {
        return NULL;
    }
    stream->refs = 2; /* the caller's and the call's own */
    stream->client = client;
    stream->events = *events;
    pthread_mutex_init(&stream->lock, NULL);
    grpc_metadata_array_init(&stream->initial);
    grpc_metadata_array_init(&stream->trailing);
    stream->text = grpc_empty_slice();
    stream->authorization.key = grpc_empty_slice();
    stream->authorization.value = grpc_empty_slice();
    if (client->secrets) {
        put_secret(stream);
    }
    stream->start_tag = (struct rpc_tag){.done = on_started, .owner = stream};
    stream->recv_tag = (struct rpc_tag){.done = on_received, .owner = stream};
    stream->send_tag = (struct rpc_tag){.done = on_sent, .owner = stream};
    stream->end_tag = (struct rpc_tag){.done = on_end, .owner = stream};
    return stream;
}

static grpc_channel *make_channel(const struct rpc_client *client)
{
    grpc_arg args[RPC_COMMON_ARGS + 8];
    size_t n =
        rpc_common_args(args, RPC_MAX_MESSAGE, CLIENT_KEEPALIVE_MS, CLIENT_KEEPALIVE_TIMEOUT_MS);

    args[n++] = rpc_int_arg(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    args[n++] = rpc_int_arg(GRPC_ARG_ENABLE_RETRIES, 0);
    args[n++] = rpc_int_arg(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    args[n++] = rpc_int_arg(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, CLIENT_RECONNECT_MS);
    args[n++] = rpc_int_arg(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, CLIENT_RECONNECT_MAX_MS);
    args[n++] = rpc_int_arg(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, CLIENT_RECONNECT_MAX_MS);
    grpc_channel_args channel_args = {.num_args = n, .args = args};
    grpc_channel_credentials *credentials =
        client->tls ? rpc_tls_channel_credentials(client->tls) : grpc_insecure_credentials_create();
    grpc_channel *channel = grpc_channel_create(client->target, credentials, &channel_args);
    grpc_channel_credentials_release(credentials);
    return channel;
}

status rpc_stream_open(struct rpc_stream **out, struct rpc_client *client, const char *path,
                       int64_t deadline_ms, const struct rpc_events *events)
{
    struct rpc_stream *stream = stream_create(client, events);
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);

    if (!stream) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a call");
    }
    if (deadline_ms > 0) {
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                gpr_time_from_millis(deadline_ms, GPR_TIMESPAN));
    }
    grpc_slice method = grpc_slice_from_copied_string(path);
    pthread_mutex_lock(&client->lock);
    bool refused = client->closing;
    if (!refused) {
        if (client->tls && rpc_tls_refresh(client->tls)) {
            grpc_channel_destroy(client->channel); /* its calls go on */
            client->channel = make_channel(client);
        }
        /* A call that is in the list can be cancelled. */
        stream->call = grpc_channel_create_call(client->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
                                                client->loop.queue, method, NULL, deadline, NULL);
        stream->next = client->streams;
        if (client->streams) {
            client->streams->previous = stream;
        }
        client->streams = stream;
    }
    pthread_mutex_unlock(&client->lock);
    grpc_slice_unref(method);
    if (refused) {
        stream->refs = 1;
        drop_ref(stream);
        return status_fail(STATUS_UNAVAILABLE, "the connection is being closed");
    }
    *out = stream; /* before the first event, whose callback may look at it */
    start_batches(stream);
    return STATUS_OK;
}

bool rpc_stream_send(struct rpc_stream *stream, const uint8_t *data, size_t bytes)
{
    bool accepted = false;

    pthread_mutex_lock(&stream->lock);
    if (stream->call && !stream->send_failed && !stream->half_close) {
        accepted = rpc_outbox_put(&stream->outbox, data, bytes);
        pump(stream);
    }
    pthread_mutex_unlock(&stream->lock);
    return accepted;
}

void rpc_stream_half_close(struct rpc_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    stream->half_close = true;
    pump(stream);
    pthread_mutex_unlock(&stream->lock);
}

void rpc_stream_cancel(struct rpc_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    if (stream->call) {
        grpc_call_cancel(stream->call, NULL);
    }
    pthread_mutex_unlock(&stream->lock);
}

/* ---- the client ---- */

static status open_identity(struct rpc_client *client, const struct rpc_identity *identity)
{
    status st = STATUS_OK;

    if (!identity) {
        return STATUS_OK;
    }
    if (identity->tls.ca) {
        st = rpc_tls_open(&client->tls, &identity->tls);
    } else if (identity->tls.cert || identity->tls.key) {
        st = status_fail(STATUS_INVALID, "a certificate without --tls-ca, which asks for TLS");
    }
    if (!st && identity->secret_file) {
        st = keyring_open(&client->secrets, identity->secret_file, false);
    }
    return st;
}

/* What is there is freed. */
static void free_client(struct rpc_client *client)
{
    if (client->channel) {
        grpc_channel_destroy(client->channel);
    }
    rpc_tls_close(client->tls);
    keyring_close(client->secrets);
    pthread_cond_destroy(&client->idle);
    pthread_mutex_destroy(&client->lock);
    free(client->target);
    free(client);
}

status rpc_client_open(struct rpc_client **out, const char *target,
                       const struct rpc_identity *identity)
{
    struct rpc_client *client = calloc(1, sizeof(*client));

    if (!client) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a connection to %s", target);
    }
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->idle, NULL);
    client->target = strdup(target);
    status st = client->target ? open_identity(client, identity)
                               : status_fail(STATUS_EXHAUSTED, "out of memory for %s", target);
    if (!st && !rpc_loop_start(&client->loop)) {
        st = status_fail(STATUS_EXHAUSTED, "no thread for a connection to %s", target);
    }
    if (st) {
        free_client(client);
        return st;
    }
    client->channel = make_channel(client);
    *out = client;
    return STATUS_OK;
}

void rpc_client_close(struct rpc_client *client)
{
    if (!client) {
        return;
    }
    pthread_mutex_lock(&client->lock);
    client->closing = true;
    for (struct rpc_stream *stream = client->streams; stream; stream = stream->next) {
        rpc_stream_cancel(stream);
    }
    while (client->streams) {
        pthread_cond_wait(&client->idle, &client->lock);
    }
    pthread_mutex_unlock(&client->lock);
    rpc_loop_stop(&client->loop);
    free_client(client);
}

/* ---- unary ---- */

struct unary {
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool over;
    struct failure end;
    uint8_t *reply;
    size_t bytes;
    bool got, failed;
};

static void unary_message(struct rpc_stream *stream, const uint8_t *data, size_t bytes,
                          void *context)
{
    struct unary *unary = context;

    if (unary->got || unary->failed) {
        rpc_stream_cancel(stream);
        return;
    }
    unary->reply = malloc(bytes + 1);
    if (!unary->reply) {
        unary->failed = true;
        rpc_stream_cancel(stream);
        return;
    }
    memcpy(unary->reply, data, bytes);
    unary->reply[bytes] = 0;
    unary->bytes = bytes;
    unary->got = true;
}

static void unary_done(struct rpc_stream *stream, const struct failure *end, void *context)
{
    struct unary *unary = context;

    (void)stream;
    pthread_mutex_lock(&unary->lock);
    unary->end = *end;
    unary->over = true;
    pthread_cond_signal(&unary->done);
    pthread_mutex_unlock(&unary->lock);
}

static status unary_wait(struct unary *unary)
{
    pthread_mutex_lock(&unary->lock);
    while (!unary->over) {
        pthread_cond_wait(&unary->done, &unary->lock);
    }
    pthread_mutex_unlock(&unary->lock);
    if (unary->failed) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a reply");
    }
    if (unary->end.code) {
        return status_fail(unary->end.code, "%s", unary->end.text);
    }
    return unary->got ? STATUS_OK : status_fail(STATUS_INTERNAL, "the reply holds no message");
}

status rpc_unary(struct rpc_client *client, const char *path, int64_t deadline_ms,
                 const uint8_t *data, size_t bytes, uint8_t **out, size_t *out_bytes)
{
    struct unary unary = {.over = false};
    struct rpc_events events = {unary_message, unary_done, &unary};
    struct rpc_stream *stream = NULL;

    pthread_mutex_init(&unary.lock, NULL);
    pthread_cond_init(&unary.done, NULL);
    status st = rpc_stream_open(&stream, client, path, deadline_ms, &events);
    if (!st) {
        assert(stream);
        if (!rpc_stream_send(stream, data, bytes)) {
            rpc_stream_cancel(stream); /* over already, and then the status says why */
        }
        rpc_stream_half_close(stream);
        st = unary_wait(&unary);
        rpc_stream_unref(stream);
    }
    if (st) {
        free(unary.reply);
    } else {
        *out = unary.reply;
        *out_bytes = unary.bytes;
    }
    pthread_cond_destroy(&unary.done);
    pthread_mutex_destroy(&unary.lock);
    return st;
}
