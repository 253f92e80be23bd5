/*
 * rpc.h - gRPC in C, as winnow needs it: a thin typed layer over C-core.
 *
 * Messages are packed bytes; protobuf types stay with the callers.  Completion threads only
 * move messages: every callback below runs on one and must hand over and return at once.
 * Calls are referenced: a callee that keeps a call beyond a callback takes a reference.
 */
#ifndef COMMON_RPC_H
#define COMMON_RPC_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum rpc_limits {
    RPC_MAX_MESSAGE = 256 << 20, /* bytes of one message, either way, unless set lower */
    RPC_MAX_METADATA = 16,       /* trailing pairs of one reply */
    RPC_MAX_STREAMS = 1024,      /* concurrent calls of one connection; more wait */
    RPC_MESSAGE_COST = 256,      /* bytes that a waiting message costs beside its own */
    RPC_SEND_TIMEOUT_MS = 60000, /* for a client to read on, unless set otherwise, */
    RPC_SEND_BYTES_PER_MS = 64,  /* and longer by this for a large message */
    RPC_MAX_CALLS = 16384,       /* concurrent calls of one server; more are refused */
    RPC_MAX_CALLER = 255,        /* bytes of a caller's name */
};

/* PEM files that protect connections; they are read again when they change, for new connections.
 * Strings are borrowed for the life of the server or client. */
struct rpc_tls {
    const char *cert, *key; /* one's own certificate chain and its key; a client may have none */
    const char *ca;         /* who must have signed the peer's certificate; NULL on a server:
                               clients show none */
};

/* ---- server ---- */

struct rpc_server;
struct rpc_call; /* one call, server side */

/* What a call needs of its caller; what it means is up to the server's `authorize`. */
enum rpc_access {
    RPC_ACCESS_CALLER, /* a known caller */
    RPC_ACCESS_OPEN,   /* nothing */
    RPC_ACCESS_ADMIN,  /* more than any caller has */
};

struct rpc_handler {
    const char *path; /* "/winnow.v1.Inference/Generate" */
    /* A client message: data is borrowed.  For unary and server-streaming methods it comes once;
     * for client-streaming ones once a message, then on_half_close. */
    void (*on_message)(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context);
    void (*on_half_close)(struct rpc_call *call, void *context); /* may be NULL */
    /* The call is over, whoever ended it; comes exactly once and last.  `cancelled`: the client
     * went away, its deadline passed or the connection broke, before rpc_call_finish(). */
    void (*on_done)(struct rpc_call *call, bool cancelled, void *context); /* may be NULL */
    /* Queued unsent bytes fell to zero: a sender that waits may go on.  May be NULL. */
    void (*on_drained)(struct rpc_call *call, void *context);
    bool client_streaming;
    enum rpc_access access;
    size_t max_message; /* of the client, in bytes; 0: the server's */
    void *context;
};

struct rpc_server_config {
    const char *listen;                 /* "HOST:PORT"; port 0 picks one */
    const struct rpc_handler *handlers; /* borrowed for the server's life */
    size_t n_handlers;
    int completion_threads; /* >= 1 */
    size_t max_message;     /* received; 0: RPC_MAX_MESSAGE */
    struct rpc_tls tls;     /* without `cert`: plaintext */
    /* Asked on a completion thread before anything of a call's messages is read; a failure ends
     * the call with its sentence.  NULL: everybody may do everything. */
    status (*authorize)(struct rpc_call *call, enum rpc_access access, void *context);
    void *context;       /* of authorize */
    int send_timeout_ms; /* a call whose client reads nothing for so long is cancelled; 0:
                          * RPC_SEND_TIMEOUT_MS */
};

status rpc_server_start(struct rpc_server **out, const struct rpc_server_config *config);
int rpc_server_port(const struct rpc_server *server); /* the one bound */
/* New calls are refused (UNAVAILABLE; CANCELLED if one crosses with the news), running ones have
 * grace_ms to end, then they are cancelled.  Every on_done has been called when it returns; the
 * server is freed. */
void rpc_server_stop(struct rpc_server *server, int grace_ms);

void rpc_call_ref(struct rpc_call *call);
void rpc_call_unref(struct rpc_call *call);
/* The caller's own pointer, kept with the call. */
void rpc_call_set_user(struct rpc_call *call, void *user);
void *rpc_call_user(struct rpc_call *call);
const char *rpc_call_peer(struct rpc_call *call); /* "ipv4:127.0.0.1:4711" */
/* Milliseconds until the client's deadline; INT64_MAX: none. */
int64_t rpc_call_time_left_ms(struct rpc_call *call);
/* Value of a request metadata key (lower case), or NULL; borrowed while the call lives. */
const char *rpc_call_metadata(struct rpc_call *call, const char *key);

/* The name in the client's verified certificate: its common name, or its first alternative name.
 * NULL: there is none.  Borrowed while the call lives. */
const char *rpc_call_certificate(struct rpc_call *call);
/* Who calls, as `authorize` found out; "" unless it said so.  At most RPC_MAX_CALLER bytes. */
void rpc_call_set_caller(struct rpc_call *call, const char *name);
const char *rpc_call_caller(struct rpc_call *call);

/* Thread-safe.  Copies the bytes and queues them in order.  False: the call is already over. */
bool rpc_call_send(struct rpc_call *call, const uint8_t *data, size_t bytes);
/* What waits, RPC_MESSAGE_COST of each message included. */
size_t rpc_call_unsent_bytes(struct rpc_call *call);
/* Ends the call after what is queued: status and sentence as given.  `trailing`: n_trailing
 * pairs key, value; borrowed for the call only.  Later sends and finishes do nothing. */
void rpc_call_finish(struct rpc_call *call, status code, const char *message,
                     const char *const *trailing, size_t n_trailing);

/* ---- client ---- */

struct rpc_client;
struct rpc_stream; /* one call, client side */

struct rpc_events {
    void (*on_message)(struct rpc_stream *stream, const uint8_t *data, size_t bytes, void *context);
    /* Exactly once and last: the status of the call, or UNAVAILABLE when the peer is gone. */
    void (*on_done)(struct rpc_stream *stream, const struct failure *end, void *context);
    void *context;
};

/* How a client shows who it is. */
struct rpc_identity {
    struct rpc_tls tls;      /* without `ca`: plaintext */
    const char *secret_file; /* keyring.h: its first secret goes with every call; NULL: none */
};

/* `identity` NULL: plaintext, nameless.  Its strings are borrowed. */
status rpc_client_open(struct rpc_client **out, const char *target,
                       const struct rpc_identity *identity);
void rpc_client_close(struct rpc_client *client); /* cancels what runs, waits for on_done */

/* Starts a call; deadline_ms 0: none.  *out is one reference, given back with
 * rpc_stream_unref().  A silent peer is noticed within seconds: UNAVAILABLE. */
status rpc_stream_open(struct rpc_stream **out, struct rpc_client *client, const char *path,
                       int64_t deadline_ms, const struct rpc_events *events);
bool rpc_stream_send(struct rpc_stream *stream, const uint8_t *data, size_t bytes);
void rpc_stream_half_close(struct rpc_stream *stream);
void rpc_stream_cancel(struct rpc_stream *stream);
void rpc_stream_unref(struct rpc_stream *stream);

/* One request, one reply, blocking.  *out is malloc'd. */
status rpc_unary(struct rpc_client *client, const char *path, int64_t deadline_ms,
                 const uint8_t *data, size_t bytes, uint8_t **out, size_t *out_bytes);

/* Around everything above, once a process: grpc_init and grpc_shutdown_blocking. */
void rpc_init(void);
void rpc_fini(void);

#endif
