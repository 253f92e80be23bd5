#include "worker/comm_mesh.h"

#include "common/clock.h"
#include "worker/comm_hello.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    LOOK_MS = 100, /* how often a dissolved group is looked for */
    CALLERS = 64,  /* connections that have not said yet who they are */
};

struct caller {
    int socket;
    size_t bytes; /* of the hello, so far */
    struct rank_hello hello;
};

struct mesh {
    const struct comm_config *config;
    int *sockets;
    int listener;
    double until_ms;
    struct rank_offer offer;
    struct caller callers[CALLERS];
    int n_callers;
};

static status fail_os(const struct mesh *mesh, const char *what)
{
    return status_fail(STATUS_UNAVAILABLE, "rank %d of %d: %s: %s", mesh->config->rank,
                       mesh->config->size, what, strerror(errno));
}

/* Time is up, or nobody waits for the group any more. */
static status still_wanted(const struct mesh *mesh, int peer)
{
    const struct comm_config *config = mesh->config;

    if (config->store.over(config->store.context)) {
        return status_fail(STATUS_UNAVAILABLE, "the group was dissolved");
    }
    if (clock_ms() > mesh->until_ms) {
        return status_fail(STATUS_UNAVAILABLE, "rank %d of %d: rank %d did not connect in time",
                           config->rank, config->size, peer);
    }
    return STATUS_OK;
}

static status set_nodelay(const struct mesh *mesh, int socket)
{
    const int on = 1;

    return setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
               ? fail_os(mesh, "TCP_NODELAY")
               : STATUS_OK;
}

static status resolve(struct addrinfo **out, const char *host, const char *port, int flags)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    int code = getaddrinfo(host, port, &hints, out);

    return code ? status_fail(STATUS_UNAVAILABLE, "%s port %s: %s", host, port, gai_strerror(code))
                : STATUS_OK;
}

