#include "coordinator/service.h"

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/core.h"
#include "coordinator/inbox.h"
#include "coordinator/list.h"
#include "coordinator/local.h"
#include "coordinator/table.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ALIVE_MS = 5000, MAX_ADDRESS = 512 };

enum event_kind {
    EVENT_SUBMIT,
    EVENT_CANCEL,
    EVENT_ABORT,
    EVENT_MESSAGE,
    EVENT_GONE,
    EVENT_STATUS,
    EVENT_DRAIN,
    EVENT_STOP,
};

struct event {
    struct inbox_event base;
    union {
        struct request *request;
        uint64_t handle;
        struct dispatch_peer *peer;
        int64_t timeout_ms;
    };
    uint8_t *data; /* of a message */
    size_t bytes;
    void (*status_reply)(const struct service_status *status, void *context);
    void (*drain_reply)(uint32_t unfinished, void *context);
    void *context;
};

_Static_assert((int)REQUEST_MAX_CALLER == (int)RPC_MAX_CALLER, "callers have one kind of name");

/* A request_id that is alive, and whose: callers do not see each other's.  An id holds no line
 * break, so the pair is one text. */
enum { MAX_NAME = REQUEST_MAX_ID + 1 + REQUEST_MAX_CALLER };

struct name {
    struct table_node node;
    uint64_t handle;
    char text[MAX_NAME + 1];
};

struct service {
    struct service_config config;
    struct inbox inbox;
    struct core *core;
    struct dispatch *dispatch;
    struct children *local; /* NULL: none */
    pthread_t thread;
    bool thread_runs;
    bool hopeless;
    atomic_bool ready, draining;
    atomic_uint_fast64_t steps, next_handle;
    atomic_int_fast64_t looked_ms, progress_ms;
    struct callers *callers;     /* workers that may join */
    pthread_mutex_t names_mutex; /* guards names */
    struct table names;
};

double service_now(void)
{
    return clock_ms();
}

int64_t service_now_ms(void)
{
    return (int64_t)service_now();
}

/* ---- names ---- */

static void full_name(char out[MAX_NAME + 1], const char *caller, const char *request_id)
{
    snprintf(out, MAX_NAME + 1, "%s\n%s", request_id, caller);
}

static struct name *find_name(struct service *service, const char *text)
{
    struct table_node *node = table_first(&service->names, table_hash_text(text));

    for (; node; node = table_next(node)) {
        struct name *name = HOLDER_OF(node, struct name, node);
        if (strcmp(name->text, text) == 0) {
            return name;
        }
    }
    return NULL;
}

static status add_name(struct service *service, const struct request *request)
{
    struct name *name;
    status st;

    if (!request->request_id[0]) {
        return STATUS_OK;
    }
    name = calloc(1, sizeof(*name));
    if (!name) {
        return status_fail(STATUS_EXHAUSTED, "no memory for one more request");
    }
    name->handle = request->handle;
    full_name(name->text, request->caller, request->request_id);
    pthread_mutex_lock(&service->names_mutex);
    if (find_name(service, name->text)) {
        st = status_fail(STATUS_INVALID, "request_id: \"%s\" is the name of a running request",
                         request->request_id);
    } else {
        st = table_insert(&service->names, &name->node, table_hash_text(name->text));
    }
    pthread_mutex_unlock(&service->names_mutex);
    if (st) {
        free(name);
    }
    return st;
}

static void remove_name(void *context, struct request *request)
{
    struct service *service = context;
    struct name *name;
    char text[MAX_NAME + 1];

    if (!request->request_id[0]) {
        return;
    }
    full_name(text, request->caller, request->request_id);
    pthread_mutex_lock(&service->names_mutex);
    name = find_name(service, text);
    if (name) {
        table_remove(&service->names, &name->node);
    }
    pthread_mutex_unlock(&service->names_mutex);
    free(name);
}

/* ---- into the inbox ---- */

static struct event *new_event(enum event_kind kind)
{
    struct event *event = calloc(1, sizeof(*event));

    if (event) {
        event->base.kind = kind;
    } else {
        log_error("service: no memory for an event kind=%d", (int)kind);
    }
    return event;
}

