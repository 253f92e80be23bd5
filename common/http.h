/*
 * http.h - a small plain HTTP server for what operators' tools fetch: metrics and health.
 *
 * GET and HEAD of a few fixed paths, one thread, few connections, short waits.  What is served is
 * made when it is asked for.  There is no TLS and no authentication: it belongs on the loopback
 * interface or inside a fenced network.
 */
#ifndef COMMON_HTTP_H
#define COMMON_HTTP_H

#include "common/status.h"

enum http_limits {
    HTTP_MAX_CONNECTIONS = 32,
    HTTP_TIMEOUT_S = 10,        /* of a connection on which nothing happens */
    HTTP_MAX_MEMORY = 16 << 10, /* bytes of a connection, so of a request's head, too */
};

struct http_reply {
    int code;         /* 200 */
    const char *type; /* "text/plain"; static */
    char *text;       /* malloc'd, the server's from now on */
    size_t bytes;
};

struct http_route {
    const char *path;                                       /* "/metrics" */
    void (*serve)(struct http_reply *reply, void *context); /* on the server's thread */
    void *context;
};

struct http;

/* `listen_to` is HOST:PORT, port 0 picks one; `routes` are borrowed until http_close(). */
status http_open(struct http **out, const char *listen_to, const struct http_route *routes,
                 size_t n_routes);
int http_port(const struct http *http);
void http_close(struct http *http); /* NULL is fine */

/* A reply of one short line. */
void http_say(struct http_reply *reply, int code, const char *line);

#endif
