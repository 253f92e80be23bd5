#include "worker/link.h"

#include "common/clock.h"
#include "common/envelope.h"
#include "common/log.h"
#include "common/machine.h"
#include "common/rpc.h"
#include "winnow/v1/worker.pb-c.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct entry {
    char *key;
    void *value;
    size_t bytes;
};

struct link {
    struct link_config config;
    struct rpc_client *client;
    pthread_t keeper; /* opens the stream, sends heartbeats */
    bool keeper_runs;
    atomic_uint_fast64_t steps;
    atomic_bool draining;
    atomic_bool stopping;
    sem_t wake; /* posted by link_stop() and link_drain(), perhaps in a signal handler */

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t changed;
    struct rpc_stream *stream; /* NULL while there is none */
    uint64_t epoch;            /* of the last assignment; 0: in no group */
    uint64_t engine_epoch;     /* of the assignment that the engine thread took last */
    bool left;                 /* the epoch is over */
    uint32_t loaded_rank, loaded_size;
    struct comm *comm;
    struct link_event events[LINK_MAX_EVENTS];
    size_t first_event, n_events;
    struct entry entries[LINK_MAX_ENTRIES];
    int n_entries;
};

/* ---- events ---- */

static void push_locked(struct link *link, const struct link_event *event)
{
    /* One place is always kept free for LEAVE, which ends the flood that filled the rest. */
    if (link->n_events >= LINK_MAX_EVENTS - (event->kind == LINK_LEAVE ? 0 : 1)) {
        log_error("link: more than %d events wait for the engine", LINK_MAX_EVENTS);
        free(event->plan);
        return;
    }
    link->events[(link->first_event + link->n_events) % LINK_MAX_EVENTS] = *event;
    link->n_events++;
    pthread_cond_broadcast(&link->changed);
}

static void forget_entries(struct link *link)
{
    for (int i = 0; i < link->n_entries; i++) {
        free(link->entries[i].key);
        free(link->entries[i].value);
    }
    link->n_entries = 0;
}

/* Plans that wait belong to the epoch that ends. */
static void drop_events(struct link *link)
{
    for (size_t i = 0; i < link->n_events; i++) {
        free(link->events[(link->first_event + i) % LINK_MAX_EVENTS].plan);
    }
    link->n_events = 0;
}

static void leave_locked(struct link *link)
{
    if (link->epoch == 0) {
        return;
    }
    link->epoch = 0;
    link->left = true;
    if (link->comm) {
        comm_abort(link->comm);
    }
    drop_events(link);
    push_locked(link, &(struct link_event){.kind = LINK_LEAVE});
}

void link_next(struct link *link, struct link_event *out)
{
    pthread_mutex_lock(&link->mutex);
    while (link->n_events == 0 && !atomic_load(&link->stopping)) {
        pthread_cond_wait(&link->changed, &link->mutex);
    }
    if (atomic_load(&link->stopping)) {
        *out = (struct link_event){.kind = LINK_STOP};
    } else {
        *out = link->events[link->first_event];
        link->first_event = (link->first_event + 1) % LINK_MAX_EVENTS;
        link->n_events--;
        if (out->kind == LINK_ASSIGN) {
            link->engine_epoch = out->assign.epoch;
        }
    }
    pthread_mutex_unlock(&link->mutex);
}

/* ---- what the coordinator says ---- */

static bool dtype_by_name(enum dtype *out, const ProtobufCBinaryData *name)
{
    for (int d = DTYPE_F32; d <= DTYPE_F16; d++) {
        const char *known = dtype_name((enum dtype)d);
        if (strlen(known) == name->len && memcmp(known, name->data, name->len) == 0) {
            *out = (enum dtype)d;
            return true;
        }
    }
    return false;
}

