#include "coordinator/dispatch.h"

#include "common/envelope.h"
#include "common/log.h"
#include "common/rpc.h"
#include "winnow/v1/worker.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct dispatch {
    struct dispatch_sink sink;
    struct rpc_handler handler;
    struct rpc_server *server;
};

struct dispatch_peer {
    struct rpc_call *call; /* one reference */
    struct fleet_worker *worker;
    char address[SERVICE_TEXT];
};

/* ---- streams ---- */

static struct dispatch_peer *new_peer(struct rpc_call *call)
{
    struct dispatch_peer *peer = calloc(1, sizeof(*peer));

    if (peer) {
        rpc_call_ref(call);
        peer->call = call;
        snprintf(peer->address, sizeof(peer->address), "%s", rpc_call_peer(call));
        rpc_call_set_user(call, peer);
    }
    return peer;
}

static void on_message(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    struct dispatch *dispatch = context;
    struct dispatch_peer *peer = rpc_call_user(call);
    uint8_t *copy = malloc(bytes + 1);

    if (!peer) {
        peer = new_peer(call);
    }
    if (!copy || !peer) {
        free(copy);
        rpc_call_finish(call, STATUS_EXHAUSTED, "no memory for a worker's message", NULL, 0);
        return;
    }
    memcpy(copy, data, bytes);
    dispatch->sink.on_message(dispatch->sink.context, peer, copy, bytes);
}

static void on_half_close(struct rpc_call *call, void *context)
{
    (void)context;
    rpc_call_finish(call, STATUS_OK, "", NULL, 0);
}

static void on_done(struct rpc_call *call, bool cancelled, void *context)
{
    struct dispatch *dispatch = context;
    struct dispatch_peer *peer = rpc_call_user(call);

    (void)cancelled;
    if (peer) {
        dispatch->sink.on_gone(dispatch->sink.context, peer);
    }
}

status dispatch_open(struct dispatch **out, const struct dispatch_config *config,
                     const struct dispatch_sink *sink)
{
    struct dispatch *dispatch = calloc(1, sizeof(*dispatch));
    status st;

    if (!dispatch) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the worker plane");
    }
    dispatch->sink = *sink;
    dispatch->handler = (struct rpc_handler){
        .path = "/winnow.v1.Fleet/Join",
        .on_message = on_message,
        .on_half_close = on_half_close,
        .on_done = on_done,
        .client_streaming = true,
        .max_message = DISPATCH_MAX_MESSAGE,
        .context = dispatch,
    };
    st = rpc_server_start(&dispatch->server, &(struct rpc_server_config){
                                                 .listen = config->listen,
                                                 .handlers = &dispatch->handler,
                                                 .n_handlers = 1,
                                                 .completion_threads = DISPATCH_THREADS,
                                                 .max_message = DISPATCH_MAX_MESSAGE,
                                                 .tls = config->tls,
                                                 .authorize = callers_authorize,
                                                 .context = config->callers,
                                             });
    if (st) {
        free(dispatch);
        return status_note(st, "worker plane");
    }
    *out = dispatch;
    return STATUS_OK;
}

void dispatch_close(struct dispatch *dispatch)
{
    if (dispatch) {
        rpc_server_stop(dispatch->server, 0);
        free(dispatch);
    }
}

int dispatch_port(const struct dispatch *dispatch)
{
    return rpc_server_port(dispatch->server);
}

void dispatch_set_worker(struct dispatch_peer *peer, struct fleet_worker *worker)
{
    peer->worker = worker;
}

struct fleet_worker *dispatch_worker(const struct dispatch_peer *peer)
{
    return peer->worker;
}

const char *dispatch_address(const struct dispatch_peer *peer)
{
    return peer->address;
}

void dispatch_free_peer(struct dispatch_peer *peer)
{
    rpc_call_unref(peer->call);
    free(peer);
}

/* ---- out ---- */

void dispatch_end(struct dispatch_peer *peer, const struct failure *failure)
{
    rpc_call_finish(peer->call, failure->code, failure->text, NULL, 0);
}

static void end_for_want_of_memory(struct dispatch_peer *peer)
{
    struct failure failure;

    status_save(&failure, STATUS_EXHAUSTED);
    log_error("dispatch: message not sent peer=%s reason=\"%s\"", peer->address, failure.text);
    dispatch_end(peer, &failure);
}

/* False is a stream that is over: its on_gone says so. */
static void send_bytes(struct dispatch_peer *peer, const uint8_t *data, size_t bytes)
{
    if (!rpc_call_send(peer->call, data, bytes)) {
        log_debug("dispatch: stream is over peer=%s", peer->address);
    }
}

