#include "worker/comm_direct.h"

#include "common/clock.h"
#include "worker/comm_mesh.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* What of a call's message to a peer, and of the peer's, has passed. */
struct passed {
    size_t sent, received;
};

struct direct {
    int rank, size;
    int timeout_ms;
    int *sockets;          /* (size), -1: this rank */
    struct passed *passed; /* (size) in the call in progress */
    struct pollfd *ready;  /* (size + 1) */
    int wake;              /* an eventfd: readable after an abort */
    bool failed;           /* messages have no borders, so nothing can be said after half of one */
    _Atomic bool aborted;
    _Atomic int waits_for;
};

struct message {
    int first, count;
    char *all;
    size_t bytes;
};

static bool allocate(struct direct *direct)
{
    size_t size = (size_t)direct->size;

    direct->sockets = malloc(size * sizeof(*direct->sockets));
    for (size_t i = 0; direct->sockets && i < size; i++) {
        direct->sockets[i] = -1;
    }
    direct->passed = calloc(size, sizeof(*direct->passed));
    direct->ready = calloc(size + 1, sizeof(*direct->ready));
    direct->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return direct->sockets && direct->passed && direct->ready && direct->wake >= 0;
}

status direct_open(struct direct **out, const struct comm_config *config, int connect_ms)
{
    struct direct *direct = calloc(1, sizeof(*direct));

    if (!direct) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the collectives");
    }
    direct->rank = config->rank;
    direct->size = config->size;
    direct->timeout_ms = config->timeout_ms;
    status st = allocate(direct)
                    ? mesh_open(direct->sockets, config, connect_ms)
                    : status_fail(STATUS_EXHAUSTED, "no memory or descriptor for the collectives");
    if (st) {
        direct_close(direct);
        return st;
    }
    *out = direct;
    return STATUS_OK;
}

void direct_close(struct direct *direct)
{
    if (!direct) {
        return;
    }
    if (direct->sockets) {
        mesh_close(direct->sockets, direct->size);
    }
    if (direct->wake >= 0) {
        close(direct->wake);
    }
    free(direct->sockets);
    free(direct->passed);
    free(direct->ready);
    free(direct);
}

static status fail_peer(int peer, const char *why)
{
    return status_fail(STATUS_UNAVAILABLE, "rank %d %s", peer, why);
}

/* `done` bytes and an error, if any, of send() or recv(). */
static status account(int peer, ssize_t done, size_t *sum)
{
    if (done >= 0) {
        *sum += (size_t)done;
    } else if (errno != EAGAIN && errno != EINTR) {
        return fail_peer(peer, strerror(errno));
    }
    return STATUS_OK;
}

static status send_some(struct direct *direct, const struct message *m, int peer)
{
    size_t *sent = &direct->passed[peer].sent;
    const char *own = m->all + (size_t)(direct->rank - m->first) * m->bytes;

    if (*sent == m->bytes) {
        return STATUS_OK;
    }
    ssize_t done = send(direct->sockets[peer], own + *sent, m->bytes - *sent, MSG_NOSIGNAL);
    return account(peer, done, sent);
}

static status receive_some(struct direct *direct, const struct message *m, int peer)
{
    size_t *received = &direct->passed[peer].received;
    char *theirs = m->all + (size_t)(peer - m->first) * m->bytes;

    if (*received == m->bytes) {
        return STATUS_OK;
    }
    ssize_t done = recv(direct->sockets[peer], theirs + *received, m->bytes - *received, 0);
    return done == 0 ? fail_peer(peer, "left") : account(peer, done, received);
}

/* What poll() is to look at; the number of peers with which something is left to do. */
static nfds_t collect(struct direct *direct, const struct message *m)
{
    nfds_t n = 0;

    for (int peer = m->first; peer < m->first + m->count; peer++) {
        const struct passed *passed = &direct->passed[peer];
        short events = (short)((passed->received < m->bytes ? POLLIN : 0) |
                               (passed->sent < m->bytes ? POLLOUT : 0));
        if (peer != direct->rank && events) {
            if (n == 0) {
                atomic_store_explicit(&direct->waits_for, peer, memory_order_relaxed);
            }
            direct->ready[n++] = (struct pollfd){.fd = direct->sockets[peer], .events = events};
        }
    }
    direct->ready[n] = (struct pollfd){.fd = direct->wake, .events = POLLIN};
    return n;
}

/* Until something can pass.  *until_ms is when the peers' time is up, 0 before the first wait. */
static status wait_for_peers(struct direct *direct, nfds_t n, double *until_ms)
{
    int left = direct->timeout_ms;

    if (*until_ms > 0) {
        left = (int)ceil(fmax(0, *until_ms - clock_ms()));
    } else {
        *until_ms = clock_ms() + left;
    }
    int got = poll(direct->ready, n + 1, left);
    if (atomic_load(&direct->aborted)) {
        return status_fail(STATUS_UNAVAILABLE, "aborted");
    }
    return got == 0 ? fail_peer(direct_waits_for(direct), "did not answer in time") : STATUS_OK;
}

static status exchange(struct direct *direct, const struct message *m)
{
    double until_ms = 0;
    status st = STATUS_OK;

    memset(direct->passed, 0, (size_t)direct->size * sizeof(*direct->passed));
    for (int peer = m->first; !st && peer < m->first + m->count; peer++) {
        st = peer == direct->rank ? STATUS_OK : send_some(direct, m, peer);
    }
    while (!st) {
        nfds_t n = collect(direct, m);
        if (n == 0) {
            break;
        }
        st = wait_for_peers(direct, n, &until_ms);
        for (int peer = m->first; !st && peer < m->first + m->count; peer++) {
            if (peer != direct->rank) {
                st = send_some(direct, m, peer);
                st = st ? st : receive_some(direct, m, peer);
            }
        }
    }
    return st;
}

status direct_exchange(struct direct *direct, int first, int count, void *all, size_t bytes)
{
    const struct message message = {first, count, all, bytes};

    assert(direct->rank >= first && direct->rank < first + count);
    if (direct->failed || atomic_load(&direct->aborted)) {
        return status_fail(STATUS_UNAVAILABLE, "the group has failed or was aborted");
    }
    status st = exchange(direct, &message);
    direct->failed = st != STATUS_OK;
    return st;
}

void direct_abort(struct direct *direct)
{
    atomic_store(&direct->aborted, true);
    while (eventfd_write(direct->wake, 1) && errno == EINTR) {
    }
}

int direct_waits_for(const struct direct *direct)
{
    return atomic_load_explicit(&direct->waits_for, memory_order_relaxed);
}
