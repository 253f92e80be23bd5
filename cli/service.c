#include "cli/service.h"

#include <stdlib.h>
#include <string.h>

void service_access_rows(struct option *rows, struct service_access *access)
{
    struct rpc_identity *identity = &access->identity;
    const struct option options[SERVICE_ACCESS_OPTIONS] = {
        {"server", OPTION_STRING, &access->server, "HOST:PORT", "where the coordinator listens", 0,
         0},
        {"tls-ca", OPTION_STRING, &identity->tls.ca, "FILE",
         "connect with TLS; one of these (PEM) signed the server's certificate", 0, 0},
        {"tls-cert", OPTION_STRING, &identity->tls.cert, "FILE", "your certificate chain (PEM)", 0,
         0},
        {"tls-key", OPTION_STRING, &identity->tls.key, "FILE", "its private key (PEM)", 0, 0},
        {"token-file", OPTION_STRING, &identity->secret_file, "FILE", "your token is in it", 0, 0},
    };

    memcpy(rows, options, sizeof(options));
}

status service_open(struct service *out, const struct service_access *access, double deadline_s)
{
    out->deadline_ms = (int64_t)(deadline_s * 1000);
    rpc_init();
    status st = rpc_client_open(&out->client, access->server, &access->identity);
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