static void send_message(struct dispatch_peer *peer, enum coordinator_field field,
                         const ProtobufCMessage *message)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *payload = malloc(bytes + 1);
    uint8_t *data;
    size_t n;
    status st = payload ? STATUS_OK : status_fail(STATUS_EXHAUSTED, "no memory for a message");

    if (!st) {
        protobuf_c_message_pack(message, payload);
        st = envelope_wrap(&data, &n, (int)field, payload, bytes);
    }
    if (st) {
        end_for_want_of_memory(peer);
    } else {
        send_bytes(peer, data, n);
        free(data);
    }
    free(payload);
}

void dispatch_assign(struct dispatch_peer *peer, const struct fleet_assignment *assignment)
{
    Winnow__V1__Assignment m = WINNOW__V1__ASSIGNMENT__INIT;
    const char *dtype = dtype_name(assignment->dtype);

    m.group = assignment->group;
    m.rank = assignment->rank;
    m.size = assignment->size;
    m.epoch = assignment->epoch;
    m.dtype = (ProtobufCBinaryData){.len = strlen(dtype), .data = (uint8_t *)dtype};
    m.max_context = assignment->max_context;
    m.check_selection = assignment->check_selection;
    send_message(peer, COORDINATOR_ASSIGN, &m.base);
}

void dispatch_store(struct dispatch_peer *peer, const struct fleet_entry *entry)
{
    Winnow__V1__StoreEntry m = WINNOW__V1__STORE_ENTRY__INIT;

    m.epoch = entry->epoch;
    m.key = (ProtobufCBinaryData){.len = entry->key_bytes, .data = (uint8_t *)entry->key};
    m.value = (ProtobufCBinaryData){.len = entry->value_bytes, .data = (uint8_t *)entry->value};
    send_message(peer, COORDINATOR_STORE, &m.base);
}

void dispatch_leave(struct dispatch_peer *peer, uint64_t epoch)
{
    Winnow__V1__LeaveGroup m = WINNOW__V1__LEAVE_GROUP__INIT;

    m.epoch = epoch;
    send_message(peer, COORDINATOR_LEAVE, &m.base);
}

status dispatch_plan(struct dispatch_peer *const *peers, size_t n_peers, const struct plan *plan)
{
    uint8_t *payload = NULL;
    uint8_t *data = NULL;
    size_t bytes;
    size_t n;
    status st = plan_encode(plan, &payload, &bytes);

    if (!st) {
        st = envelope_wrap(&data, &n, COORDINATOR_PLAN, payload, bytes);
    }
    for (size_t i = 0; i < n_peers && !st; i++) {
        if (peers[i]) {
            send_bytes(peers[i], data, n);
        }
    }
    free(payload);
    free(data);
    return st;
}

/* ---- in ---- */

/* Text from outside becomes a C string; what does not fit or is not printable is cut there. */
static void copy_text(char *out, size_t out_size, const ProtobufCBinaryData *in)
{
    size_t n = 0;

    while (n < in->len && n + 1 < out_size && in->data[n] >= 0x20 && in->data[n] != 0x7f) {
        out[n] = (char)in->data[n];
        n++;
    }
    out[n] = '\0';
}

static status not_a(const char *what, size_t bytes)
{
    return status_fail(STATUS_INVALID, "%zu bytes are not a %s", bytes, what);
}

static status open_hello(struct worker_message *out, const uint8_t *data, size_t bytes)
{
    Winnow__V1__WorkerHello *m = winnow__v1__worker_hello__unpack(NULL, bytes, data);

    if (!m) {
        return not_a("WorkerHello", bytes);
    }
    copy_text(out->hello.host, sizeof(out->hello.host), &m->host);
    copy_text(out->hello.device, sizeof(out->hello.device), &m->device);
    copy_text(out->hello.build, sizeof(out->hello.build), &m->build);
    copy_text(out->hello.cohort, sizeof(out->hello.cohort), &m->cohort);
    out->hello.model_fingerprint = m->model_fingerprint;
    out->hello.memory_bytes = m->memory_bytes;
    out->hello.process = m->process;
    out->hello.loaded_rank = m->loaded_rank;
    out->hello.loaded_size = m->loaded_size;
    out->hello.fixed_rank = -1;
    if (m->_fixed_rank_case == WINNOW__V1__WORKER_HELLO___FIXED_RANK_FIXED_RANK) {
        out->hello.fixed_rank = m->fixed_rank;
    }
    winnow__v1__worker_hello__free_unpacked(m, NULL);
    return STATUS_OK;
}

