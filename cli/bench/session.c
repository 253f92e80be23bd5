#include "cli/bench/session.h"

#include "cli/interrupt.h"
#include "common/clock.h"
#include "winnow/v1/control.pb-c.h"

#include <poll.h>
#include <string.h>

enum { ASK_DEADLINE_S = 30, READY_PAUSE_MS = 250 };

static status ask_model(struct session *session)
{
    Winnow__V1__GetModelRequest request = WINNOW__V1__GET_MODEL_REQUEST__INIT;
    ProtobufCMessage *model = NULL;
    status st = service_call(&session->service, "/winnow.v1.Inference/GetModel", &request.base,
                             &winnow__v1__model__descriptor, &model);

    session->model = (Winnow__V1__Model *)model;
    return st;
}

static bool is_ready(const Winnow__V1__GroupStatus *group)
{
    static const char word[] = "ready";

    return group->state.len == strlen(word) &&
           memcmp(group->state.data, word, group->state.len) == 0;
}

static status ask_status(const struct session *session, Winnow__V1__Status **out)
{
    Winnow__V1__GetStatusRequest request = WINNOW__V1__GET_STATUS_REQUEST__INIT;
    ProtobufCMessage *reply = NULL;
    status st = service_call(&session->service, "/winnow.v1.Control/GetStatus", &request.base,
                             &winnow__v1__status__descriptor, &reply);

    *out = (Winnow__V1__Status *)reply;
    return st;
}

/* STATUS_UNAVAILABLE: no group of workers is ready. */
static status ask_ready(const struct session *session)
{
    Winnow__V1__Status *server;
    bool ready = false;
    status st = ask_status(session, &server);

    if (st) {
        return st;
    }
    for (size_t i = 0; i < server->n_groups; i++) {
        ready = ready || is_ready(server->groups[i]);
    }
    protobuf_c_message_free_unpacked(&server->base, NULL);
    return ready ? STATUS_OK : status_fail(STATUS_UNAVAILABLE, "no group of workers is ready");
}

double session_worker_memory(const struct session *session)
{
    Winnow__V1__Status *server;
    double most = 0;

    if (ask_status(session, &server)) {
        return 0;
    }
    for (size_t g = 0; g < server->n_groups; g++) {
        for (size_t w = 0; w < server->groups[g]->n_workers; w++) {
            double bytes = (double)server->groups[g]->workers[w]->memory_peak_bytes;
            most = bytes > most ? bytes : most;
        }
    }
    protobuf_c_message_free_unpacked(&server->base, NULL);
    return most;
}

/* Servers that start may be there and not ready, or not there at all. */
static status wait_until_ready(const struct session *session, double ready_s)
{
    double end_ms = clock_ms() + ready_s * 1000;
    struct pollfd interrupt = {.fd = interrupt_fd(), .events = POLLIN};
    status st = ready_s > 0 ? ask_ready(session) : STATUS_OK;

    while ((st == STATUS_UNAVAILABLE || st == STATUS_DEADLINE) && clock_ms() < end_ms) {
        if (poll(&interrupt, 1, READY_PAUSE_MS) > 0 && interrupt_take()) {
            return status_fail(STATUS_CANCELLED, "interrupted while waiting for the server");
        }
        st = ask_ready(session);
    }
    return st;
}

status session_open(struct session *out, const struct service_access *access, double ready_s)
{
    struct session session = {.n_clients = 0};
    status st = interrupt_open();

    if (st) {
        return st;
    }
    st = service_open(&session.service, access, ASK_DEADLINE_S);
    if (st) {
        interrupt_close();
        return st;
    }
    st = wait_until_ready(&session, ready_s);
    st = st ? st : ask_model(&session);
    st = st ? st : session_connect(&session, access, 1);
    if (st) {
        session_close(&session);
        return st;
    }
    *out = session;
    return STATUS_OK;
}

status session_connect(struct session *session, const struct service_access *access, int n)
{
    status st = STATUS_OK;

    while (!st && session->n_clients < n && session->n_clients < LOAD_MAX_CONNECTIONS) {
        st = rpc_client_open(&session->clients[session->n_clients], access->server,
                             &access->identity);
        session->n_clients += st ? 0 : 1;
    }
    return st;
}

void session_close(struct session *session)
{
    for (int i = 0; i < session->n_clients; i++) {
        rpc_client_close(session->clients[i]);
    }
    if (session->model) {
        protobuf_c_message_free_unpacked(&session->model->base, NULL);
    }
    service_close(&session->service);
    interrupt_close();
}
