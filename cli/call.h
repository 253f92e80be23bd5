/*
 * call.h - one streaming call as the main thread sees it: an event after another.
 *
 * Messages come on a thread of the library; they are copied into a mailbox here.  SIGINT and
 * SIGTERM become events too: call_init() blocks them, before any thread starts.
 */
#ifndef CLI_CALL_H
#define CLI_CALL_H

#include "common/rpc.h"

enum call_limits {
    CALL_MAX_WAITING = 256 << 20, /* bytes of messages not yet looked at */
};

enum call_event {
    CALL_MESSAGE,
    CALL_TICK,      /* nothing happened within the time given */
    CALL_INTERRUPT, /* SIGINT or SIGTERM */
    CALL_END,
};

struct call;

/* rpc_init() and the signals, once and first. */
status call_init(void);
void call_fini(void);

status call_open(struct call **out, struct rpc_client *client, const char *path,
                 int64_t deadline_ms, const uint8_t *request, size_t bytes);
/* CALL_MESSAGE: *data is borrowed until the next call. */
enum call_event call_wait(struct call *call, int timeout_ms, const uint8_t **data, size_t *bytes);
/* After CALL_END: how it ended. */
status call_status(const struct call *call);
void call_cancel(struct call *call);
/* Only after CALL_END, or once the client is closed. */
void call_close(struct call *call);

#endif
