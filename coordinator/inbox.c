#include "coordinator/inbox.h"

#include <assert.h>
#include <string.h>
#include <time.h>

status inbox_init(struct inbox *inbox, size_t most)
{
    pthread_condattr_t attributes;
    int error;

    *inbox = (struct inbox){.most = most};
    inbox->last = &inbox->first;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    error = pthread_mutex_init(&inbox->mutex, NULL);
    if (!error) {
        error = pthread_cond_init(&inbox->changed, &attributes);
    }
    pthread_condattr_destroy(&attributes);
    if (error) {
        return status_fail(STATUS_INTERNAL, "cannot make an inbox: %s", strerror(error));
    }
    return STATUS_OK;
}

void inbox_fini(struct inbox *inbox)
{
    assert(!inbox->first);
    pthread_cond_destroy(&inbox->changed);
    pthread_mutex_destroy(&inbox->mutex);
}

static void put_locked(struct inbox *inbox, struct inbox_event *event)
{
    event->next = NULL;
    *inbox->last = event;
    inbox->last = &event->next;
    inbox->n++;
    if (inbox->n == 1) {
        pthread_cond_signal(&inbox->changed);
    }
}

void inbox_put(struct inbox *inbox, struct inbox_event *event)
{
    pthread_mutex_lock(&inbox->mutex);
    put_locked(inbox, event);
    pthread_mutex_unlock(&inbox->mutex);
}

bool inbox_try_put(struct inbox *inbox, struct inbox_event *event)
{
    bool room;

    pthread_mutex_lock(&inbox->mutex);
    room = inbox->n < inbox->most;
    if (room) {
        put_locked(inbox, event);
    }
    pthread_mutex_unlock(&inbox->mutex);
    return room;
}

struct inbox_event *inbox_take_all(struct inbox *inbox, int64_t timeout_ms)
{
    struct inbox_event *first;
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&inbox->mutex);
    while (!inbox->first) {
        if (pthread_cond_timedwait(&inbox->changed, &inbox->mutex, &until) != 0) {
            break;
        }
    }
    first = inbox->first;
    inbox->first = NULL;
    inbox->last = &inbox->first;
    inbox->n = 0;
    pthread_mutex_unlock(&inbox->mutex);
    return first;
}
