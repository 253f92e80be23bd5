/* service.h - one request, one reply, as messages; for the commands that only ask. */
#ifndef CLI_SERVICE_H
#define CLI_SERVICE_H

#include "common/options.h"
#include "common/rpc.h"

#include <protobuf-c/protobuf-c.h>

/* Where the server is, and what is shown to it: options that all commands have. */
struct service_access {
    const char *server; /* HOST:PORT */
    struct rpc_identity identity;
};

enum { SERVICE_ACCESS_OPTIONS = 5 }; /* rows of the table */

/* Writes SERVICE_ACCESS_OPTIONS rows, which point into `access`. */
void service_access_rows(struct option *rows, struct service_access *access);

struct service {
    struct rpc_client *client;
    int64_t deadline_ms;
};

/* Around all calls of a process.  `access` is borrowed. */
status service_open(struct service *out, const struct service_access *access, double deadline_s);
void service_close(struct service *service);

/* *reply is freed with protobuf_c_message_free_unpacked(). */
status service_call(const struct service *service, const char *path,
                    const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type,
                    ProtobufCMessage **reply);

#endif
