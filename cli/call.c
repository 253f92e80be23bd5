#include "cli/call.h"

#include "cli/interrupt.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct message {
    struct message *next;
    size_t bytes;
    uint8_t data[];
};

struct call {
    struct rpc_stream *stream;
    int wake; /* eventfd: the mailbox has something */
    struct message *current;

    pthread_mutex_t lock; /* guards what follows */
    struct message *first, *last;
    size_t waiting_bytes;
    bool overflow; /* a message found no room */
    bool over;
    struct failure end;
};

status call_init(void)
{
    status st = interrupt_open();

    if (!st) {
        rpc_init();
    }
    return st;
}

void call_fini(void)
{
    rpc_fini();
    interrupt_close();
}

static void wake(struct call *call)
{
    uint64_t one = 1;
    ssize_t n;

    do {
        n = write(call->wake, &one, sizeof(one));
    } while (n < 0 && errno == EINTR);
}

static void on_message(struct rpc_stream *stream, const uint8_t *data, size_t bytes, void *context)
{
    struct call *call = context;
    bool fits = bytes <= CALL_MAX_WAITING;
    struct message *message = fits ? malloc(sizeof(*message) + bytes) : NULL;

    if (message) {
        message->next = NULL;
        message->bytes = bytes;
        memcpy(message->data, data, bytes);
    }
    pthread_mutex_lock(&call->lock);
    if (message && bytes <= CALL_MAX_WAITING - call->waiting_bytes && !call->overflow) {
        if (call->last) {
            call->last->next = message;
        } else {
            call->first = message;
        }
        call->last = message;
        call->waiting_bytes += bytes;
        message = NULL;
    } else {
        call->overflow = true;
    }
    bool overflow = call->overflow;
    pthread_mutex_unlock(&call->lock);
    free(message);
    if (overflow) {
        rpc_stream_cancel(stream);
    }
    wake(call);
}

static void on_done(struct rpc_stream *stream, const struct failure *end, void *context)
{
    struct call *call = context;

    (void)stream;
    pthread_mutex_lock(&call->lock);
    call->end = *end;
    call->over = true;
    wake(call); /* under the lock: afterwards the owner may close */
    pthread_mutex_unlock(&call->lock);
}

status call_open(struct call **out, struct rpc_client *client, const char *path,
                 int64_t deadline_ms, const uint8_t *request, size_t bytes)
{
    struct call *call = calloc(1, sizeof(*call));
    const struct rpc_events events = {on_message, on_done, call};

    if (!call) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a call");
    }
    pthread_mutex_init(&call->lock, NULL);
    call->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (call->wake < 0) {
        call_close(call);
        return status_fail(STATUS_INTERNAL, "eventfd: %s", strerror(errno));
    }
    status st = rpc_stream_open(&call->stream, client, path, deadline_ms, &events);
    if (st) {
        call_close(call);
        return st;
    }
    /* If the call is over already its end says why. */
    if (rpc_stream_send(call->stream, request, bytes)) {
        rpc_stream_half_close(call->stream);
    }
    *out = call;
    return STATUS_OK;
}

/* The next message, or CALL_END, or CALL_TICK if the mailbox is empty. */
static enum call_event take(struct call *call, const uint8_t **data, size_t *bytes)
{
    enum call_event event = CALL_TICK;

    free(call->current);
    call->current = NULL;
    pthread_mutex_lock(&call->lock);
    if (call->first) {
        call->current = call->first;
        call->first = call->first->next;
        call->last = call->first ? call->last : NULL;
        call->waiting_bytes -= call->current->bytes;
        *data = call->current->data;
        *bytes = call->current->bytes;
        event = CALL_MESSAGE;
    } else if (call->over) {
        event = CALL_END;
    }
    pthread_mutex_unlock(&call->lock);
    return event;
}

enum call_event call_wait(struct call *call, int timeout_ms, const uint8_t **data, size_t *bytes)
{
    struct pollfd fds[2] = {{.fd = call->wake, .events = POLLIN},
                            {.fd = interrupt_fd(), .events = POLLIN}};
    uint64_t count;

    if (interrupt_take()) {
        return CALL_INTERRUPT;
    }
    enum call_event event = take(call, data, bytes);
    if (event != CALL_TICK) {
        return event;
    }
    if (poll(fds, 2, timeout_ms) > 0 && (fds[1].revents & POLLIN) && interrupt_take()) {
        return CALL_INTERRUPT;
    }
    if (read(call->wake, &count, sizeof(count)) < 0 && errno != EAGAIN) {
        return CALL_TICK; /* interrupted: the caller comes again */
    }
    return take(call, data, bytes);
}

status call_status(const struct call *call)
{
    if (call->overflow) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the server's messages");
    }
    return call->end.code ? status_fail(call->end.code, "%s", call->end.text) : STATUS_OK;
}

void call_cancel(struct call *call)
{
    rpc_stream_cancel(call->stream);
}

void call_close(struct call *call)
{
    if (!call) {
        return;
    }
    rpc_stream_unref(call->stream);
    while (call->first) {
        struct message *next = call->first->next;
        free(call->first);
        call->first = next;
    }
    free(call->current);
    if (call->wake >= 0) {
        close(call->wake);
    }
    pthread_mutex_destroy(&call->lock);
    free(call);
}
