/* listen.h - "HOST:PORT" and "[IPV6]:PORT", taken apart. */
#ifndef COMMON_LISTEN_H
#define COMMON_LISTEN_H

#include "common/status.h"

struct listen_address {
    char host[256]; /* without brackets */
    char port[6];   /* digits */
};

status listen_parse(struct listen_address *out, const char *listen);

#endif
