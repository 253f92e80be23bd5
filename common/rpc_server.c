#include "common/clock.h"
#include "common/listen.h"
#include "common/log.h"
#include "common/rpc_call.h"
#include "common/rpc_tls.h"

#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    SERVER_KEEPALIVE_MS = 10000, /* a client that is silent for this and */
    SERVER_KEEPALIVE_TIMEOUT_MS = 20000,
    SERVER_MIN_PING_MS = 500,    /* more frequent pings of a client are tolerated, not counted */
    SERVER_HANDSHAKE_MS = 10000, /* for TLS and the first frames of HTTP/2 */
    SERVER_MAX_THREADS = 64,
    SERVER_LOOK_PARTS = 4, /* calls are looked after so often within the time that they have */
};

struct rpc_lane;

struct rpc_server {
    grpc_server *grpc;
    const struct rpc_handler *handlers;
    size_t n_handlers;
    size_t max_message;
    struct rpc_tls_files *tls; /* NULL: plaintext */
    bool asks_certificates;
    status (*authorize)(struct rpc_call *call, enum rpc_access access, void *context);
    void *context;
    int port;
    int n_lanes;
    struct rpc_lane *lanes;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int n_calls; /* accepted and not over */
    struct rpc_call *calls;
    bool ending; /* no more looking after stalled calls */
    pthread_t watcher;
    bool watcher_runs;
    double send_timeout_ms;
    bool is_shut;
    struct rpc_tag shut_tag;
};

/* One completion queue with its thread, and the next call that will arrive on it. */
struct rpc_lane {
    struct rpc_server *server;
    struct rpc_loop loop;
    struct rpc_tag accept_tag;
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
};

static struct timespec after_ms(int ms)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    return until;
}

/* ---- accepting ---- */

static const struct rpc_handler *find_handler(const struct rpc_server *server, grpc_slice path)
{
    for (size_t i = 0; i < server->n_handlers; i++) {
        if (grpc_slice_str_cmp(path, server->handlers[i].path) == 0) {
            return &server->handlers[i];
        }
    }
    return NULL;
}

static void refuse(struct rpc_call *call, grpc_slice path)
{
    char text[256];

    snprintf(text, sizeof(text), "unknown method %.*s", (int)GRPC_SLICE_LENGTH(path),
             (const char *)GRPC_SLICE_START_PTR(path));
    rpc_call_finish(call, STATUS_UNIMPLEMENTED, text, NULL, 0);
}

/* Counts the call in; false: there are too many already. */
static bool count_in(struct rpc_server *server)
{
    pthread_mutex_lock(&server->lock);
    bool room = server->n_calls < RPC_MAX_CALLS;
    server->n_calls++;
    pthread_mutex_unlock(&server->lock);
    return room;
}

/* STATUS_OK: the handler may have the call. */
static status admit(struct rpc_server *server, struct rpc_call *call,
                    const struct rpc_handler *handler, bool room)
{
    if (!room) {
        return status_fail(STATUS_EXHAUSTED, "too many calls at a time");
    }
    if (server->asks_certificates && !rpc_call_read_certificate(call)) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a certificate's name");
    }
    if (!server->authorize) {
        return STATUS_OK;
    }
    return server->authorize(call, handler ? handler->access : RPC_ACCESS_CALLER, server->context);
}

static void look_after(struct rpc_server *server, struct rpc_call *call)
{
    pthread_mutex_lock(&server->lock);
    call->next = server->calls;
    if (call->next) {
        call->next->previous = call;
    }
    server->calls = call;
    pthread_mutex_unlock(&server->lock);
}

void rpc_server_forget(struct rpc_server *server, struct rpc_call *call)
{
    pthread_mutex_lock(&server->lock);
    if (call->previous) {
        call->previous->next = call->next;
    } else {
        server->calls = call->next;
    }
    if (call->next) {
        call->next->previous = call->previous;
    }
    pthread_mutex_unlock(&server->lock);
}

/* A client that reads nothing would keep its call, and what waits for it, for ever: its
 * connection answers pings. */
static void *watch_senders(void *context)
{
    struct rpc_server *server = context;

    pthread_mutex_lock(&server->lock);
    while (!server->ending) {
        struct timespec until = after_ms((int)server->send_timeout_ms / SERVER_LOOK_PARTS + 1);
        while (!server->ending &&
               pthread_cond_timedwait(&server->changed, &server->lock, &until) != ETIMEDOUT) {
        }
        double now = clock_ms();
        for (struct rpc_call *call = server->calls; call; call = call->next) {
            rpc_call_cut_stalled(call, now, server->send_timeout_ms);
        }
    }
    pthread_mutex_unlock(&server->lock);
    return NULL;
}

