/*
 * nccl.cc - a stand-in for NCCL, in non-blocking mode alone: ranks exchange over Unix sockets.
 *
 * The unique id names a folder; rank r listens on the socket r in it, and connects to the lower
 * ranks.  As with NCCL a call is done when ncclCommGetAsyncError() no longer says ncclInProgress,
 * and only then is it on the stream: who does not wait for that computes with what is not there.
 * What runs on a stream moves bytes until all are through, a peer is gone (ncclRemoteError), or
 * the communicator is aborted.
 */
#include "tests/cuda_host/stream.h"

#include <nccl.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <poll.h>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace
{

constexpr int NAP_MS = 10;

/* Lives as long as work on a stream may use it. */
struct Links {
    int rank = 0, ranks = 0;
    std::string folder;
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

sockaddr_un address_of(const Links &links, int rank)
{
    sockaddr_un address = {};

    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/%d", links.folder.c_str(), rank);
    return address;
}

/* Until the lower rank listens. */
int connect_to(const Links &links, int peer)
{
    sockaddr_un address = address_of(links, peer);
    char mine = static_cast<char>(links.rank);

    while (!links.aborted) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, reinterpret_cast<sockaddr *>(&address), sizeof(address)) == 0 &&
            write(fd, &mine, 1) == 1) {
            return fd;
        }
        close(fd);
        poll(nullptr, 0, NAP_MS);
    }
    return -1;
}

/* The higher ranks come in any order and say who they are. */
bool accept_all(Links &links, int listener)
{
    for (int left = links.ranks - 1 - links.rank; left > 0 && !links.aborted;) {
        pollfd wait = {listener, POLLIN, 0};
        char peer = 0;

        if (poll(&wait, 1, NAP_MS) <= 0) {
            continue;
        }
        int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        if (fd < 0 || read(fd, &peer, 1) != 1 || peer <= links.rank || peer >= links.ranks) {
            return false;
        }
        links.sockets[static_cast<size_t>(peer)] = fd;
        left--;
    }
    return !links.aborted;
}

void connect_all(const std::shared_ptr<Links> &links)
{
    sockaddr_un address = address_of(*links, links->rank);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = bind(listener, reinterpret_cast<sockaddr *>(&address), sizeof(address)) == 0 &&
              listen(listener, links->ranks) == 0;

    for (int peer = 0; ok && peer < links->rank; peer++) {
        links->sockets[static_cast<size_t>(peer)] = connect_to(*links, peer);
        ok = links->sockets[static_cast<size_t>(peer)] >= 0;
    }
    ok = ok && accept_all(*links, listener);
    close(listener);
    unlink(address.sun_path);
    rmdir(links->folder.c_str()); /* by the last rank it is empty */
    for (int fd : links->sockets) {
        if (fd >= 0) {
            fcntl(fd, F_SETFL, O_NONBLOCK);
        }
    }
    links->state = ok ? ncclSuccess : ncclSystemError;
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
    char folder[] = "/tmp/winnow-nccl-XXXXXX";

    if (!mkdtemp(folder)) {
        return ncclSystemError;
    }
    *id = {};
    memcpy(id->internal, folder, sizeof(folder));
    return ncclSuccess;
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
    comm->links->folder = id.internal;
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
