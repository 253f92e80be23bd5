#include "coordinator/control.h"

#include "common/log.h"
#include "coordinator/message.h"
#include "winnow/v1/control.pb-c.h"

#include <stdlib.h>
#include <string.h>

static void finish_failed(struct rpc_call *call, status st)
{
    rpc_call_finish(call, st, status_text(), NULL, 0);
}

static void reply_take(struct rpc_call *call, status st, struct frontend_packed *packed)
{
    if (st) {
        finish_failed(call, st);
        return;
    }
    if (rpc_call_send(call, packed->data, packed->bytes)) {
        rpc_call_finish(call, STATUS_OK, NULL, NULL, 0);
    }
    free(packed->data);
}

static ProtobufCBinaryData borrow(const char *text)
{
    return (ProtobufCBinaryData){.len = strlen(text), .data = (uint8_t *)text};
}

/* ---- GetStatus ---- */

static void fill_worker(Winnow__V1__WorkerStatus *out, const struct worker_status *from)
{
    winnow__v1__worker_status__init(out);
    out->rank = from->rank;
    out->host = borrow(from->host);
    out->device = borrow(from->device);
    out->state = borrow(worker_state_name(from->state));
    out->heartbeat_age_s = from->heartbeat_age_s;
    out->kv_bytes_used = from->kv_bytes_used;
    out->kv_bytes_total = from->kv_bytes_total;
    out->last_error = borrow(from->last_error);
    out->memory_peak_bytes = from->memory_peak_bytes;
}

static void fill_group(Winnow__V1__GroupStatus *out, const struct group_status *from,
                       Winnow__V1__WorkerStatus *workers, Winnow__V1__WorkerStatus **list)
{
    winnow__v1__group_status__init(out);
    out->group = from->group;
    out->epoch = from->epoch;
    out->state = borrow(group_state_name(from->state));
    out->running_requests = from->running_requests;
    out->n_workers = from->n_workers;
    out->workers = list;
    for (uint32_t i = 0; i < from->n_workers; i++) {
        fill_worker(&workers[i], &from->workers[i]);
        list[i] = &workers[i];
    }
}

struct status_parts {
    Winnow__V1__GroupStatus *groups;
    Winnow__V1__GroupStatus **group_list;
    Winnow__V1__WorkerStatus *workers;
    Winnow__V1__WorkerStatus **worker_list;
};

static status allocate_parts(struct status_parts *parts, const struct service_status *from)
{
    size_t n_workers = 0;

    for (uint32_t i = 0; i < from->n_groups; i++) {
        n_workers += from->groups[i].n_workers;
    }
    parts->groups = calloc((size_t)from->n_groups + 1, sizeof(*parts->groups));
    parts->group_list = calloc((size_t)from->n_groups + 1, sizeof(void *));
    parts->workers = calloc(n_workers + 1, sizeof(*parts->workers));
    parts->worker_list = calloc(n_workers + 1, sizeof(void *));
    if (!parts->groups || !parts->group_list || !parts->workers || !parts->worker_list) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a status");
    }
    return STATUS_OK;
}

static void free_parts(struct status_parts *parts)
{
    free(parts->groups);
    free(parts->group_list);
    free(parts->workers);
    free(parts->worker_list);
}

status control_pack_status(struct frontend_packed *out, const struct service_status *from)
{
    Winnow__V1__Status message = WINNOW__V1__STATUS__INIT;
    struct status_parts parts;
    size_t next = 0;
    status st = allocate_parts(&parts, from);

    message.version = borrow(WINNOW_VERSION);
    message.uptime_s = from->uptime_s;
    message.draining = from->draining;
    message.queued_requests = from->queued_requests;
    message.queued_tokens = from->queued_tokens;
    message.running_requests = from->running_requests;
    message.completed_requests = from->completed_requests;
    message.failed_requests = from->failed_requests;
    for (uint32_t i = 0; !st && i < from->n_groups; i++) {
        fill_group(&parts.groups[i], &from->groups[i], &parts.workers[next],
                   &parts.worker_list[next]);
        parts.group_list[i] = &parts.groups[i];
        next += from->groups[i].n_workers;
    }
    message.n_groups = from->n_groups;
    message.groups = parts.group_list;
    if (!st) {
        st = message_pack(&out->data, &out->bytes, &message.base);
    }
    free_parts(&parts);
    return st;
}

