#include "common/envelope.h"
#include "common/log.h"
#include "worker/link_state.h"

#include <stdlib.h>

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

/* Plans that wait belong to the epoch that ends. */
void link_drop_events(struct link *link)
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
    link_drop_events(link);
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
        link_forget_entries(link);
        link->epoch = m->epoch;
        link->left = false;
        push_locked(link, &event);
    }
    if (m) {
        winnow__v1__assignment__free_unpacked(m, NULL);
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

void link_on_message(struct rpc_stream *stream, const uint8_t *data, size_t bytes, void *context)
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
        link_keep_entry(link, payload, n);
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

void link_on_done(struct rpc_stream *stream, const struct failure *end, void *context)
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