/* "HOST:PORT" of the listener, in digits. */
static status name_listener(struct mesh *mesh)
{
    struct sockaddr_storage address;
    socklen_t bytes = sizeof(address);
    char host[256], port[8];

    if (getsockname(mesh->listener, (struct sockaddr *)&address, &bytes)) {
        return fail_os(mesh, "the listener's address");
    }
    int code = getnameinfo((struct sockaddr *)&address, bytes, host, sizeof(host), port,
                           sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
    if (code) {
        return status_fail(STATUS_UNAVAILABLE, "the listener's address: %s", gai_strerror(code));
    }
    snprintf(mesh->offer.address, sizeof(mesh->offer.address),
             strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    return STATUS_OK;
}

static status start_listening(struct mesh *mesh)
{
    struct addrinfo *found;
    status st = resolve(&found, mesh->config->host, "0", 0);

    if (st) {
        return st;
    }
    mesh->listener = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool listens = mesh->listener >= 0 &&
                   bind(mesh->listener, found->ai_addr, found->ai_addrlen) == 0 &&
                   listen(mesh->listener, mesh->config->size + CALLERS) == 0;
    st = listens ? STATUS_OK : fail_os(mesh, mesh->config->host);
    freeaddrinfo(found);
    return st ? st : name_listener(mesh);
}

static void offer_name(char *out, size_t bytes, const struct mesh *mesh, int rank)
{
    snprintf(out, bytes, "epoch%llu/mesh/%d", (unsigned long long)mesh->config->epoch, rank);
}

static status publish(struct mesh *mesh)
{
    const struct comm_store *store = &mesh->config->store;
    char name[64];

    if (getrandom(&mesh->offer.key, sizeof(mesh->offer.key), 0) != sizeof(mesh->offer.key)) {
        return fail_os(mesh, "a random key");
    }
    offer_name(name, sizeof(name), mesh, mesh->config->rank);
    return store->set(store->context, name, &mesh->offer, sizeof(mesh->offer));
}

static status take_offer(const struct mesh *mesh, int peer, uint64_t *key,
                         struct listen_address *address)
{
    const struct comm_store *store = &mesh->config->store;
    char name[64];
    void *data = NULL;
    size_t bytes = 0;

    offer_name(name, sizeof(name), mesh, peer);
    status st = store->get(store->context, name, mesh->config->timeout_ms, &data, &bytes);
    if (st) {
        return st;
    }
    st = offer_read(key, address, peer, data, bytes);
    free(data);
    return st;
}

/* Waits until the socket is connected, which a refusal is as well for poll(). */
static status await_connection(const struct mesh *mesh, int peer, int socket)
{
    struct pollfd ready = {.fd = socket, .events = POLLOUT};
    int code = 0;
    socklen_t bytes = sizeof(code);

    while (poll(&ready, 1, LOOK_MS) <= 0) {
        status st = still_wanted(mesh, peer);
        if (st) {
            return st;
        }
    }
    if (getsockopt(socket, SOL_SOCKET, SO_ERROR, &code, &bytes) || code) {
        errno = code ? code : errno;
        return fail_os(mesh, "connecting to a peer");
    }
    return STATUS_OK;
}

static status call_peer(struct mesh *mesh, int peer)
{
    const int digits = AI_NUMERICHOST | AI_NUMERICSERV; /* a peer's word starts no look-up */
    struct rank_hello hello = {.rank = (uint32_t)mesh->config->rank};
    struct listen_address address;
    struct addrinfo *found;
    status st = take_offer(mesh, peer, &hello.key, &address);

    st = st ? st : resolve(&found, address.host, address.port, digits);
    if (st) {
        return st;
    }
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    mesh->sockets[peer] = fd;
    if (fd < 0 || (connect(fd, found->ai_addr, found->ai_addrlen) && errno != EINPROGRESS)) {
        st = fail_os(mesh, address.host);
    }
    freeaddrinfo(found);
    st = st ? st : await_connection(mesh, peer, fd);
    st = st ? st : set_nodelay(mesh, fd);
    if (!st && send(fd, &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello)) {
        st = fail_os(mesh, address.host); /* the first bytes of a connection always fit */
    }
    return st;
}

static void take_caller(struct mesh *mesh)
{
    int fd = accept4(mesh->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd >= 0 && mesh->n_callers == CALLERS) { /* who waits longest has nothing to say */
        close(mesh->callers[0].socket);
        memmove(mesh->callers, mesh->callers + 1, sizeof(mesh->callers[0]) * --mesh->n_callers);
    }
    if (fd >= 0) {
        mesh->callers[mesh->n_callers++] = (struct caller){.socket = fd};
    }
}

/* Whether the caller is done with: known as a peer, or hung up on. */
static bool hear_caller(struct mesh *mesh, struct caller *caller)
{
    const struct comm_config *config = mesh->config;
    ssize_t got = recv(caller->socket, (char *)&caller->hello + caller->bytes,
                       sizeof(caller->hello) - caller->bytes, 0);

    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        return false;
    }
    caller->bytes += got > 0 ? (size_t)got : 0;
    if (got > 0 && caller->bytes < sizeof(caller->hello)) {
        return false;
    }
    int rank =
        got > 0 ? hello_rank(&caller->hello, mesh->offer.key, config->rank, config->size) : -1;
    if (rank >= 0 && mesh->sockets[rank] < 0) {
        mesh->sockets[rank] = caller->socket;
    } else {
        close(caller->socket);
    }
    return true;
}

static int first_missing(const struct mesh *mesh)
{
    int peer = mesh->config->rank + 1;

    while (peer < mesh->config->size && mesh->sockets[peer] >= 0) {
        peer++;
    }
    return peer;
}

/* Until all higher ranks have called. */
static status answer_peers(struct mesh *mesh)
{
    struct pollfd ready[CALLERS + 1];
    int peer;

    while ((peer = first_missing(mesh)) < mesh->config->size) {
        status st = still_wanted(mesh, peer);
        if (st) {
            return st;
        }
        int n = mesh->n_callers;
        for (int i = 0; i < n; i++) {
            ready[i] = (struct pollfd){.fd = mesh->callers[i].socket, .events = POLLIN};
        }
        ready[n] = (struct pollfd){.fd = mesh->listener, .events = POLLIN};
        if (poll(ready, (nfds_t)n + 1, LOOK_MS) <= 0) {
            continue;
        }
        for (int i = n - 1; i >= 0; i--) {
            if (ready[i].revents && hear_caller(mesh, &mesh->callers[i])) {
                memmove(mesh->callers + i, mesh->callers + i + 1,
                        sizeof(mesh->callers[0]) * (size_t)(--mesh->n_callers - i));
            }
        }
        if (ready[n].revents) {
            take_caller(mesh);
        }
    }
    return STATUS_OK;
}

status mesh_open(int *sockets, const struct comm_config *config, int connect_ms)
{
    struct mesh mesh = {.config = config, .sockets = sockets, .listener = -1};

    for (int i = 0; i < config->size; i++) {
        sockets[i] = -1;
    }
    status st = start_listening(&mesh);
    st = st ? st : publish(&mesh);
    for (int peer = 0; !st && peer < config->rank; peer++) {
        mesh.until_ms = clock_ms() + connect_ms;
        st = call_peer(&mesh, peer);
    }
    mesh.until_ms = clock_ms() + connect_ms;
    st = st ? st : answer_peers(&mesh);
    for (int peer = config->rank + 1; !st && peer < config->size; peer++) {
        st = set_nodelay(&mesh, sockets[peer]);
    }
    for (int i = 0; i < mesh.n_callers; i++) {
        close(mesh.callers[i].socket);
    }
    if (mesh.listener >= 0) {
        close(mesh.listener);
    }
    return st;
}

void mesh_close(int *sockets, int size)
{
    for (int i = 0; i < size; i++) {
        if (sockets[i] >= 0) {
            close(sockets[i]);
            sockets[i] = -1;
        }
    }
}
