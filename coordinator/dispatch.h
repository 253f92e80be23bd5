/*
 * dispatch.h - the worker plane on the wire: winnow.v1.Fleet, worker.proto and plain C.
 *
 * A peer is one worker's stream.  The server's completion threads only hand the bytes over
 * (dispatch_sink); they are opened with worker_message_open() on the service thread.  A peer
 * lives until dispatch_free_peer(), which the owner of the events calls after on_gone.
 */
#ifndef COORDINATOR_DISPATCH_H
#define COORDINATOR_DISPATCH_H

#include "coordinator/callers.h"
#include "coordinator/fleet.h"

enum dispatch_limits {
    DISPATCH_MAX_MESSAGE = 256 << 20, /* bytes of a worker's message: a step with its trace */
    DISPATCH_THREADS = 1,
};

struct dispatch;
struct dispatch_peer;

/* Called on completion threads; both hand over and return. */
struct dispatch_sink {
    /* `data` is malloc'd and the callee's. */
    void (*on_message)(void *context, struct dispatch_peer *peer, uint8_t *data, size_t bytes);
    /* Once and last for every peer that sent something. */
    void (*on_gone)(void *context, struct dispatch_peer *peer);
    void *context;
};

struct dispatch_config {
    const char *listen;      /* HOST:PORT */
    struct rpc_tls tls;      /* without `cert`: plaintext */
    struct callers *callers; /* who may join; borrowed */
};

status dispatch_open(struct dispatch **out, const struct dispatch_config *config,
                     const struct dispatch_sink *sink);
/* Ends all streams; every on_gone has been called when it returns.  NULL is fine. */
void dispatch_close(struct dispatch *dispatch);
int dispatch_port(const struct dispatch *dispatch);

/* What the owner remembers of a peer. */
void dispatch_set_worker(struct dispatch_peer *peer, struct fleet_worker *worker);
struct fleet_worker *dispatch_worker(const struct dispatch_peer *peer);
const char *dispatch_address(const struct dispatch_peer *peer);
void dispatch_free_peer(struct dispatch_peer *peer);

/* A message that cannot be made for want of memory is logged and ends the stream. */
void dispatch_assign(struct dispatch_peer *peer, const struct fleet_assignment *assignment);
void dispatch_store(struct dispatch_peer *peer, const struct fleet_entry *entry);
void dispatch_leave(struct dispatch_peer *peer, uint64_t epoch);
void dispatch_end(struct dispatch_peer *peer, const struct failure *failure);
/* The same bytes to all; NULL peers are left out. */
status dispatch_plan(struct dispatch_peer *const *peers, size_t n_peers, const struct plan *plan);

enum worker_message_kind {
    MESSAGE_HELLO,
    MESSAGE_READY,
    MESSAGE_STORE,
    MESSAGE_RESULT,
    MESSAGE_BEAT,
    MESSAGE_FAULT,
    MESSAGE_BYE,
    MESSAGE_DRAIN,
};

struct worker_message {
    enum worker_message_kind kind;
    uint64_t epoch; /* of all but a hello, a bye and a drain */
    struct fleet_hello hello;
    struct fleet_ready ready;
    struct fleet_beat beat;
    struct fleet_entry entry; /* borrows `owned` */
    struct step_result result;
    struct failure fault;
    void *owned;
};

/* STATUS_INVALID: not a message, or one that breaks a limit. */
status worker_message_open(struct worker_message *out, const uint8_t *data, size_t bytes);
void worker_message_close(struct worker_message *message);

#endif
