#include "common/envelope.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_DELIMITED = 2, MAX_VARINT = 10 };

status envelope_wrap(uint8_t **out, size_t *out_bytes, int field, const uint8_t *payload,
                     size_t bytes)
{
    assert(field > 0 && field < 16); /* one byte of tag */
    uint8_t *data = malloc(1 + MAX_VARINT + bytes);
    size_t used = 0;

    if (!data) {
        return status_fail(STATUS_EXHAUSTED, "no memory for a message of %zu bytes", bytes);
    }
    data[used++] = (uint8_t)(field << 3 | LENGTH_DELIMITED);
    size_t length = bytes;
    while (length >= 0x80) {
        data[used++] = (uint8_t)(length | 0x80);
        length >>= 7;
    }
    data[used++] = (uint8_t)length;
    if (bytes) {
        memcpy(data + used, payload, bytes);
    }
    *out = data;
    *out_bytes = used + bytes;
    return STATUS_OK;
}

status envelope_open(int *field, const uint8_t **payload, size_t *payload_bytes,
                     const uint8_t *data, size_t bytes)
{
    uint64_t length = 0;
    size_t used = 1;
    int shift = 0;

    if (bytes < 2 || (data[0] & 7) != LENGTH_DELIMITED || data[0] >= 0x80) {
        return status_fail(STATUS_INVALID, "%zu bytes are not an envelope", bytes);
    }
    while (used < bytes && shift < 35) {
        uint8_t byte = data[used++];
        length |= (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
        if (byte < 0x80) {
            break;
        }
    }
    if ((data[used - 1] & 0x80) != 0 || length != bytes - used) {
        return status_fail(STATUS_INVALID, "an envelope of %zu bytes claims a payload of %llu",
                           bytes, (unsigned long long)length);
    }
    *field = data[0] >> 3;
    *payload = data + used;
    *payload_bytes = bytes - used;
    return STATUS_OK;
}
