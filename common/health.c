#include "common/health.h"

#include "common/log.h"
#include "grpc/health/v1/health.pb-c.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum state {
    SERVING = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING,
    NOT_SERVING = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING,
    SERVICE_UNKNOWN = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN,
};

/* What is asked for; several services share a topic. */
enum topic { TOPIC_READY, TOPIC_ALIVE, TOPIC_NONE };

static const struct {
    const char *name;
    enum topic topic;
} services[] = {
    {"", TOPIC_READY},
    {"readiness", TOPIC_READY},
    {"winnow.v1.Inference", TOPIC_READY},
    {"liveness", TOPIC_ALIVE},
};

struct watcher {
    struct watcher *previous, *next;
    struct rpc_call *call;
    enum topic topic;
};

struct health {
    pthread_mutex_t lock; /* guards all below; states are sent with it held, so they keep order */
    pthread_cond_t stop_now;
    bool serving[2]; /* by topic */
    bool leaving;    /* readiness is off for good */
    bool stopping;
    struct watcher *watchers;
    int n_watchers;
    bool has_thread;
    pthread_t thread;
    bool (*is_alive)(const void *context);
    const void *context;
};

static enum topic find_topic(const ProtobufCBinaryData *name)
{
    for (size_t i = 0; i < sizeof(services) / sizeof(services[0]); i++) {
        if (strlen(services[i].name) == name->len &&
            (!name->len || memcmp(services[i].name, name->data, name->len) == 0)) {
            return services[i].topic;
        }
    }
    return TOPIC_NONE;
}

/* With the lock held. */
static enum state topic_state(const struct health *health, enum topic topic)
{
    if (topic == TOPIC_NONE) {
        return SERVICE_UNKNOWN;
    }
    return health->serving[topic] ? SERVING : NOT_SERVING;
}

static void send_state(struct rpc_call *call, enum state state)
{
    Grpc__Health__V1__HealthCheckResponse reply = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    uint8_t bytes[16];

    reply.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)state;
    size_t n = grpc__health__v1__health_check_response__pack(&reply, bytes);
    if (!rpc_call_send(call, bytes, n)) {
        log_debug("health: watcher gone peer=%s", rpc_call_peer(call));
    }
}

/* False: the request was no message, and the call has been told. */
static bool read_topic(struct rpc_call *call, const uint8_t *data, size_t bytes, enum topic *out)
{
    Grpc__Health__V1__HealthCheckRequest *request =
        grpc__health__v1__health_check_request__unpack(NULL, bytes, data);

    if (!request) {
        rpc_call_finish(call, STATUS_INVALID, "not a HealthCheckRequest", NULL, 0);
        return false;
    }
    *out = find_topic(&request->service);
    grpc__health__v1__health_check_request__free_unpacked(request, NULL);
    return true;
}

static void check(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    struct health *health = context;
    enum topic topic;

    if (!read_topic(call, data, bytes, &topic)) {
        return;
    }
    if (topic == TOPIC_NONE) {
        rpc_call_finish(call, STATUS_NOT_FOUND,
                        "unknown service; known: \"\", liveness, readiness, winnow.v1.Inference",
                        NULL, 0);
        return;
    }
    pthread_mutex_lock(&health->lock);
    enum state state = topic_state(health, topic);
    pthread_mutex_unlock(&health->lock);
    send_state(call, state);
    rpc_call_finish(call, STATUS_OK, NULL, NULL, 0);
}

static void watch(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    struct health *health = context;
    struct watcher *watcher = calloc(1, sizeof(*watcher));
    enum topic topic;
    bool accepted = false;

    if (!read_topic(call, data, bytes, &topic)) {
        free(watcher);
        return;
    }
    pthread_mutex_lock(&health->lock);
    if (watcher && health->n_watchers < HEALTH_MAX_WATCHERS && !health->stopping) {
        accepted = true;
        watcher->call = call;
        watcher->topic = topic;
        watcher->next = health->watchers;
        if (health->watchers) {
            health->watchers->previous = watcher;
        }
        health->watchers = watcher;
        health->n_watchers++;
        rpc_call_set_user(call, watcher);
        send_state(call, topic_state(health, topic));
    }
    pthread_mutex_unlock(&health->lock);
    if (!accepted) {
        free(watcher);
        rpc_call_finish(call, STATUS_EXHAUSTED, "too many watchers, or the server is stopping",
                        NULL, 0);
    }
}

static void watch_done(struct rpc_call *call, bool cancelled, void *context)
{
    struct health *health = context;
    struct watcher *watcher = rpc_call_user(call);

    (void)cancelled;
    if (!watcher) {
        return;
    }
    pthread_mutex_lock(&health->lock);
    if (watcher->previous) {
        watcher->previous->next = watcher->next;
    } else {
        health->watchers = watcher->next;
    }
    if (watcher->next) {
        watcher->next->previous = watcher->previous;
    }
    health->n_watchers--;
    pthread_mutex_unlock(&health->lock);
    free(watcher);
}

