/*
 * status.h - how every function in this repository reports failure.
 *
 * A fallible function returns `status`; STATUS_OK is zero, so `if (st)` means
 * "it failed".  The place that detects the failure calls status_fail() once,
 * with a sentence for a human; callers add context with status_note() or just
 * pass the code up.  The sentence is thread-local, like errno: a thread that
 * hands its failure to another thread copies it with status_save() first.
 *
 * status is for things that can happen (a missing file, a full queue, a dead
 * peer).  Things that cannot happen are asserts.  The values are the gRPC
 * status codes, so that a failure crosses the wire unchanged.
 */
#ifndef COMMON_STATUS_H
#define COMMON_STATUS_H

#include <stddef.h>

#ifdef __clang__
#define STATUS_MUST_CHECK __attribute__((warn_unused_result))
#else
#define STATUS_MUST_CHECK
#endif

typedef enum STATUS_MUST_CHECK status {
    STATUS_OK = 0,
    STATUS_CANCELLED = 1, /* the client went away or aborted */
    STATUS_INVALID = 3,   /* the caller sent something wrong; retrying will not help */
    STATUS_DEADLINE = 4,  /* the request's deadline passed */
    STATUS_NOT_FOUND = 5,
    STATUS_PERMISSION = 7,     /* known caller, not allowed */
    STATUS_EXHAUSTED = 8,      /* out of memory, KV pages or queue space; retry later */
    STATUS_OUT_OF_RANGE = 11,  /* longer than the context */
    STATUS_UNIMPLEMENTED = 12, /* valid, but this server cannot do it */
    STATUS_INTERNAL = 13,      /* device, driver or library failed */
    STATUS_UNAVAILABLE = 14,   /* peer gone or not ready; retry elsewhere */
    STATUS_UNAUTHENTICATED = 16,
} status;

/* A failure that outlives its thread: stored in requests, sent over RPC. */
struct failure {
    status code;
    char text[512];
};

#ifdef __cplusplus
extern "C" {
#endif

/* Both return `code`, so that `return status_fail(...)` reads well. */
status status_fail(status code, const char *format, ...) __attribute__((format(printf, 2, 3)));
status status_note(status code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The sentence of this thread's last failure; valid until the next one. */
const char *status_text(void);
const char *status_name(status code); /* "INVALID_ARGUMENT", gRPC's word; NULL: none of ours */
void status_save(struct failure *out, status code);

#ifdef __cplusplus
}
#endif

#endif
