/*
 * nccl.cc - a stand-in for NCCL, in non-blocking mode alone: ranks exchange over TCP.
 *
 * The unique id says where rank 0, which made it, listens.  The others dial in there, learn from it
 * where everybody listens, and connect to the lower ranks.  They listen on the loopback, or at the
 * word "address=" of WINNOW_CUDA_HOST.
 * As with NCCL a call is done when ncclCommGetAsyncError() no longer says ncclInProgress, and
 * only then is it on the stream: who does not wait for that computes with what is not there.
 * What runs on a stream moves bytes until all are through, a peer is gone (ncclRemoteError), or
 * the communicator is aborted.
 */
#include "tests/cuda_host/stream.h"

#include <nccl.h>

#include <arpa/inet.h>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace
{

constexpr int NAP_MS = 10;

/* What a ncclUniqueId holds. */
struct Root {
    sockaddr_in address;
    int listener; /* of the process that made the id */
};

/* The first words on a connection: who calls, and where it listens. */
struct Hello {
    int rank;
    sockaddr_in address;
};

/* Lives as long as work on a stream may use it. */
struct Links {
    int rank = 0, ranks = 0;
    Root root = {};
    std::vector<int> sockets;
    std::atomic<int> state{ncclInProgress};
    std::atomic<bool> aborted{false};
    std::atomic<int> in_graphs{0};

    ~Links()
    {
        for (int fd : sockets) {
            close(fd);
        }
    }
};

/* A collective that a graph holds. */
struct InGraph {
    explicit InGraph(std::shared_ptr<Links> of) : links(std::move(of)) { links->in_graphs++; }
    ~InGraph() { links->in_graphs--; }
    InGraph(const InGraph &) = delete;
    InGraph &operator=(const InGraph &) = delete;
    std::shared_ptr<Links> links;
};

struct Move {
    int peer;
    char *data;
    size_t bytes;
    bool out;
};

/* Where other ranks reach this process, port 0. */
sockaddr_in own_address()
{
    sockaddr_in address = {};
    const char *words = getenv("WINNOW_CUDA_HOST");
    const char *at = words ? strstr(words, "address=") : nullptr;

    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (at) {
        at += strlen("address=");
        std::string text(at, strcspn(at, " "));
        inet_pton(AF_INET, text.c_str(), &address.sin_addr);
    }
    return address;
}

/* A socket that listens at a port of the system's choice; -1: there is none. */
int open_listener(sockaddr_in *address)
{
    socklen_t size = sizeof(*address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    auto *any = reinterpret_cast<sockaddr *>(address);

    *address = own_address();
    if (fd >= 0 && (bind(fd, any, size) || listen(fd, SOMAXCONN) || getsockname(fd, any, &size))) {
        close(fd);
        return -1;
    }
    return fd;
}

bool wait_for(const Links &links, int fd, short events)
{
    pollfd wait = {fd, events, 0};

    while (!links.aborted) {
        if (poll(&wait, 1, NAP_MS) > 0) {
            return true;
        }
    }
    return false;
}

bool receive_all(const Links &links, int fd, void *data, size_t bytes)
{
    char *at = static_cast<char *>(data);

    while (bytes > 0 && wait_for(links, fd, POLLIN)) {
        ssize_t n = recv(fd, at, bytes, 0);
        if (n <= 0) {
            return false;
        }
        at += n;
        bytes -= static_cast<size_t>(n);
    }
    return bytes == 0;
}

/* Little enough for the buffer of a new connection. */
bool send_all(int fd, const void *data, size_t bytes)
{
    return send(fd, data, bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes);
}

void keep(Links &links, int peer, int fd)
{
    int on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    links.sockets[static_cast<size_t>(peer)] = fd;
}

/* Until the lower rank listens. */
bool connect_to(Links &links, int peer, const sockaddr_in &address, const sockaddr_in &own)
{
    Hello hello = {links.rank, own};

    while (!links.aborted) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)connect(fd, reinterpret_cast<const sockaddr *>(&address), sizeof(address));
        if (wait_for(links, fd, POLLOUT) && send_all(fd, &hello, sizeof(hello))) {
            keep(links, peer, fd);
            return true;
        }
        close(fd);
        poll(nullptr, 0, NAP_MS);
    }
    return false;
}