uint64_t service_next_handle(struct service *service)
{
    return atomic_fetch_add(&service->next_handle, 1);
}

status service_submit_take(struct service *service, struct request *request)
{
    struct event *event;
    status st;

    if (atomic_load(&service->draining)) {
        return status_fail(STATUS_UNAVAILABLE, "the server is draining");
    }
    if (!atomic_load(&service->ready)) {
        return status_fail(STATUS_UNAVAILABLE, "no worker group is ready");
    }
    st = add_name(service, request);
    if (st) {
        return st;
    }
    event = new_event(EVENT_SUBMIT);
    if (event) {
        event->request = request;
        if (inbox_try_put(&service->inbox, &event->base)) {
            return STATUS_OK;
        }
    }
    free(event);
    remove_name(service, request);
    return status_fail(STATUS_EXHAUSTED, "%d events wait already", SERVICE_MAX_INBOX);
}

static void post_cancel(struct service *service, enum event_kind kind, uint64_t handle)
{
    struct event *event = new_event(kind);

    if (event) {
        event->handle = handle;
        inbox_put(&service->inbox, &event->base);
    }
}

void service_cancel(struct service *service, uint64_t handle)
{
    post_cancel(service, EVENT_CANCEL, handle);
}

bool service_abort(struct service *service, const char *caller, const char *request_id)
{
    struct name *name;
    uint64_t handle = 0;
    char text[MAX_NAME + 1];

    full_name(text, caller, request_id);
    pthread_mutex_lock(&service->names_mutex);
    name = find_name(service, text);
    if (name) {
        handle = name->handle;
    }
    pthread_mutex_unlock(&service->names_mutex);
    if (handle) {
        post_cancel(service, EVENT_ABORT, handle);
    }
    return handle != 0;
}

void service_status(struct service *service,
                    void (*reply)(const struct service_status *status, void *context),
                    void *context)
{
    struct event *event = new_event(EVENT_STATUS);

    if (event) {
        event->status_reply = reply;
        event->context = context;
        inbox_put(&service->inbox, &event->base);
    } else {
        reply(&(struct service_status){0}, context);
    }
}

void service_drain(struct service *service, int64_t timeout_ms,
                   void (*reply)(uint32_t unfinished, void *context), void *context)
{
    struct event *event = new_event(EVENT_DRAIN);

    atomic_store(&service->draining, true);
    if (event) {
        event->timeout_ms = timeout_ms;
        event->drain_reply = reply;
        event->context = context;
        inbox_put(&service->inbox, &event->base);
    } else {
        reply(0, context);
    }
}

/* A worker that floods the inbox is cut off. */
static void on_message(void *context, struct dispatch_peer *peer, uint8_t *data, size_t bytes)
{
    struct service *service = context;
    struct event *event = new_event(EVENT_MESSAGE);
    struct failure failure = {.code = STATUS_EXHAUSTED, .text = "too many messages wait"};

    if (event) {
        event->peer = peer;
        event->data = data;
        event->bytes = bytes;
        if (inbox_try_put(&service->inbox, &event->base)) {
            return;
        }
    }
    free(event);
    free(data);
    dispatch_end(peer, &failure);
}

static void on_gone(void *context, struct dispatch_peer *peer)
{
    struct service *service = context;
    struct event *event = new_event(EVENT_GONE);

    if (event) {
        event->peer = peer;
        inbox_put(&service->inbox, &event->base);
    } /* else its heartbeats end, and that is noticed */
}

/* ---- the service thread ---- */

static void on_ready(void *context, bool ready)
{
    struct service *service = context;

    atomic_store(&service->ready, ready);
    log_info("service: %s", ready ? "ready" : "not ready");
    service->config.on_ready(ready, service->config.context);
}

static void on_silent(void *context, uint32_t process)
{
    const struct service *service = context;

    if (service->local) {
        children_kill(service->local, process);
    }
}