static void on_assign(struct link *link, const uint8_t *data, size_t bytes)
{
    struct link_event event = {.kind = LINK_ASSIGN};
    Winnow__V1__Assignment *m = winnow__v1__assignment__unpack(NULL, bytes, data);

    if (!m || m->epoch == 0 || m->rank >= m->size ||
        !dtype_by_name(&event.assign.dtype, &m->dtype)) {
        log_error("link: an assignment makes no sense bytes=%zu", bytes);
    } else {
        event.assign.group = m->group;
        event.assign.rank = m->rank;
        event.assign.size = m->size;
        event.assign.epoch = m->epoch;
        event.assign.max_context = m->max_context;
        event.assign.check_selection = m->check_selection;
        leave_locked(link);
        forget_entries(link);
        link->epoch = m->epoch;
        link->left = false;
        push_locked(link, &event);
    }
    if (m) {
        winnow__v1__assignment__free_unpacked(m, NULL);
    }
}

static void keep_entry(struct link *link, const Winnow__V1__StoreEntry *m)
{
    struct entry *entry = &link->entries[link->n_entries];

    entry->key = strndup((const char *)m->key.data, m->key.len);
    entry->value = malloc(m->value.len + 1);
    if (!entry->key || !entry->value) {
        free(entry->key);
        free(entry->value);
        log_error("link: no memory for a rendezvous entry");
        return;
    }
    if (m->value.len) {
        memcpy(entry->value, m->value.data, m->value.len);
    }
    entry->bytes = m->value.len;
    link->n_entries++;
    pthread_cond_broadcast(&link->changed);
}

static void on_store(struct link *link, const uint8_t *data, size_t bytes)
{
    Winnow__V1__StoreEntry *m =
        bytes <= LINK_MAX_ENTRY ? winnow__v1__store_entry__unpack(NULL, bytes, data) : NULL;

    if (!m || link->n_entries == LINK_MAX_ENTRIES) {
        log_error("link: a rendezvous entry is refused bytes=%zu", bytes);
    } else if (m->epoch == link->epoch) {
        keep_entry(link, m);
    }
    if (m) {
        winnow__v1__store_entry__free_unpacked(m, NULL);
    }
}

static void on_plan(struct link *link, const uint8_t *data, size_t bytes)
{
    struct link_event event = {.kind = LINK_PLAN, .plan = malloc(bytes + 1), .plan_bytes = bytes};

    if (link->epoch == 0 || !event.plan) {
        free(event.plan);
        return;
    }
    memcpy(event.plan, data, bytes);
    push_locked(link, &event);
}

/* The end of a drain: the group, or a coordinator that gives none, lets this worker go. */
static void stop_if_draining(struct link *link)
{
    if (atomic_load(&link->draining)) {
        link_stop(link);
        pthread_cond_broadcast(&link->changed);
    }
}

static void on_leave(struct link *link, const uint8_t *data, size_t bytes)
{
    Winnow__V1__LeaveGroup *m = winnow__v1__leave_group__unpack(NULL, bytes, data);

    if (m && m->epoch == link->epoch) {
        leave_locked(link);
        stop_if_draining(link);
    }
    if (m) {
        winnow__v1__leave_group__free_unpacked(m, NULL);
    }
}

static void on_message(struct rpc_stream *stream, const uint8_t *data, size_t bytes, void *context)
{
    struct link *link = context;
    const uint8_t *payload;
    size_t n;
    int field;

    (void)stream;
    if (envelope_open(&field, &payload, &n, data, bytes)) {
        log_error("link: %s", status_text());
        return;
    }
    pthread_mutex_lock(&link->mutex);
    switch (field) {
    case COORDINATOR_ASSIGN:
        on_assign(link, payload, n);
        break;
    case COORDINATOR_STORE:
        on_store(link, payload, n);
        break;
    case COORDINATOR_PLAN:
        on_plan(link, payload, n);
        break;
    case COORDINATOR_LEAVE:
        on_leave(link, payload, n);
        break;
    default:
        log_warn("link: message of unknown kind %d", field);
    }
    pthread_mutex_unlock(&link->mutex);
}

static void on_done(struct rpc_stream *stream, const struct failure *end, void *context)
{
    struct link *link = context;

    pthread_mutex_lock(&link->mutex);
    if (!atomic_load(&link->stopping)) {
        log_warn("link: stream ended code=%d reason=\"%s\"", (int)end->code, end->text);
    }
    leave_locked(link);
    stop_if_draining(link);
    if (link->stream == stream) {
        rpc_stream_unref(link->stream);
        link->stream = NULL;
    }
    pthread_cond_broadcast(&link->changed);
    pthread_mutex_unlock(&link->mutex);
}