static status open_ready(struct worker_message *out, const uint8_t *data, size_t bytes)
{
    Winnow__V1__WorkerReady *m = winnow__v1__worker_ready__unpack(NULL, bytes, data);

    if (!m) {
        return not_a("WorkerReady", bytes);
    }
    out->epoch = m->epoch;
    out->ready = (struct fleet_ready){
        .epoch = m->epoch,
        .kv_bytes_total = m->kv_bytes_total,
        .pages_total = m->pages_total,
        .page_rows = m->page_rows,
        .weight_bytes = m->weight_bytes,
        .scratch_bytes = m->scratch_bytes,
    };
    copy_text(out->ready.device, sizeof(out->ready.device), &m->device);
    winnow__v1__worker_ready__free_unpacked(m, NULL);
    return STATUS_OK;
}

static status open_store(struct worker_message *out, const uint8_t *data, size_t bytes)
{
    Winnow__V1__StoreEntry *m = winnow__v1__store_entry__unpack(NULL, bytes, data);

    if (!m) {
        return not_a("StoreEntry", bytes);
    }
    out->owned = m;
    out->epoch = m->epoch;
    out->entry = (struct fleet_entry){
        .epoch = m->epoch,
        .key = (const char *)m->key.data,
        .key_bytes = m->key.len,
        .value = m->value.data,
        .value_bytes = m->value.len,
    };
    if (m->key.len == 0 || m->key.len > FLEET_MAX_KEY || m->value.len > FLEET_MAX_VALUE) {
        return status_fail(STATUS_INVALID,
                           "a store entry of %zu and %zu bytes exceeds the limits of %d and %d",
                           m->key.len, m->value.len, FLEET_MAX_KEY, FLEET_MAX_VALUE);
    }
    return STATUS_OK;
}

static status open_beat(struct worker_message *out, const uint8_t *data, size_t bytes)
{
    Winnow__V1__WorkerBeat *m = winnow__v1__worker_beat__unpack(NULL, bytes, data);

    if (!m) {
        return not_a("WorkerBeat", bytes);
    }
    out->epoch = m->epoch;
    out->beat = (struct fleet_beat){m->epoch, m->waiting_ms, m->waiting_for, m->memory_peak_bytes};
    winnow__v1__worker_beat__free_unpacked(m, NULL);
    return STATUS_OK;
}

static status open_fault(struct worker_message *out, const uint8_t *data, size_t bytes)
{
    Winnow__V1__WorkerFault *m = winnow__v1__worker_fault__unpack(NULL, bytes, data);

    if (!m) {
        return not_a("WorkerFault", bytes);
    }
    out->epoch = m->epoch;
    out->fault.code = m->code == STATUS_UNAVAILABLE ? STATUS_UNAVAILABLE : STATUS_INTERNAL;
    copy_text(out->fault.text, sizeof(out->fault.text), &m->message);
    winnow__v1__worker_fault__free_unpacked(m, NULL);
    return STATUS_OK;
}

status worker_message_open(struct worker_message *out, const uint8_t *data, size_t bytes)
{
    static const enum worker_message_kind kinds[] = {
        [WORKER_HELLO] = MESSAGE_HELLO, [WORKER_READY] = MESSAGE_READY,
        [WORKER_STORE] = MESSAGE_STORE, [WORKER_RESULT] = MESSAGE_RESULT,
        [WORKER_BEAT] = MESSAGE_BEAT,   [WORKER_FAULT] = MESSAGE_FAULT,
        [WORKER_BYE] = MESSAGE_BYE,     [WORKER_DRAIN] = MESSAGE_DRAIN,
    };
    const uint8_t *payload;
    size_t n;
    int field;
    status st = envelope_open(&field, &payload, &n, data, bytes);

    *out = (struct worker_message){0};
    if (st) {
        return st;
    }
    if (field < WORKER_HELLO || field > WORKER_DRAIN) {
        return status_fail(STATUS_INVALID, "a worker's message of unknown kind %d", field);
    }
    out->kind = kinds[field];
    switch (out->kind) {
    case MESSAGE_HELLO:
        return open_hello(out, payload, n);
    case MESSAGE_READY:
        return open_ready(out, payload, n);
    case MESSAGE_STORE:
        return open_store(out, payload, n);
    case MESSAGE_BEAT:
        return open_beat(out, payload, n);
    case MESSAGE_FAULT:
        return open_fault(out, payload, n);
    case MESSAGE_BYE:
    case MESSAGE_DRAIN:
        return STATUS_OK;
    case MESSAGE_RESULT:
        break;
    }
    st = step_result_decode(&out->result, payload, n);
    out->epoch = st ? 0 : out->result.epoch;
    return st;
}

void worker_message_close(struct worker_message *message)
{
    if (message->kind == MESSAGE_STORE && message->owned) {
        winnow__v1__store_entry__free_unpacked(message->owned, NULL);
    }
    if (message->kind == MESSAGE_RESULT) {
        step_result_free(&message->result);
    }
    *message = (struct worker_message){0};
}
