#include "common/http.h"

#include "common/listen.h"
#include "common/log.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct http {
    struct MHD_Daemon *daemon;
    const struct http_route *routes;
    size_t n_routes;
    int port;
};

void http_say(struct http_reply *reply, int code, const char *line)
{
    size_t room = strlen(line) + 2;
    char *text = malloc(room);

    *reply = (struct http_reply){.code = code, .type = "text/plain; charset=utf-8", .text = text};
    if (text) {
        reply->bytes = (size_t)snprintf(text, room, "%s\n", line);
    }
}

static enum MHD_Result send_take(struct MHD_Connection *connection, struct http_reply *reply)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(
        reply->bytes, reply->text ? reply->text : "", /* of no bytes */
        reply->text ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);

    if (!response) {
        free(reply->text);
        return MHD_NO;
    }
    enum MHD_Result sent = MHD_add_response_header(response, "Content-Type", reply->type);
    if (reply->code == MHD_HTTP_METHOD_NOT_ALLOWED) {
        sent = MHD_add_response_header(response, "Allow", "GET, HEAD");
    }
    if (sent == MHD_YES) {
        sent = MHD_queue_response(connection, (unsigned)reply->code, response);
    }
    MHD_destroy_response(response);
    return sent;
}

static void serve(const struct http *http, const char *path, const char *method,
                  struct http_reply *reply)
{
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0) {
        http_say(reply, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD are served");
        return;
    }
    for (size_t i = 0; i < http->n_routes; i++) {
        if (strcmp(path, http->routes[i].path) == 0) {
            http->routes[i].serve(reply, http->routes[i].context);
            return;
        }
    }
    http_say(reply, MHD_HTTP_NOT_FOUND, "nothing is served here");
}

/* The library calls it when the head has come, for each part of a body, and when all has come. */
static enum MHD_Result on_request(void *context, struct MHD_Connection *connection,
                                  const char *path, const char *method, const char *version,
                                  const char *upload, size_t *upload_bytes, void **state)
{
    static char begun;
    struct http_reply reply = {0};

    (void)version;
    (void)upload;
    if (!*state) {
        *state = &begun;
        return MHD_YES;
    }
    if (*upload_bytes) {
        *upload_bytes = 0;
        return MHD_YES;
    }
    serve(context, path, method, &reply);
    return send_take(connection, &reply);
}

/* Its messages end with a line break, which the log adds itself. */
static void on_message(void *context, const char *format, va_list args)
{
    char text[256];

    (void)context;
    vsnprintf(text, sizeof(text), format, args);
    text[strcspn(text, "\n")] = '\0';
    log_debug("http: %s", text);
}

/* A bound and listening socket, or -1 and the reason in *st. */
static int open_socket(const char *listen_to, const struct addrinfo *where, status *st)
{
    const int on = 1;
    int fd = socket(where->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
        bind(fd, where->ai_addr, where->ai_addrlen) || listen(fd, HTTP_MAX_CONNECTIONS)) {
        *st =
            status_fail(STATUS_UNAVAILABLE, "cannot listen on %s: %s", listen_to, strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    return fd;
}

static status listen_socket(const char *listen_to, int *fd)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    struct listen_address address;
    status st = listen_parse(&address, listen_to);

    if (st) {
        return st;
    }
    int error = getaddrinfo(address.host, address.port, &hints, &found);
    if (error) {
        return status_fail(STATUS_INVALID, "cannot listen on %s: %s", listen_to,
                           gai_strerror(error));
    }
    *fd = open_socket(listen_to, found, &st);
    freeaddrinfo(found);
    return st;
}

static int bound_port(int fd)
{
    struct sockaddr_storage address;
    socklen_t bytes = sizeof(address);
    char port[8] = "0";

    if (getsockname(fd, (struct sockaddr *)&address, &bytes) ||
        getnameinfo((struct sockaddr *)&address, bytes, NULL, 0, port, sizeof(port),
                    NI_NUMERICSERV)) {
        return 0;
    }
    return (int)strtol(port, NULL, 10);
}

status http_open(struct http **out, const char *listen_to, const struct http_route *routes,
                 size_t n_routes)
{
    struct http *http = calloc(1, sizeof(*http));
    int fd = -1;

    if (!http) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the HTTP server");
    }
    status st = listen_socket(listen_to, &fd);
    if (st) {
        free(http);
        return st;
    }
    http->routes = routes;
    http->n_routes = n_routes;
    http->port = bound_port(fd);
    http->daemon = MHD_start_daemon(MHD_USE_AUTO_INTERNAL_THREAD | MHD_USE_ERROR_LOG, 0, NULL, NULL,
                                    on_request, http, MHD_OPTION_EXTERNAL_LOGGER, on_message, NULL,
                                    MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
                                    (unsigned)HTTP_MAX_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
                                    (unsigned)HTTP_TIMEOUT_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                                    (size_t)HTTP_MAX_MEMORY, MHD_OPTION_END);
    if (!http->daemon) {
        close(fd);
        free(http);
        return status_fail(STATUS_INTERNAL, "cannot serve HTTP on %s", listen_to);
    }
    *out = http;
    return STATUS_OK;
}

int http_port(const struct http *http)
{
    return http->port;
}

void http_close(struct http *http)
{
    if (http) {
        MHD_stop_daemon(http->daemon); /* and closes the socket */
        free(http);
    }
}