static void begin_call(struct rpc_lane *lane)
{
    struct rpc_server *server = lane->server;
    const struct rpc_handler *handler = find_handler(server, lane->details.method);
    bool room = count_in(server);
    struct rpc_call *call =
        rpc_call_create_take(server, handler, lane->call, &lane->details, &lane->metadata);

    if (!call) {
        log_error("rpc: call dropped reason=\"out of memory\"");
        grpc_call_unref(lane->call);
        rpc_server_call_over(server);
        return;
    }
    rpc_call_ref(call); /* it may be over before its refusal is written */
    look_after(server, call);
    status st = admit(server, call, handler, room);
    if (st) {
        call->handler = NULL; /* which never hears of it */
    }
    rpc_call_begin(call,
                   handler && handler->max_message ? handler->max_message : server->max_message);
    if (st) {
        rpc_call_finish(call, st, status_text(), NULL, 0);
    } else if (!handler) {
        refuse(call, lane->details.method);
    }
    rpc_call_unref(call);
}

void rpc_server_call_over(struct rpc_server *server)
{
    pthread_mutex_lock(&server->lock);
    server->n_calls--;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

static void accept_next(struct rpc_lane *lane)
{
    grpc_call_details_init(&lane->details);
    grpc_metadata_array_init(&lane->metadata);
    lane->call = NULL;
    rpc_tag_hand(&lane->accept_tag);
    grpc_call_error error =
        grpc_server_request_call(lane->server->grpc, &lane->call, &lane->details, &lane->metadata,
                                 lane->loop.queue, lane->loop.queue, &lane->accept_tag);
    if (error != GRPC_CALL_OK) { /* the queue is being closed: no more calls to accept */
        log_debug("rpc: no more calls error=%s", grpc_call_error_to_string(error));
    }
}

static void on_accepted(void *owner, bool ok)
{
    struct rpc_lane *lane = owner;

    if (ok) {
        begin_call(lane);
    }
    grpc_call_details_destroy(&lane->details);
    grpc_metadata_array_destroy(&lane->metadata);
    if (ok) {
        accept_next(lane); /* fails at once when the server is shutting down */
    }
}

/* ---- the server ---- */

static void on_shut(void *owner, bool ok)
{
    struct rpc_server *server = owner;

    (void)ok;
    pthread_mutex_lock(&server->lock);
    server->is_shut = true;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

/* gRPC says only that it could not listen: asks the system why. */
static status explain_refusal(const char *listen, const struct listen_address *address)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    const char *why = "refused by the system";

    int error = getaddrinfo(address->host, address->port, &hints, &found);
    if (error) {
        return status_fail(STATUS_INVALID, "cannot listen on %s: %s", listen, gai_strerror(error));
    }
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen)) {
        why = strerror(errno);
    }
    if (fd >= 0) {
        close(fd);
    }
    freeaddrinfo(found);
    return status_fail(STATUS_UNAVAILABLE, "cannot listen on %s: %s", listen, why);
}

static grpc_server *create_grpc_server(const struct rpc_server *server)
{
    grpc_arg args[RPC_COMMON_ARGS + 8];
    size_t largest = server->max_message;

    for (size_t i = 0; i < server->n_handlers; i++) {
        if (server->handlers[i].max_message > largest) {
            largest = server->handlers[i].max_message;
        }
    }
    size_t n = rpc_common_args(args, largest, SERVER_KEEPALIVE_MS, SERVER_KEEPALIVE_TIMEOUT_MS);
    args[n++] = rpc_int_arg(GRPC_ARG_ALLOW_REUSEPORT, 0);
    args[n++] = rpc_int_arg(GRPC_ARG_MAX_CONCURRENT_STREAMS, RPC_MAX_STREAMS);
    args[n++] =
        rpc_int_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, SERVER_MIN_PING_MS);
    args[n++] = rpc_int_arg(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    args[n++] = rpc_int_arg(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, SERVER_HANDSHAKE_MS);
    grpc_channel_args channel_args = {.num_args = n, .args = args};
    return grpc_server_create(&channel_args, NULL);
}

