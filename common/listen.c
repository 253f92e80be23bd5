#include "common/listen.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

status listen_parse(struct listen_address *out, const char *listen)
{
    const char *colon = strrchr(listen, ':');
    bool brackets = listen[0] == '[' && colon && colon > listen + 1 && colon[-1] == ']';
    const char *start = brackets ? listen + 1 : listen;
    size_t bytes = colon ? (size_t)(colon - start) - (brackets ? 1 : 0) : 0;

    if (!bytes || bytes >= sizeof(out->host) || !colon[1] || strlen(colon + 1) > 5 ||
        colon[1 + strspn(colon + 1, "0123456789")] || strtol(colon + 1, NULL, 10) > UINT16_MAX ||
        (!brackets && memchr(start, ':', bytes))) {
        return status_fail(STATUS_INVALID, "cannot listen on %s: not HOST:PORT", listen);
    }
    memcpy(out->host, start, bytes);
    out->host[bytes] = '\0';
    snprintf(out->port, sizeof(out->port), "%s", colon + 1);
    return STATUS_OK;
}