/* ---- what the worker says ---- */

static void send_payload(struct link *link, int field, const uint8_t *payload, size_t bytes)
{
    uint8_t *data;
    size_t n;

    if (envelope_wrap(&data, &n, field, payload, bytes)) {
        log_error("link: %s", status_text());
        return;
    }
    pthread_mutex_lock(&link->mutex);
    if (link->stream && !rpc_stream_send(link->stream, data, n)) {
        log_debug("link: dropped a message kind=%d", field);
    }
    pthread_mutex_unlock(&link->mutex);
    free(data);
}

static void send_message(struct link *link, int field, const ProtobufCMessage *message)
{
    uint8_t stack[2048];
    size_t bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *data = bytes <= sizeof(stack) ? stack : malloc(bytes);

    if (!data) {
        log_error("link: no memory for a message of %zu bytes", bytes);
        return;
    }
    protobuf_c_message_pack(message, data);
    send_payload(link, field, data, bytes);
    if (data != stack) {
        free(data);
    }
}

/* protobuf-c's bytes; packing only reads them. */
static ProtobufCBinaryData text(const char *s)
{
    return (ProtobufCBinaryData){.len = strlen(s), .data = (uint8_t *)s};
}

static void send_hello(struct link *link)
{
    Winnow__V1__WorkerHello hello = WINNOW__V1__WORKER_HELLO__INIT;

    hello.host = text(link->config.host);
    hello.device = text(link->config.device);
    hello.build = text(WINNOW_VERSION);
    hello.model_fingerprint = link->config.model_fingerprint;
    hello.memory_bytes = link->config.memory_bytes;
    hello.process = (uint32_t)getpid();
    hello.cohort = text(link->config.cohort);
    pthread_mutex_lock(&link->mutex);
    hello.loaded_rank = link->loaded_rank;
    hello.loaded_size = link->loaded_size;
    pthread_mutex_unlock(&link->mutex);
    if (link->config.fixed_rank >= 0) {
        hello._fixed_rank_case = WINNOW__V1__WORKER_HELLO___FIXED_RANK_FIXED_RANK;
        hello.fixed_rank = (uint32_t)link->config.fixed_rank;
    }
    send_message(link, WORKER_HELLO, &hello.base);
}

void link_send_ready(struct link *link, uint64_t epoch, const struct link_ready *ready)
{
    Winnow__V1__WorkerReady m = WINNOW__V1__WORKER_READY__INIT;

    m.epoch = epoch;
    m.kv_bytes_total = ready->kv_bytes_total;
    m.pages_total = ready->pages_total;
    m.page_rows = ready->page_rows;
    m.weight_bytes = ready->weight_bytes;
    m.scratch_bytes = ready->scratch_bytes;
    m.device = text(ready->device);
    send_message(link, WORKER_READY, &m.base);
}

void link_send_result(struct link *link, const uint8_t *packed, size_t bytes)
{
    send_payload(link, WORKER_RESULT, packed, bytes);
}

void link_send_fault(struct link *link, uint64_t epoch, status code)
{
    Winnow__V1__WorkerFault m = WINNOW__V1__WORKER_FAULT__INIT;
    struct failure failure;

    status_save(&failure, code);
    log_error("link: fault epoch=%llu code=%d reason=\"%s\"", (unsigned long long)epoch, (int)code,
              failure.text);
    m.epoch = epoch;
    m.code = (uint32_t)code;
    m.message = text(failure.text);
    send_message(link, WORKER_FAULT, &m.base);
}

void link_loaded(struct link *link, uint32_t rank, uint32_t size)
{
    pthread_mutex_lock(&link->mutex);
    link->loaded_rank = rank;
    link->loaded_size = size;
    pthread_mutex_unlock(&link->mutex);
}

void link_count_step(struct link *link)
{
    atomic_fetch_add(&link->steps, 1);
}

/* ---- rendezvous ---- */