static status start_lanes(struct rpc_server *server, int n_lanes)
{
    server->lanes = calloc((size_t)n_lanes, sizeof(*server->lanes));
    if (!server->lanes) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for %d completion threads", n_lanes);
    }
    for (int i = 0; i < n_lanes; i++) {
        struct rpc_lane *lane = &server->lanes[i];
        lane->server = server;
        lane->accept_tag = (struct rpc_tag){.done = on_accepted, .owner = lane};
        if (!rpc_loop_start(&lane->loop)) {
            return status_fail(STATUS_EXHAUSTED, "no thread for a completion queue");
        }
        server->n_lanes++;
        grpc_server_register_completion_queue(server->grpc, lane->loop.queue, NULL);
    }
    return STATUS_OK;
}

static status listen_and_start(struct rpc_server *server, const char *listen)
{
    struct listen_address address;

    /* gRPC would make up a missing port. */
    status st = listen_parse(&address, listen);
    if (st) {
        return st;
    }
    grpc_server_credentials *credentials = server->tls ? rpc_tls_server_credentials(server->tls)
                                                       : grpc_insecure_server_credentials_create();
    server->port = grpc_server_add_http2_port(server->grpc, listen, credentials);
    grpc_server_credentials_release(credentials);
    if (!server->port) {
        return explain_refusal(listen, &address);
    }
    grpc_server_start(server->grpc);
    for (int i = 0; i < server->n_lanes; i++) {
        accept_next(&server->lanes[i]);
    }
    return STATUS_OK;
}

status rpc_server_start(struct rpc_server **out, const struct rpc_server_config *config)
{
    struct rpc_server *server = calloc(1, sizeof(*server));
    int n_lanes = config->completion_threads;

    if (!server) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a server");
    }
    assert(n_lanes >= 1 && n_lanes <= SERVER_MAX_THREADS);
    server->handlers = config->handlers;
    server->n_handlers = config->n_handlers;
    server->max_message = config->max_message ? config->max_message : RPC_MAX_MESSAGE;
    server->asks_certificates = config->tls.cert && config->tls.ca;
    server->authorize = config->authorize;
    server->context = config->context;
    server->send_timeout_ms =
        config->send_timeout_ms ? config->send_timeout_ms : RPC_SEND_TIMEOUT_MS;
    server->shut_tag = (struct rpc_tag){.done = on_shut, .owner = server};
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->changed, NULL);
    server->grpc = create_grpc_server(server);
    status st = config->tls.cert ? rpc_tls_open(&server->tls, &config->tls) : STATUS_OK;
    if (!st) {
        st = start_lanes(server, n_lanes);
    }
    if (!st) {
        st = listen_and_start(server, config->listen);
    }
    if (!st) {
        server->watcher_runs = pthread_create(&server->watcher, NULL, watch_senders, server) == 0;
        st = server->watcher_runs ? STATUS_OK
                                  : status_fail(STATUS_EXHAUSTED, "no thread for a server");
    }
    if (st) {
        rpc_server_stop(server, 0);
        return st;
    }
    *out = server;
    return STATUS_OK;
}

int rpc_server_port(const struct rpc_server *server)
{
    return server->port;
}

/* Waits until every call is over, or the time is up (grace_ms < 0: never). */
static void await_calls(struct rpc_server *server, int grace_ms)
{
    struct timespec until = after_ms(grace_ms);

    pthread_mutex_lock(&server->lock);
    while (server->n_calls || !server->is_shut) {
        if (grace_ms < 0) {
            pthread_cond_wait(&server->changed, &server->lock);
        } else if (pthread_cond_timedwait(&server->changed, &server->lock, &until) == ETIMEDOUT) {
            break;
        }
    }
    pthread_mutex_unlock(&server->lock);
}

void rpc_server_stop(struct rpc_server *server, int grace_ms)
{
    if (!server) {
        return;
    }
    if (server->n_lanes) {
        rpc_tag_hand(&server->shut_tag);
        grpc_server_shutdown_and_notify(server->grpc, server->lanes[0].loop.queue,
                                        &server->shut_tag);
        await_calls(server, grace_ms > 0 ? grace_ms : 0);
        grpc_server_cancel_all_calls(server->grpc);
        await_calls(server, -1);
    }
    if (server->watcher_runs) {
        pthread_mutex_lock(&server->lock);
        server->ending = true;
        pthread_cond_broadcast(&server->changed);
        pthread_mutex_unlock(&server->lock);
        pthread_join(server->watcher, NULL);
    }
    for (int i = 0; i < server->n_lanes; i++) {
        rpc_loop_stop(&server->lanes[i].loop);
    }
    grpc_server_destroy(server->grpc);
    rpc_tls_close(server->tls);
    free(server->lanes);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->lock);
    free(server);
}
