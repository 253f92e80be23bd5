/*
 * comm_gloo.cc - the collectives over TCP, for ranks on several hosts.
 *
 * Every rank exchanges directly with every other.  Short vectors are sent whole, over connections
 * of our own (comm_direct.h), and summed by everybody; long ones are summed by segments, one a
 * rank, which are then distributed.  Both form each element once, in rank order.
 *
 * Long vectors go through gloo's unbound buffers, whose thread moves them beside the computation.
 * gloo's own collectives cannot be aborted and sum in the order of their algorithm, so they are not
 * used.
 */
#include "worker/comm_direct.h"
#include "worker/comm_transport.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>
#include <memory>
#include <mutex>
#include <sched.h>
#include <string>
#include <vector>

namespace
{

constexpr int CONNECT_MS = 2000; /* gloo waits five times as long */

using Buffer = gloo::transport::UnboundBuffer;

class Aborted : public std::exception
{
  public:
    const char *what() const noexcept override { return "aborted"; }
};

class Failed : public std::exception
{
  public:
    explicit Failed(const char *text) : text_(text) {}
    const char *what() const noexcept override { return text_.c_str(); }

  private:
    std::string text_;
};

/* gloo's view of the key-value space that the coordinator relays. */
class RelayedStore : public gloo::rendezvous::Store
{
  public:
    RelayedStore(const comm_store &store, uint64_t epoch, int timeout_ms)
        : store_(store), prefix_("epoch" + std::to_string(epoch) + "/"), timeout_ms_(timeout_ms)
    {
    }

    void set(const std::string &key, const std::vector<char> &data) override
    {
        if (store_.set(store_.context, (prefix_ + key).c_str(), data.data(), data.size())) {
            throw Failed(status_text());
        }
    }

    std::vector<char> get(const std::string &key) override
    {
        void *data = nullptr;
        size_t bytes = 0;
        if (store_.get(store_.context, (prefix_ + key).c_str(), timeout_ms_, &data, &bytes)) {
            throw Failed(status_text());
        }
        std::vector<char> out(static_cast<char *>(data), static_cast<char *>(data) + bytes);
        free(data);
        return out;
    }

    void wait(const std::vector<std::string> &keys) override
    {
        for (const auto &key : keys) {
            get(key);
        }
    }

    void wait(const std::vector<std::string> &keys, const std::chrono::milliseconds &) override
    {
        wait(keys);
    }

  private:
    comm_store store_;
    std::string prefix_;
    int timeout_ms_;
};

struct Group {
    Group() = default;
    Group(const Group &) = delete;
    Group &operator=(const Group &) = delete;
    ~Group() { direct_close(direct); }

    int rank = 0;
    int size = 1;
    std::chrono::milliseconds timeout{0}; /* of one message */
    std::shared_ptr<gloo::transport::Device> device;
    std::shared_ptr<gloo::rendezvous::Context> context;
    std::vector<uint64_t> sent;     /* messages to each peer so far: names the next one */
    std::vector<uint64_t> received; /* likewise from each peer */
    std::vector<float> staging;
    struct direct *direct = nullptr;
    std::atomic<bool> in_direct{false}; /* it is what waits */
    std::atomic<int> waits_for{0};      /* else the peer whose message is awaited */
    std::mutex mutex;                   /* guards what follows */
    std::vector<Buffer *> active;
    bool aborted = false;
};

/* To or from a peer. */
struct Message {
    int peer = 0;
    Buffer *buffer = nullptr;
};

/* The buffers of one collective: what abort() wakes, whatever the engine thread waits for. */
class Exchange
{
  public:
    explicit Exchange(Group *c) : group_(c) {}
    Exchange(const Exchange &) = delete;
    Exchange &operator=(const Exchange &) = delete;

    ~Exchange()
    {
        std::lock_guard<std::mutex> lock(group_->mutex);
        group_->active.clear();
    }

    Message send(int peer, const void *data, size_t bytes)
    {
        Buffer *buffer = make(const_cast<void *>(data), bytes);
        buffer->send(peer, slot(group_->sent[static_cast<size_t>(peer)]++));
        return {peer, buffer};
    }

    Message receive(int peer, void *data, size_t bytes)
    {
        Buffer *buffer = make(data, bytes);
        buffer->recv(peer, slot(group_->received[static_cast<size_t>(peer)]++));
        return {peer, buffer};
    }

    void wait_sent(const Message &message)
    {
        group_->waits_for = message.peer;
        if (!message.buffer->waitSend(group_->timeout)) {
            throw Aborted();
        }
    }