/* The higher ranks come in any order and say who they are. */
bool accept_all(Links &links, int listener, std::vector<sockaddr_in> &addresses)
{
    for (int left = links.ranks - 1 - links.rank; left > 0; left--) {
        Hello hello;

        if (!wait_for(links, listener, POLLIN)) {
            return false;
        }
        int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 || !receive_all(links, fd, &hello, sizeof(hello)) || hello.rank <= links.rank ||
            hello.rank >= links.ranks) {
            close(fd);
            return false;
        }
        keep(links, hello.rank, fd);
        addresses[static_cast<size_t>(hello.rank)] = hello.address;
    }
    return true;
}

bool connect_ranks(Links &links)
{
    std::vector<sockaddr_in> addresses(static_cast<size_t>(links.ranks));
    size_t bytes = addresses.size() * sizeof(addresses[0]);
    sockaddr_in own = links.root.address;
    int listener = links.rank == 0 ? links.root.listener : open_listener(&own);
    bool ok = listener >= 0;

    if (links.rank > 0) {
        ok = ok && connect_to(links, 0, links.root.address, own) &&
             receive_all(links, links.sockets[0], addresses.data(), bytes);
    }
    for (int peer = 1; ok && peer < links.rank; peer++) {
        ok = connect_to(links, peer, addresses[static_cast<size_t>(peer)], own);
    }
    ok = ok && accept_all(links, listener, addresses);
    for (int peer = 1; ok && links.rank == 0 && peer < links.ranks; peer++) {
        ok = send_all(links.sockets[static_cast<size_t>(peer)], addresses.data(), bytes);
    }
    close(listener);
    return ok;
}

void connect_all(const std::shared_ptr<Links> &links)
{
    links->state = connect_ranks(*links) ? ncclSuccess : ncclSystemError;
}

/* As much as goes now; false: the peer is gone. */
bool advance(const Links &links, Move &move)
{
    int fd = links.sockets[static_cast<size_t>(move.peer)];
    ssize_t n = move.out ? send(fd, move.data, move.bytes, MSG_NOSIGNAL)
                         : recv(fd, move.data, move.bytes, 0);

    if (n > 0) {
        move.data += n;
        move.bytes -= static_cast<size_t>(n);
        return true;
    }
    return n < 0 && (errno == EAGAIN || errno == EINTR);
}

/* What will be received is not there yet. */
void spoil(const std::vector<Move> &moves)
{
    for (const Move &move : moves) {
        if (!move.out) {
            memset(move.data, 0xff, move.bytes);
        }
    }
}

void run_moves(Links &links, std::vector<Move> moves)
{
    while (!moves.empty() && !links.aborted) {
        std::vector<pollfd> waits;

        for (const Move &move : moves) {
            waits.push_back({links.sockets[static_cast<size_t>(move.peer)],
                             static_cast<short>(move.out ? POLLOUT : POLLIN), 0});
        }
        if (links.state != ncclSuccess) {
            poll(nullptr, 0, NAP_MS); /* hangs, as NCCL does, until it is aborted */
            continue;
        }
        poll(waits.data(), waits.size(), NAP_MS);
        for (size_t i = 0; i < moves.size(); i++) {
            if (waits[i].revents && !advance(links, moves[i])) {
                links.state = ncclRemoteError;
            }
        }
        std::erase_if(moves, [](const Move &move) { return move.bytes == 0; });
    }
}

/* What this thread called since ncclGroupStart(). */
struct Pending {
    int depth = 0;
    ncclComm_t comm = nullptr;
    cudaStream_t stream = nullptr;
    std::vector<Move> moves;
};
thread_local Pending pending;

size_t bytes_of(size_t count, ncclDataType_t type)
{
    return count * (type == ncclFloat32 ? 4 : 1);
}

} // namespace