static void on_status(const struct service_status *from, void *context)
{
    struct rpc_call *call = context;
    struct frontend_packed packed;

    reply_take(call, control_pack_status(&packed, from), &packed);
    rpc_call_unref(call);
}

static void get_status(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    (void)data; /* the request has no fields */
    (void)bytes;
    rpc_call_ref(call);
    service_status(context, on_status, call);
}

/* ---- Abort ---- */

static status read_abort(const Winnow__V1__AbortRequest *request, char *id)
{
    status st = frontend_request_id(&request->request_id);

    if (!st && !request->request_id.len) {
        st = status_fail(STATUS_INVALID, "request_id is empty");
    }
    if (!st) {
        memcpy(id, request->request_id.data, request->request_id.len);
    }
    return st;
}

static void abort_request(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    Winnow__V1__AbortResponse response = WINNOW__V1__ABORT_RESPONSE__INIT;
    char id[REQUEST_MAX_ID + 1] = "";
    ProtobufCMessage *message = NULL;
    struct frontend_packed packed;
    status st = message_unpack(&message, &winnow__v1__abort_request__descriptor, data, bytes);

    if (!st) {
        st = read_abort((const Winnow__V1__AbortRequest *)message, id);
    }
    message_free(message);
    if (!st) {
        response.found = service_abort(context, rpc_call_caller(call), id);
        st = message_pack(&packed.data, &packed.bytes, &response.base);
    }
    reply_take(call, st, &packed);
}

/* ---- Drain ---- */

static void on_drained(uint32_t unfinished, void *context)
{
    struct rpc_call *call = context;
    Winnow__V1__DrainResponse response = WINNOW__V1__DRAIN_RESPONSE__INIT;
    struct frontend_packed packed;

    response.unfinished = unfinished;
    reply_take(call, message_pack(&packed.data, &packed.bytes, &response.base), &packed);
    rpc_call_unref(call);
}

static status read_drain(const Winnow__V1__DrainRequest *request, int64_t *timeout_ms)
{
    double seconds = request->timeout_s;

    /* A NaN fails both comparisons. */
    if (!(seconds >= 0 && seconds <= CONTROL_MAX_DRAIN_S)) {
        return status_fail(STATUS_INVALID, "timeout_s is %g; it must be 0 to %d", seconds,
                           CONTROL_MAX_DRAIN_S);
    }
    *timeout_ms = (int64_t)(seconds * 1000);
    return STATUS_OK;
}

static void drain(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    ProtobufCMessage *message = NULL;
    int64_t timeout_ms = 0;
    status st = message_unpack(&message, &winnow__v1__drain_request__descriptor, data, bytes);

    if (!st) {
        st = read_drain((const Winnow__V1__DrainRequest *)message, &timeout_ms);
    }
    message_free(message);
    if (st) {
        finish_failed(call, st);
        return;
    }
    log_info("control: drain peer=%s timeout_ms=%lld", rpc_call_peer(call), (long long)timeout_ms);
    rpc_call_ref(call);
    service_drain(context, timeout_ms, on_drained, call);
}

void control_handlers(struct service *service, struct rpc_handler *out)
{
    static const struct {
        const char *path;
        void (*on_message)(struct rpc_call *, const uint8_t *, size_t, void *);
        enum rpc_access access;
    } methods[CONTROL_HANDLERS] = {
        {"/winnow.v1.Control/GetStatus", get_status, RPC_ACCESS_CALLER},
        {"/winnow.v1.Control/Abort", abort_request, RPC_ACCESS_CALLER},
        {"/winnow.v1.Control/Drain", drain, RPC_ACCESS_ADMIN},
    };

    for (int i = 0; i < CONTROL_HANDLERS; i++) {
        out[i] = (struct rpc_handler){
            .path = methods[i].path,
            .on_message = methods[i].on_message,
            .access = methods[i].access,
            .max_message = CONTROL_MAX_REQUEST,
            .context = service,
        };
    }
}
