#include "cli/service.h"

#include <stdlib.h>

status service_open(struct service *out, const char *server, double deadline_s)
{
    out->deadline_ms = (int64_t)(deadline_s * 1000);
    rpc_init();
    status st = rpc_client_open(&out->client, server);
    if (st) {
        rpc_fini();
    }
    return st;
}

void service_close(struct service *service)
{
    rpc_client_close(service->client);
    rpc_fini();
}

status service_call(const struct service *service, const char *path,
                    const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type,
                    ProtobufCMessage **reply)
{
    size_t bytes = protobuf_c_message_get_packed_size(request);
    uint8_t *data = malloc(bytes + 1);
    uint8_t *packed = NULL;
    size_t packed_bytes = 0;

    if (!data) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the request");
    }
    protobuf_c_message_pack(request, data);
    status st =
        rpc_unary(service->client, path, service->deadline_ms, data, bytes, &packed, &packed_bytes);
    free(data);
    if (st) {
        return st;
    }
    *reply = protobuf_c_message_unpack(type, NULL, packed_bytes, packed);
    free(packed);
    return *reply ? STATUS_OK
                  : status_fail(STATUS_INTERNAL, "%s: the reply is not what was agreed", path);
}
