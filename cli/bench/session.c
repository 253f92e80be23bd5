#include "cli/bench/session.h"

#include "cli/interrupt.h"

enum { ASK_DEADLINE_S = 30 };

status session_open(struct session *out, const struct service_access *access)
{
    Winnow__V1__GetModelRequest request = WINNOW__V1__GET_MODEL_REQUEST__INIT;
    ProtobufCMessage *model = NULL;
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
    st = service_call(&session.service, "/winnow.v1.Inference/GetModel", &request.base,
                      &winnow__v1__model__descriptor, &model);
    session.model = (Winnow__V1__Model *)model;
    if (!st) {
        st = session_connect(&session, access, 1);
    }
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
