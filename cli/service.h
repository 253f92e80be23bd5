/* service.h - one request, one reply, as messages; for the commands that only ask. */
#ifndef CLI_SERVICE_H
#define CLI_SERVICE_H

#include "common/rpc.h"

#include <protobuf-c/protobuf-c.h>

struct service {
    struct rpc_client *client;
    int64_t deadline_ms;
};

/* Around all calls of a process. */
status service_open(struct service *out, const char *server, double deadline_s);
void service_close(struct service *service);

/* *reply is freed with protobuf_c_message_free_unpacked(). */
status service_call(const struct service *service, const char *path,
                    const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type,
                    ProtobufCMessage **reply);

#endif