/* With the lock held. */
static void set_state(struct health *health, enum topic topic, bool serving)
{
    if (health->serving[topic] == serving) {
        return;
    }
    health->serving[topic] = serving;
    for (struct watcher *watcher = health->watchers; watcher; watcher = watcher->next) {
        if (watcher->topic == topic) {
            send_state(watcher->call, topic_state(health, topic));
        }
    }
}

void health_set_ready(bool ready, void *context)
{
    struct health *health = context;

    pthread_mutex_lock(&health->lock);
    ready = ready && !health->leaving;
    bool changed = health->serving[TOPIC_READY] != ready;
    set_state(health, TOPIC_READY, ready);
    pthread_mutex_unlock(&health->lock);
    if (changed) {
        log_info("health: %s", ready ? "serving" : "not serving");
    }
}

void health_leave(struct health *health)
{
    pthread_mutex_lock(&health->lock);
    health->leaving = true;
    pthread_mutex_unlock(&health->lock);
    health_set_ready(false, health);
}

static bool is_serving(struct health *health, enum topic topic)
{
    pthread_mutex_lock(&health->lock);
    bool serving = health->serving[topic];
    pthread_mutex_unlock(&health->lock);
    return serving;
}

bool health_is_ready(struct health *health)
{
    return is_serving(health, TOPIC_READY);
}

bool health_is_alive(struct health *health)
{
    return is_serving(health, TOPIC_ALIVE);
}

static void *look_at_liveness(void *context)
{
    struct health *health = context;
    struct timespec until;

    pthread_mutex_lock(&health->lock);
    while (!health->stopping) {
        pthread_mutex_unlock(&health->lock);
        bool alive = health->is_alive(health->context);
        pthread_mutex_lock(&health->lock);
        if (health->stopping) {
            break;
        }
        set_state(health, TOPIC_ALIVE, alive);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += HEALTH_LOOK_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&health->stop_now, &health->lock, &until);
    }
    pthread_mutex_unlock(&health->lock);
    return NULL;
}

status health_watch_liveness(struct health *health, bool (*is_alive)(const void *context),
                             const void *context)
{
    health->is_alive = is_alive;
    health->context = context;
    if (pthread_create(&health->thread, NULL, look_at_liveness, health)) {
        return status_fail(STATUS_EXHAUSTED, "no thread for health");
    }
    health->has_thread = true;
    return STATUS_OK;
}

status health_open(struct health **out)
{
    struct health *health = calloc(1, sizeof(*health));

    if (!health) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for health");
    }
    pthread_mutex_init(&health->lock, NULL);
    pthread_cond_init(&health->stop_now, NULL);
    health->serving[TOPIC_ALIVE] = true;
    *out = health;
    return STATUS_OK;
}

void health_stop(struct health *health)
{
    if (!health) {
        return;
    }
    health_leave(health);
    pthread_mutex_lock(&health->lock);
    health->stopping = true;
    pthread_cond_broadcast(&health->stop_now);
    for (struct watcher *watcher = health->watchers; watcher; watcher = watcher->next) {
        rpc_call_finish(watcher->call, STATUS_UNAVAILABLE, "the server is stopping", NULL, 0);
    }
    pthread_mutex_unlock(&health->lock);
    if (health->has_thread) {
        pthread_join(health->thread, NULL);
        health->has_thread = false;
    }
}

void health_close(struct health *health)
{
    if (!health) {
        return;
    }
    health_stop(health);
    pthread_cond_destroy(&health->stop_now);
    pthread_mutex_destroy(&health->lock);
    free(health);
}

void health_handlers(struct health *health, struct rpc_handler *out)
{
    out[0] = (struct rpc_handler){
        .path = "/grpc.health.v1.Health/Check",
        .on_message = check,
        .access = RPC_ACCESS_OPEN, /* probes have no tokens */
        .max_message = HEALTH_MAX_REQUEST,
        .context = health,
    };
    out[1] = (struct rpc_handler){
        .path = "/grpc.health.v1.Health/Watch",
        .on_message = watch,
        .on_done = watch_done,
        .access = RPC_ACCESS_OPEN, /* probes have no tokens */
        .max_message = HEALTH_MAX_REQUEST,
        .context = health,
    };
}

/* ---- a port of its own ---- */

struct health_port {
    struct rpc_handler handlers[HEALTH_HANDLERS];
    struct rpc_server *server;
};

status health_serve(struct health_port **out, struct health *health, const char *listen)
{
    struct health_port *port = calloc(1, sizeof(*port));

    if (!port) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the health port");
    }
    health_handlers(health, port->handlers);
    status st = rpc_server_start(&port->server, &(struct rpc_server_config){
                                                    .listen = listen,
                                                    .handlers = port->handlers,
                                                    .n_handlers = HEALTH_HANDLERS,
                                                    .completion_threads = 1,
                                                    .max_message = HEALTH_MAX_REQUEST,
                                                });
    if (st) {
        free(port);
        return status_note(st, "--health-listen");
    }
    log_info("health: listening host=%.*s port=%d", (int)(strrchr(listen, ':') - listen), listen,
             rpc_server_port(port->server));
    *out = port;
    return STATUS_OK;
}

void health_port_close(struct health_port *port)
{
    if (port) {
        rpc_server_stop(port->server, HEALTH_LAST_WORDS_MS);
        free(port);
    }
}