    void wait_received(const Message &message)
    {
        group_->waits_for = message.peer;
        if (!message.buffer->waitRecv(group_->timeout)) {
            throw Aborted();
        }
    }

  private:
    static uint64_t slot(uint64_t number) { return number + 1; }

    Buffer *make(void *data, size_t bytes)
    {
        std::lock_guard<std::mutex> lock(group_->mutex);
        if (group_->aborted) {
            throw Aborted();
        }
        buffers_.push_back(group_->context->createUnboundBuffer(data, bytes));
        group_->active.push_back(buffers_.back().get());
        return buffers_.back().get();
    }

    Group *group_;
    std::vector<std::unique_ptr<Buffer>> buffers_;
};

float *staging(Group *c, size_t n)
{
    if (c->staging.size() < n) {
        c->staging.resize(n);
    }
    return c->staging.data();
}

/* Ranks first..first + count, this one among them. */
struct Members {
    int first;
    int count;
};

void exchange_whole(Group *c, Members m, void *all, size_t bytes)
{
    c->in_direct = true;
    status st = direct_exchange(c->direct, m.first, m.count, all, bytes);
    if (st) {
        throw Failed(status_text());
    }
    c->in_direct = false;
}

/* Everybody sends all of x to everybody and adds up what came, in rank order. */
void reduce_whole(Group *c, Members m, float *x, size_t n, int max)
{
    const auto count = static_cast<size_t>(m.count);
    float *all = staging(c, n * count);

    memcpy(all + static_cast<size_t>(c->rank - m.first) * n, x, n * sizeof(float));
    exchange_whole(c, m, all, n * sizeof(float));
    memcpy(x, all, n * sizeof(float));
    for (size_t i = 1; i < count; i++) {
        comm_add(x, all + i * n, n, max);
    }
}

/* First half of reduce_segments: this rank's segment of x becomes the sum. */
void reduce_own_segment(Group *c, Members m, float *x, size_t n, int max)
{
    Exchange exchange(c);
    size_t parts = static_cast<size_t>(m.count);
    struct comm_part own = comm_part(n, parts, static_cast<size_t>(c->rank - m.first));
    float *others = staging(c, own.count * (parts + 1));
    float *sum = others + own.count * parts;
    std::vector<Message> in(parts);
    std::vector<Message> out;

    for (size_t i = 0; i < parts; i++) {
        int peer = m.first + static_cast<int>(i);
        if (peer != c->rank) {
            in[i] = exchange.receive(peer, others + i * own.count, own.count * sizeof(float));
        }
    }
    for (size_t i = 0; i < parts; i++) {
        int peer = m.first + static_cast<int>(i);
        if (peer != c->rank) {
            struct comm_part theirs = comm_part(n, parts, i);
            out.push_back(exchange.send(peer, x + theirs.first, theirs.count * sizeof(float)));
        }
    }
    for (size_t i = 0; i < parts; i++) {
        const float *part = x + own.first;
        if (in[i].buffer) {
            exchange.wait_received(in[i]);
            part = others + i * own.count;
        }
        if (i == 0) {
            memcpy(sum, part, own.count * sizeof(float));
        } else {
            comm_add(sum, part, own.count, max);
        }
    }
    for (const Message &message : out) {
        exchange.wait_sent(message);
    }
    memcpy(x + own.first, sum, own.count * sizeof(float));
}

/* Second half: every rank's segment goes to every other. */
void spread_segments(Group *c, Members m, float *x, size_t n)
{
    Exchange exchange(c);
    size_t parts = static_cast<size_t>(m.count);
    struct comm_part own = comm_part(n, parts, static_cast<size_t>(c->rank - m.first));
    std::vector<Message> in;
    std::vector<Message> out;

    for (size_t i = 0; i < parts; i++) {
        int peer = m.first + static_cast<int>(i);
        if (peer != c->rank) {
            struct comm_part theirs = comm_part(n, parts, i);
            in.push_back(exchange.receive(peer, x + theirs.first, theirs.count * sizeof(float)));
        }
    }
    for (size_t i = 0; i < parts; i++) {
        int peer = m.first + static_cast<int>(i);
        if (peer != c->rank) {
            out.push_back(exchange.send(peer, x + own.first, own.count * sizeof(float)));
        }
    }
    for (const Message &message : in) {
        exchange.wait_received(message);
    }
    for (const Message &message : out) {
        exchange.wait_sent(message);
    }
}

void gather(Group *c, char *out, const char *in, size_t bytes)
{
    Exchange exchange(c);
    std::vector<Message> received;
    std::vector<Message> sent;

    memcpy(out + static_cast<size_t>(c->rank) * bytes, in, bytes);
    if (bytes <= COMM_WHOLE_LIMIT * sizeof(float)) {
        exchange_whole(c, {0, c->size}, out, bytes);
        return;
    }
    for (int peer = 0; peer < c->size; peer++) {
        if (peer != c->rank) {
            received.push_back(
                exchange.receive(peer, out + static_cast<size_t>(peer) * bytes, bytes));
        }
    }
    for (int peer = 0; peer < c->size; peer++) {
        if (peer != c->rank) {
            sent.push_back(exchange.send(peer, in, bytes));
        }
    }
    for (const Message &message : received) {
        exchange.wait_received(message);
    }
    for (const Message &message : sent) {
        exchange.wait_sent(message);
    }
}

/* Nothing thrown crosses the C boundary. */
template <typename Work> status guarded(const Group *c, const char *what, Work work)
{
    try {
        work();
        return STATUS_OK;
    } catch (const std::exception &e) {
        return status_fail(STATUS_UNAVAILABLE, "rank %d of %d: %s: %s", c->rank, c->size, what,
                           e.what());
    }
}

/*
 * gloo's thread, which begins with the policy of who makes it, does not take the processor from
 * whoever wakes it.  It is woken by messages that this rank's threads write and read under a lock
 * for which it would spin until its time slice is over: milliseconds where they share a processor.
 */
std::shared_ptr<gloo::transport::Device> create_device(gloo::transport::tcp::attr *attr)
{
    const sched_param none{};
    const int policy = sched_getscheduler(0);
    const bool set = policy == SCHED_OTHER && sched_setscheduler(0, SCHED_BATCH, &none) == 0;
    auto device = gloo::transport::tcp::CreateDevice(*attr);

    if (set) {
        sched_setscheduler(0, policy, &none);
    }
    return device;
}

void connect(Group *c, const comm_config *config)
{
    gloo::transport::tcp::attr attr(config->host);
    RelayedStore store(config->store, config->epoch, config->timeout_ms);

    c->sent.assign(static_cast<size_t>(c->size), 0);
    c->received.assign(static_cast<size_t>(c->size), 0);
    c->device = create_device(&attr);
    c->context = std::make_shared<gloo::rendezvous::Context>(c->rank, c->size);
    /* Peers that cannot be reached are given up early: a connection cannot be aborted. */
    c->context->setTimeout(std::chrono::milliseconds(std::min(config->timeout_ms, CONNECT_MS)));
    c->context->connectFullMesh(store, c->device);
    if (direct_open(&c->direct, config, CONNECT_MS)) {
        throw Failed(status_text());
    }
}

status gloo_reduce(void *self, int first, int count, float *x, size_t n, int max)
{
    auto *c = static_cast<Group *>(self);
    return guarded(c, "all-reduce", [&] {
        Members members{first, count};
        if (n <= COMM_WHOLE_LIMIT) {
            reduce_whole(c, members, x, n, max);
        } else {
            reduce_own_segment(c, members, x, n, max);
            spread_segments(c, members, x, n);
        }
    });
}

status gloo_gather(void *self, void *out, const void *in, size_t bytes)
{
    auto *c = static_cast<Group *>(self);
    return guarded(c, "all-gather", [&] {
        gather(c, static_cast<char *>(out), static_cast<const char *>(in), bytes);
    });
}

void gloo_abort(void *self)
{
    auto *c = static_cast<Group *>(self);
    direct_abort(c->direct);
    std::lock_guard<std::mutex> lock(c->mutex);
    c->aborted = true;
    for (Buffer *buffer : c->active) {
        buffer->abortWaitRecv();
        buffer->abortWaitSend();
    }
}

int gloo_waits_for(const void *self)
{
    const auto *c = static_cast<const Group *>(self);
    return c->in_direct ? direct_waits_for(c->direct) : c->waits_for.load();
}

void gloo_close(void *self)
{
    delete static_cast<Group *>(self);
}

} // namespace

status comm_gloo_open(void **self, const struct comm_config *config)
{
    auto *c = new (std::nothrow) Group;

    if (!c) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the collectives");
    }
    c->rank = config->rank;
    c->size = config->size;
    c->timeout = std::chrono::milliseconds(config->timeout_ms);
    status st = guarded(c, "joining the group", [&] { connect(c, config); });
    if (st) {
        delete c;
        return st;
    }
    *self = c;
    return STATUS_OK;
}

const struct comm_transport comm_gloo = {gloo_reduce,    gloo_gather, gloo_abort,
                                         gloo_waits_for, gloo_close,  true,
                                         nullptr,        nullptr,     nullptr};