static void handle_gone(struct service *service, struct dispatch_peer *peer, double now)
{
    struct fleet_worker *worker = dispatch_worker(peer);
    char cause[128] = "closed its connection";

    if (worker && service->local &&
        children_cause(service->local, fleet_worker_process(worker), cause, sizeof(cause), now)) {
        log_debug("service: a local worker %s", cause);
    }
    core_gone_take(service->core, peer, cause, now);
}

/* False: stop. */
static bool handle(struct service *service, struct event *event, double now)
{
    struct core *core = service->core;

    switch ((enum event_kind)event->base.kind) {
    case EVENT_SUBMIT:
        core_submit_take(core, event->request, now);
        break;
    case EVENT_CANCEL:
        core_cancel(core, event->handle, false, now);
        break;
    case EVENT_ABORT:
        core_cancel(core, event->handle, true, now);
        break;
    case EVENT_MESSAGE:
        core_message_take(core, event->peer, event->data, event->bytes, now);
        break;
    case EVENT_GONE:
        handle_gone(service, event->peer, now);
        break;
    case EVENT_STATUS:
        core_status(core, event->status_reply, event->context, now);
        break;
    case EVENT_DRAIN:
        core_drain(core, now + (double)event->timeout_ms, event->drain_reply, event->context, now);
        break;
    case EVENT_STOP:
        return false;
    }
    return true;
}

static void handle_all(struct service *service, struct inbox_event *first, bool *running)
{
    struct inbox_event *next;

    for (struct inbox_event *at = first; at; at = next) {
        struct event *event = HOLDER_OF(at, struct event, base);
        next = at->next;
        if (!handle(service, event, service_now())) {
            *running = false;
        }
        free(event);
    }
}

/* A local worker that ends itself before anything was ready will do so again. */
static void look_after_local(struct service *service, double now)
{
    struct failure failure;
    const char *fault = core_last_fault(service->core);
    int child;

    children_tick(service->local, now);
    if (service->hopeless || core_was_ready(service->core) ||
        !children_gave_up(service->local, &child)) {
        return;
    }
    service->hopeless = true;
    status_save(&failure,
                status_fail(STATUS_UNAVAILABLE, "local worker %d gave up before it was ready: %s",
                            child, fault[0] ? fault : "its own message says why"));
    log_error("service: %s", failure.text);
    service->config.on_hopeless(&failure, service->config.context);
}

static void *run(void *context)
{
    struct service *service = context;
    struct failure failure = {.code = STATUS_UNAVAILABLE, .text = "the server is shutting down"};
    bool running = true;
    double next_tick = 0;

    while (running) {
        double now = service_now();
        atomic_store(&service->looked_ms, (int64_t)now);
        if (now >= next_tick) {
            next_tick = now + SERVICE_TICK_MS;
            core_tick(service->core, now);
            if (service->local) {
                look_after_local(service, now);
            }
        }
        int64_t wait = (int64_t)(next_tick - now) + 1;
        handle_all(service, inbox_take_all(&service->inbox, wait), &running);
        atomic_store(&service->steps, core_steps(service->core));
        atomic_store(&service->progress_ms, (int64_t)core_progress_ms(service->core));
    }
    core_fail_all(service->core, &failure, service_now());
    children_close(service->local); /* by the thread that started them */
    service->local = NULL;
    return NULL;
}

/* ---- open and close ---- */

bool service_is_ready(const struct service *service)
{
    return atomic_load(&service->ready);
}

uint64_t service_steps(const struct service *service)
{
    return atomic_load(&service->steps);
}

bool service_is_alive(const struct service *service)
{
    int64_t now = service_now_ms();
    int stall_ms = service->config.stall_ms ? service->config.stall_ms : SERVICE_STALL_MS;

    return now - atomic_load(&service->looked_ms) < ALIVE_MS &&
           now - atomic_load(&service->progress_ms) < stall_ms;
}

int service_worker_port(const struct service *service)
{
    return dispatch_port(service->dispatch);
}

/* HOST of "HOST:PORT"; its length is the result. */
static int host_length(const char *listen)
{
    const char *colon = strrchr(listen, ':');

    return colon ? (int)(colon - listen) : 0;
}

