#include "coordinator/message.h"

#include <stdbool.h>
#include <stdlib.h>

struct budget {
    size_t left;
    bool exceeded;
};

static void *take(void *context, size_t bytes)
{
    struct budget *budget = context;

    if (bytes > budget->left) {
        budget->exceeded = true;
        return NULL;
    }
    budget->left -= bytes;
    return malloc(bytes ? bytes : 1);
}

static void give(void *context, void *memory)
{
    (void)context;
    free(memory);
}

status message_unpack(ProtobufCMessage **out, const ProtobufCMessageDescriptor *type,
                      const uint8_t *data, size_t bytes)
{
    struct budget budget = {.left = MESSAGE_MAX};
    ProtobufCAllocator allocator = {take, give, &budget};

    if (bytes < (MESSAGE_MAX - MESSAGE_ALLOWANCE) / MESSAGE_FACTOR) {
        budget.left = bytes * MESSAGE_FACTOR + MESSAGE_ALLOWANCE;
    }
    *out = protobuf_c_message_unpack(type, &allocator, bytes, data);
    if (*out) {
        return STATUS_OK;
    }
    if (budget.exceeded) {
        return status_fail(STATUS_EXHAUSTED,
                           "the %s has too many small parts: unpacking its %zu bytes would take "
                           "too much memory",
                           type->short_name, bytes);
    }
    return status_fail(STATUS_INVALID, "these %zu bytes are no %s", bytes, type->short_name);
}

void message_free(ProtobufCMessage *message)
{
    ProtobufCAllocator allocator = {take, give, NULL};

    if (message) {
        protobuf_c_message_free_unpacked(message, &allocator);
    }
}

status message_pack(uint8_t **out, size_t *out_bytes, const ProtobufCMessage *message)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *data = malloc(bytes + 1);

    if (!data) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a reply of %zu bytes", bytes);
    }
    *out_bytes = protobuf_c_message_pack(message, data);
    *out = data;
    return STATUS_OK;
}