static status store_set(void *context, const char *key, const void *data, size_t bytes)
{
    struct link *link = context;
    Winnow__V1__StoreEntry m = WINNOW__V1__STORE_ENTRY__INIT;

    pthread_mutex_lock(&link->mutex);
    m.epoch = link->engine_epoch;
    pthread_mutex_unlock(&link->mutex);
    m.key = text(key);
    m.value.data = (uint8_t *)data;
    m.value.len = bytes;
    send_message(link, WORKER_STORE, &m.base);
    return STATUS_OK;
}

static const struct entry *find_entry(const struct link *link, const char *key)
{
    for (int i = 0; i < link->n_entries; i++) {
        if (strcmp(link->entries[i].key, key) == 0) {
            return &link->entries[i];
        }
    }
    return NULL;
}

static struct timespec in_ms(int ms)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += (long)(ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return t;
}

static status copy_entry(const struct entry *entry, void **out, size_t *out_bytes)
{
    *out = malloc(entry->bytes + 1);
    if (!*out) {
        return status_fail(STATUS_EXHAUSTED, "no memory for a rendezvous entry");
    }
    memcpy(*out, entry->value, entry->bytes);
    *out_bytes = entry->bytes;
    return STATUS_OK;
}

/* What the engine thread joins or has joined is over; the next epoch may be assigned already. */
static bool is_over(const struct link *link)
{
    return link->left || link->epoch != link->engine_epoch || atomic_load(&link->stopping);
}

static status store_get(void *context, const char *key, int timeout_ms, void **out,
                        size_t *out_bytes)
{
    struct link *link = context;
    struct timespec until = in_ms(timeout_ms);
    const struct entry *entry = NULL;
    bool late = false;

    pthread_mutex_lock(&link->mutex);
    while (!is_over(link) && !late) {
        entry = find_entry(link, key);
        if (entry) {
            break;
        }
        late = pthread_cond_timedwait(&link->changed, &link->mutex, &until) == ETIMEDOUT;
    }
    status st = entry  ? copy_entry(entry, out, out_bytes)
                : late ? status_fail(STATUS_UNAVAILABLE, "no rank published %s within %d ms", key,
                                     timeout_ms)
                       : status_fail(STATUS_UNAVAILABLE, "the group was dissolved");
    pthread_mutex_unlock(&link->mutex);
    return st;
}

static int store_over(void *context)
{
    struct link *link = context;

    pthread_mutex_lock(&link->mutex);
    int over = is_over(link);
    pthread_mutex_unlock(&link->mutex);
    return over;
}

struct comm_store link_store(struct link *link)
{
    return (struct comm_store){
        .context = link, .set = store_set, .get = store_get, .over = store_over};
}

void link_watch(struct link *link, struct comm *comm)
{
    pthread_mutex_lock(&link->mutex);
    link->comm = comm;
    if (comm && is_over(link)) {
        comm_abort(comm); /* the group ended while it was being joined */
    }
    pthread_mutex_unlock(&link->mutex);
}

/* ---- the keeper: the stream and its heartbeats ---- */

static void connect_stream(struct link *link)
{
    const struct rpc_events events = {
        .on_message = on_message, .on_done = on_done, .context = link};
    struct rpc_stream *stream = NULL;

    pthread_mutex_lock(&link->mutex);
    status st = rpc_stream_open(&stream, link->client, "/winnow.v1.Fleet/Join", 0, &events);
    if (st) {
        log_warn("link: %s", status_text());
    } else {
        link->stream = stream;
    }
    pthread_mutex_unlock(&link->mutex);
    if (!st) {
        send_hello(link);
    }
}

static void send_beat(struct link *link)
{
    Winnow__V1__WorkerBeat beat = WINNOW__V1__WORKER_BEAT__INIT;

    pthread_mutex_lock(&link->mutex);
    beat.epoch = link->epoch;
    if (link->comm) {
        int peer;
        beat.waiting_ms = comm_waiting_ms(link->comm, &peer);
        beat.waiting_for = (uint32_t)peer;
    }
    pthread_mutex_unlock(&link->mutex);
    beat.steps = atomic_load(&link->steps);
    beat.memory_peak_bytes = machine_peak_memory();
    send_message(link, WORKER_BEAT, &beat.base);
}