/* Where local workers find the worker plane: its host, or loopback where it listens to all. */
static void local_address(const struct service *service, char *out, size_t out_size)
{
    const char *listen = service->config.worker_listen;
    int n = host_length(listen);
    bool all = n == 0 || strncmp(listen, "0.0.0.0:", 8) == 0 || strncmp(listen, "[::]:", 5) == 0;

    if (all) {
        snprintf(out, out_size, "127.0.0.1:%d", service_worker_port(service));
    } else {
        snprintf(out, out_size, "%.*s:%d", n, listen, service_worker_port(service));
    }
}

static status open_worker_plane(struct service *service)
{
    const struct dispatch_sink sink = {on_message, on_gone, service};
    const struct callers_config callers = {
        .plane = "worker",
        .secret_file = service->config.secret_file,
        .certificates = service->config.worker_tls.ca != NULL,
        .needed = "workers of this cluster show its secret: --cluster-secret-file",
        .unknown = "the secret in --cluster-secret-file is not this cluster's",
    };
    status st = callers_open(&service->callers, &callers);

    if (st) {
        return status_note(st, "worker plane");
    }
    const struct dispatch_config dispatch = {.listen = service->config.worker_listen,
                                             .tls = service->config.worker_tls,
                                             .callers = service->callers};
    return dispatch_open(&service->dispatch, &dispatch, &sink);
}

static status start(struct service *service)
{
    char address[MAX_ADDRESS];
    status st = open_worker_plane(service);
    int error;

    if (!st) {
        log_info("service: worker plane listens on %.*s:%d",
                 host_length(service->config.worker_listen), service->config.worker_listen,
                 service_worker_port(service));
    }
    if (!st && service->config.local.n > 0) {
        local_address(service, address, sizeof(address));
        st = local_open(&service->local, &service->config.local, address);
    }
    if (st) {
        return st;
    }
    error = pthread_create(&service->thread, NULL, run, service);
    if (error) {
        return status_fail(STATUS_INTERNAL, "cannot start the service thread: %s", strerror(error));
    }
    service->thread_runs = true;
    return STATUS_OK;
}

status service_open(struct service **out, const struct service_config *config)
{
    struct service *service = calloc(1, sizeof(*service));
    status st;

    if (!service) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the service");
    }
    service->config = *config;
    atomic_store(&service->next_handle, 1);
    atomic_store(&service->looked_ms, service_now_ms());
    atomic_store(&service->progress_ms, service_now_ms());
    pthread_mutex_init(&service->names_mutex, NULL);
    st = inbox_init(&service->inbox, SERVICE_MAX_INBOX);
    if (!st) {
        st = core_open(&service->core, &service->config,
                       &(struct core_sink){remove_name, on_ready, on_silent, service},
                       service_now());
    }
    if (!st) {
        st = start(service);
    }
    if (st) {
        service_close(service);
        return st;
    }
    *out = service;
    return STATUS_OK;
}

/* What came while the thread stopped.  The workers' streams are over: nobody is told. */
static void handle_rest(struct service *service)
{
    struct inbox_event *next;

    for (struct inbox_event *at = inbox_take_all(&service->inbox, 0); at; at = next) {
        struct event *event = HOLDER_OF(at, struct event, base);
        next = at->next;
        if (event->base.kind == EVENT_MESSAGE) {
            free(event->data);
        } else if (event->base.kind == EVENT_GONE) {
            dispatch_free_peer(event->peer);
        } else {
            (void)handle(service, event, service_now());
        }
        free(event);
    }
}

void service_close(struct service *service)
{
    if (!service) {
        return;
    }
    atomic_store(&service->draining, true);
    if (service->thread_runs) {
        struct event *stop;
        while (!(stop = new_event(EVENT_STOP))) {
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        }
        inbox_put(&service->inbox, &stop->base);
        pthread_join(service->thread, NULL);
    } else {
        children_close(service->local);
    }
    dispatch_close(service->dispatch);
    callers_close(service->callers);
    if (service->core) {
        handle_rest(service);
        core_close(service->core);
        inbox_fini(&service->inbox);
    }
    pthread_mutex_destroy(&service->names_mutex);
    table_fini(&service->names);
    free(service);
}
