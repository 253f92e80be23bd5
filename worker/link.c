#include "common/clock.h"
#include "common/envelope.h"
#include "common/log.h"
#include "common/machine.h"
#include "worker/link_state.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

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

void link_send(struct link *link, int field, const ProtobufCMessage *message)
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

static void send_hello(struct link *link)
{
    Winnow__V1__WorkerHello hello = WINNOW__V1__WORKER_HELLO__INIT;

    hello.host = link_text(link->config.host);
    hello.device = link_text(link->config.device);
    hello.build = link_text(WINNOW_VERSION);
    hello.model_fingerprint = link->config.model_fingerprint;
    hello.memory_bytes = link->config.memory_bytes;
    hello.process = (uint32_t)getpid();
    hello.cohort = link_text(link->config.cohort);
    pthread_mutex_lock(&link->mutex);
    hello.loaded_rank = link->loaded_rank;
    hello.loaded_size = link->loaded_size;
    pthread_mutex_unlock(&link->mutex);
    if (link->config.fixed_rank >= 0) {
        hello._fixed_rank_case = WINNOW__V1__WORKER_HELLO___FIXED_RANK_FIXED_RANK;
        hello.fixed_rank = (uint32_t)link->config.fixed_rank;
    }
    link_send(link, WORKER_HELLO, &hello.base);
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
    m.device = link_text(ready->device);
    link_send(link, WORKER_READY, &m.base);
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
    m.message = link_text(failure.text);
    link_send(link, WORKER_FAULT, &m.base);
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

void link_watch(struct link *link, struct comm *comm)
{
    pthread_mutex_lock(&link->mutex);
    link->comm = comm;
    if (comm && link_is_over(link)) {
        comm_abort(comm); /* the group ended while it was being joined */
    }
    pthread_mutex_unlock(&link->mutex);
}

/* ---- the keeper: the stream and its heartbeats ---- */

struct timespec link_in_ms(int ms)
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

static void connect_stream(struct link *link)
{
    const struct rpc_events events = {
        .on_message = link_on_message, .on_done = link_on_done, .context = link};
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
    link_send(link, WORKER_BEAT, &beat.base);
}

/* The coordinator ends the stream when it has read it to the end. */
static void await_end(struct link *link)
{
    struct timespec until = link_in_ms(LINK_BYE_MS);
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
        link_send(link, WORKER_DRAIN, &message.base);
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
        struct timespec until = link_in_ms(wait_ms);
        while (sem_timedwait(&link->wake, &until) != 0 && errno == EINTR) {
        }
    }
    /* First of all, or the coordinator hears of what follows from it and blames others. */
    link_send(link, WORKER_BYE, &bye.base);
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
    link_drop_events(link);
    link_forget_entries(link);
    sem_destroy(&link->wake);
    pthread_cond_destroy(&link->changed);
    pthread_mutex_destroy(&link->mutex);
    free(link);
}