/* The coordinator ends the stream when it has read it to the end. */
static void await_end(struct link *link)
{
    struct timespec until = in_ms(LINK_BYE_MS);
    bool late = false;

    pthread_mutex_lock(&link->mutex);
    if (link->stream) {
        rpc_stream_half_close(link->stream);
    }
    while (link->stream && !late) {
        late = pthread_cond_timedwait(&link->changed, &link->mutex, &until) == ETIMEDOUT;
    }
    pthread_mutex_unlock(&link->mutex);
}

static bool is_connected(struct link *link)
{
    pthread_mutex_lock(&link->mutex);
    bool connected = link->stream != NULL;
    pthread_mutex_unlock(&link->mutex);
    return connected;
}

/* In the keeper's loop; false: the time is up, or there is nobody to tell. */
static bool drain(struct link *link, double *until_ms)
{
    const Winnow__V1__WorkerDrain message = WINNOW__V1__WORKER_DRAIN__INIT;
    bool told = *until_ms > 0;

    if (!told) {
        *until_ms = clock_ms() + link->config.drain_ms;
    }
    if (!is_connected(link) || clock_ms() >= *until_ms) {
        return false;
    }
    if (!told) {
        log_info("link: drains drain_ms=%d", link->config.drain_ms);
        send_message(link, WORKER_DRAIN, &message.base);
    }
    return true;
}

static void *keep(void *argument)
{
    struct link *link = argument;
    double drain_until_ms = 0;
    const Winnow__V1__WorkerBye bye = WINNOW__V1__WORKER_BYE__INIT;
    int backoff_ms = LINK_BACKOFF_MS;

    while (!atomic_load(&link->stopping)) {
        if (atomic_load(&link->draining) && !drain(link, &drain_until_ms)) {
            link_stop(link);
            break;
        }
        int wait_ms = LINK_BEAT_MS;
        if (is_connected(link)) {
            send_beat(link);
            backoff_ms = LINK_BACKOFF_MS;
        } else {
            connect_stream(link);
            wait_ms = backoff_ms;
            backoff_ms =
                backoff_ms * 2 > LINK_MAX_BACKOFF_MS ? LINK_MAX_BACKOFF_MS : backoff_ms * 2;
        }
        struct timespec until = in_ms(wait_ms);
        while (sem_timedwait(&link->wake, &until) != 0 && errno == EINTR) {
        }
    }
    /* First of all, or the coordinator hears of what follows from it and blames others. */
    send_message(link, WORKER_BYE, &bye.base);
    /* A signal handler may not lock: the keeper tells the engine thread in its stead. */
    pthread_mutex_lock(&link->mutex);
    link->left = true;
    if (link->comm) {
        comm_abort(link->comm);
    }
    pthread_cond_broadcast(&link->changed);
    pthread_mutex_unlock(&link->mutex);
    await_end(link);
    return NULL;
}

void link_drain(struct link *link)
{
    atomic_store(&link->draining, true);
    sem_post(&link->wake);
}

void link_stop(struct link *link)
{
    atomic_store(&link->stopping, true);
    sem_post(&link->wake);
}

status link_open(struct link **out, const struct link_config *config)
{
    struct link *link = calloc(1, sizeof(*link));

    if (!link) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the link");
    }
    link->config = *config;
    pthread_mutex_init(&link->mutex, NULL);
    pthread_cond_init(&link->changed, NULL);
    sem_init(&link->wake, 0, 0);
    status st = rpc_client_open(&link->client, config->coordinator, &config->identity);
    if (!st && pthread_create(&link->keeper, NULL, keep, link) != 0) {
        st = status_fail(STATUS_INTERNAL, "cannot start the link's thread");
    }
    link->keeper_runs = !st;
    if (st) {
        link_close(link);
        return st;
    }
    *out = link;
    return STATUS_OK;
}

void link_close(struct link *link)
{
    if (!link) {
        return;
    }
    link_stop(link);
    if (link->keeper_runs) {
        pthread_join(link->keeper, NULL);
    }
    if (link->client) {
        rpc_client_close(link->client); /* cancels the stream and waits for on_done */
    }
    drop_events(link);
    forget_entries(link);
    sem_destroy(&link->wake);
    pthread_cond_destroy(&link->changed);
    pthread_mutex_destroy(&link->mutex);
    free(link);
}