struct ncclComm {
    std::shared_ptr<Links> links;
    std::thread connecting;
    /* Taken by ncclCommGetAsyncError(), the second time that it is called. */
    std::vector<Move> moves;
    cudaStream_t stream = nullptr;
    int asked = 0;
};

namespace
{

ncclResult_t end_group()
{
    Pending all = std::move(pending);

    pending = {};
    if (!all.comm) {
        return ncclSuccess;
    }
    all.comm->moves = std::move(all.moves);
    all.comm->stream = all.stream;
    all.comm->asked = 0;
    return ncclInProgress;
}

ncclResult_t add(Move move, ncclComm_t comm, cudaStream_t stream)
{
    if (!comm->moves.empty() || move.peer == comm->links->rank) {
        return ncclInvalidUsage; /* the call before has not been waited for */
    }
    pending.comm = comm;
    pending.stream = stream;
    pending.moves.push_back(move);
    return pending.depth > 0 ? ncclSuccess : end_group();
}

} // namespace

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    Root root = {};

    root.listener = open_listener(&root.address);
    *id = {};
    memcpy(id->internal, &root, sizeof(root));
    return root.listener < 0 ? ncclSystemError : ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    if (config->blocking || rank < 0 || rank >= ranks || ranks > 64) {
        return ncclInvalidArgument;
    }
    auto *comm = new ncclComm;
    comm->links = std::make_shared<Links>();
    comm->links->rank = rank;
    comm->links->ranks = ranks;
    memcpy(&comm->links->root, id.internal, sizeof(comm->links->root));
    comm->links->sockets.resize(static_cast<size_t>(ranks), -1);
    comm->connecting = std::thread(connect_all, comm->links);
    *out = comm;
    return ncclInProgress;
}

/* Its work on streams ends; the streams go on.  Graphs that hold some of it have to be gone. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    if (comm->links->in_graphs > 0) {
        cuda_host_misuse("a communicator is aborted that graphs still hold");
    }
    comm->links->aborted = true;
    comm->connecting.join();
    delete comm;
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state)
{
    *state = static_cast<ncclResult_t>(comm->links->state.load());
    if (comm->moves.empty() || *state != ncclSuccess) {
        return ncclSuccess;
    }
    if (comm->asked++ == 0) {
        *state = ncclInProgress;
        return ncclSuccess;
    }
    cuda_host_hold(comm->stream, std::make_shared<InGraph>(comm->links));
    cuda_host_enqueue(
        comm->stream, [links = comm->links, moves = comm->moves] { run_moves(*links, moves); },
        [moves = comm->moves] { spoil(moves); });
    comm->moves.clear();
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    switch (result) {
    case ncclRemoteError:
        return "a remote process exited or there was a network error";
    case ncclSystemError:
        return "unhandled system error";
    default:
        return "invalid usage";
    }
}

ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    return add({peer, static_cast<char *>(const_cast<void *>(data)), bytes_of(count, type), true},
               comm, stream);
}

ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return add({peer, static_cast<char *>(data), bytes_of(count, type), false}, comm, stream);
}

ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = bytes_of(count, type);
    char *out = static_cast<char *>(receive);

    cuda_host_enqueue(stream, [own = out + static_cast<size_t>(comm->links->rank) * bytes, send,
                               bytes] { memmove(own, send, bytes); });
    ncclGroupStart();
    for (int peer = 0; peer < comm->links->ranks; peer++) {
        if (peer != comm->links->rank) {
            ncclResult_t result = ncclSend(send, count, type, peer, comm, stream);
            if (result == ncclSuccess) {
                result = ncclRecv(out + static_cast<size_t>(peer) * bytes, count, type, peer, comm,
                                  stream);
            }
            if (result != ncclSuccess) {
                return result;
            }
        }
    }
    return ncclGroupEnd();
}

ncclResult_t ncclGroupStart(void)
{
    pending.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    return --pending.depth > 0 ? ncclSuccess : end_group();
}
}
