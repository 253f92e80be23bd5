/*
 * comm_gloo.cc - comm.h over gloo's unbound buffers, for ranks on CPUs.
 *
 * gloo's own collectives cannot be aborted and sum in the order of their algorithm, so this
 * file uses its transport only: every rank exchanges directly with every other.  Short vectors
 * are sent whole and summed by everybody; long ones are summed by segments, one a rank, which
 * are then distributed.  Both form each element once, in rank order.
 */
#include "worker/comm.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace
{

using Buffer = gloo::transport::UnboundBuffer;
using Clock = std::chrono::steady_clock;

/* Vectors up to this many floats are exchanged whole: one message instead of two in a row. */
constexpr size_t whole_limit = 4096;

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

/* Part `index` of n elements dealt out to `parts`. */
struct Segment {
    size_t first;
    size_t count;
};

Segment segment(size_t n, size_t parts, size_t index)
{
    size_t each = n / parts;
    size_t extra = n % parts;
    return {index * each + std::min(index, extra), each + (index < extra ? 1 : 0)};
}

void add(float *x, const float *y, size_t n, int max)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = max ? std::max(x[i], y[i]) : x[i] + y[i];
    }
}

} // namespace

struct comm {
    int rank = 0;
    int size = 1;
    std::shared_ptr<gloo::transport::Device> device;
    std::shared_ptr<gloo::rendezvous::Context> context;
    std::vector<uint64_t> sent;     /* messages to each peer so far: names the next one */
    std::vector<uint64_t> received; /* likewise from each peer */
    std::vector<float> staging;
    Clock::duration busy{0};
    std::mutex mutex; /* guards what follows */
    std::vector<Buffer *> active;
    bool aborted = false;
};

namespace
{

/* The buffers of one collective: what abort() wakes, whatever the engine thread waits for. */
class Exchange
{
  public:
    explicit Exchange(comm *c) : comm_(c), start_(Clock::now()) {}
    Exchange(const Exchange &) = delete;
    Exchange &operator=(const Exchange &) = delete;

    ~Exchange()
    {
        std::lock_guard<std::mutex> lock(comm_->mutex);
        comm_->active.clear();
        comm_->busy += Clock::now() - start_;
    }

    Buffer *send(int peer, const void *data, size_t bytes)
    {
        Buffer *buffer = make(const_cast<void *>(data), bytes);
        buffer->send(peer, slot(comm_->sent[static_cast<size_t>(peer)]++));
        return buffer;
    }

    Buffer *receive(int peer, void *data, size_t bytes)
    {
        Buffer *buffer = make(data, bytes);
        buffer->recv(peer, slot(comm_->received[static_cast<size_t>(peer)]++));
        return buffer;
    }

    static void wait_sent(Buffer *buffer)
    {
        if (!buffer->waitSend()) {
            throw Aborted();
        }
    }

    static void wait_received(Buffer *buffer)
    {
        if (!buffer->waitRecv()) {
            throw Aborted();
        }
    }

  private:
    static uint64_t slot(uint64_t number) { return number + 1; }

    Buffer *make(void *data, size_t bytes)
    {
        std::lock_guard<std::mutex> lock(comm_->mutex);
        if (comm_->aborted) {
            throw Aborted();
        }
        buffers_.push_back(comm_->context->createUnboundBuffer(data, bytes));
        comm_->active.push_back(buffers_.back().get());
        return buffers_.back().get();
    }

    comm *comm_;
    Clock::time_point start_;
    std::vector<std::unique_ptr<Buffer>> buffers_;
};

float *staging(comm *c, size_t n)
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

/* Everybody sends all of x to everybody and adds up what came, in rank order. */
void reduce_whole(comm *c, Members m, float *x, size_t n, int max)
{
    Exchange exchange(c);
    float *others = staging(c, n * (static_cast<size_t>(m.count) + 1));
    float *sum = others + n * static_cast<size_t>(m.count);
    std::vector<Buffer *> in(static_cast<size_t>(m.count), nullptr);
    std::vector<Buffer *> out;

    for (int i = 0; i < m.count; i++) {
        if (m.first + i != c->rank) {
            in[static_cast<size_t>(i)] = exchange.receive(
                m.first + i, others + static_cast<size_t>(i) * n, n * sizeof(float));
        }
    }
    for (int i = 0; i < m.count; i++) {
        if (m.first + i != c->rank) {
            out.push_back(exchange.send(m.first + i, x, n * sizeof(float)));
        }
    }
    for (int i = 0; i < m.count; i++) {
        const float *part = x;
        if (in[static_cast<size_t>(i)]) {
            Exchange::wait_received(in[static_cast<size_t>(i)]);
            part = others + static_cast<size_t>(i) * n;
        }
        if (i == 0) {
            memcpy(sum, part, n * sizeof(float));
        } else {
            add(sum, part, n, max);
        }
    }
    for (Buffer *buffer : out) {
        Exchange::wait_sent(buffer);
    }
    memcpy(x, sum, n * sizeof(float));
}

/* First half of reduce_segments: this rank's segment of x becomes the sum. */
void reduce_own_segment(comm *c, Members m, float *x, size_t n, int max)
{
    Exchange exchange(c);
    size_t parts = static_cast<size_t>(m.count);
    Segment own = segment(n, parts, static_cast<size_t>(c->rank - m.first));
    float *others = staging(c, own.count * (parts + 1));
    float *sum = others + own.count * parts;
    std::vector<Buffer *> in(parts, nullptr);
    std::vector<Buffer *> out;

    for (size_t i = 0; i < parts; i++) {
        int peer = m.first + static_cast<int>(i);
        if (peer != c->rank) {
            in[i] = exchange.receive(peer, others + i * own.count, own.count * sizeof(float));
        }
    }
    for (size_t i = 0; i < parts; i++) {
        int peer = m.first + static_cast<int>(i);
        if (peer != c->rank) {
            Segment theirs = segment(n, parts, i);
            out.push_back(exchange.send(peer, x + theirs.first, theirs.count * sizeof(float)));
        }
    }
    for (size_t i = 0; i < parts; i++) {
        const float *part = x + own.first;
        if (in[i]) {
            Exchange::wait_received(in[i]);
            part = others + i * own.count;
        }
        if (i == 0) {
            memcpy(sum, part, own.count * sizeof(float));
        } else {
            add(sum, part, own.count, max);
        }
    }
    for (Buffer *buffer : out) {
        Exchange::wait_sent(buffer);
    }
    memcpy(x + own.first, sum, own.count * sizeof(float));
}

/* Second half: every rank's segment goes to every other. */
void spread_segments(comm *c, Members m, float *x, size_t n)
{
    Exchange exchange(c);
    size_t parts = static_cast<size_t>(m.count);
    Segment own = segment(n, parts, static_cast<size_t>(c->rank - m.first));
    std::vector<Buffer *> in;
    std::vector<Buffer *> out;

    for (size_t i = 0; i < parts; i++) {
        int peer = m.first + static_cast<int>(i);
        if (peer != c->rank) {
            Segment theirs = segment(n, parts, i);
            in.push_back(exchange.receive(peer, x + theirs.first, theirs.count * sizeof(float)));
        }
    }
    for (size_t i = 0; i < parts; i++) {
        int peer = m.first + static_cast<int>(i);
        if (peer != c->rank) {
            out.push_back(exchange.send(peer, x + own.first, own.count * sizeof(float)));
        }
    }
    for (Buffer *buffer : in) {
        Exchange::wait_received(buffer);
    }
    for (Buffer *buffer : out) {
        Exchange::wait_sent(buffer);
    }
}

void gather(comm *c, char *out, const char *in, size_t bytes)
{
    Exchange exchange(c);
    std::vector<Buffer *> received;
    std::vector<Buffer *> sent;

    memcpy(out + static_cast<size_t>(c->rank) * bytes, in, bytes);
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
    for (Buffer *buffer : received) {
        Exchange::wait_received(buffer);
    }
    for (Buffer *buffer : sent) {
        Exchange::wait_sent(buffer);
    }
}

/* Nothing thrown crosses the C boundary. */
template <typename Work> status guarded(const comm *c, const char *what, Work work)
{
    try {
        work();
        return STATUS_OK;
    } catch (const std::exception &e) {
        return status_fail(STATUS_UNAVAILABLE, "rank %d of %d: %s: %s", c->rank, c->size, what,
                           e.what());
    }
}

void connect(comm *c, const comm_config *config)
{
    gloo::transport::tcp::attr attr(config->host);
    RelayedStore store(config->store, config->epoch, config->timeout_ms);

    c->sent.assign(static_cast<size_t>(c->size), 0);
    c->received.assign(static_cast<size_t>(c->size), 0);
    c->device = gloo::transport::tcp::CreateDevice(attr);
    c->context = std::make_shared<gloo::rendezvous::Context>(c->rank, c->size);
    c->context->setTimeout(std::chrono::milliseconds(config->timeout_ms));
    c->context->connectFullMesh(store, c->device);
}

} // namespace

status comm_open(struct comm **out, const struct comm_config *config)
{
    auto *c = new (std::nothrow) comm;
    status st = STATUS_OK;

    if (!c) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the collectives");
    }
    c->rank = config->rank;
    c->size = config->size;
    if (c->size > 1) {
        st = guarded(c, "joining the group", [&] { connect(c, config); });
    }
    if (st) {
        comm_close(c);
        return st;
    }
    *out = c;
    return STATUS_OK;
}

void comm_close(struct comm *comm)
{
    delete comm;
}

void comm_abort(struct comm *comm)
{
    std::lock_guard<std::mutex> lock(comm->mutex);
    comm->aborted = true;
    for (Buffer *buffer : comm->active) {
        buffer->abortWaitRecv();
        buffer->abortWaitSend();
    }
}

int comm_rank(const struct comm *comm)
{
    return comm->rank;
}

int comm_size(const struct comm *comm)
{
    return comm->size;
}

status comm_all_reduce(struct comm *comm, float *x, size_t n)
{
    return comm_group_reduce(comm, 0, comm->size, x, n, 0);
}

status comm_group_reduce(struct comm *comm, int first, int count, float *x, size_t n, int max)
{
    if (count == 1 || n == 0) {
        return STATUS_OK;
    }
    return guarded(comm, "all-reduce", [&] {
        Members members{first, count};
        if (n <= whole_limit) {
            reduce_whole(comm, members, x, n, max);
        } else {
            reduce_own_segment(comm, members, x, n, max);
            spread_segments(comm, members, x, n);
        }
    });
}

status comm_all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    if (comm->size == 1) {
        memmove(out, in, bytes);
        return STATUS_OK;
    }
    return guarded(comm, "all-gather", [&] {
        gather(comm, static_cast<char *>(out), static_cast<const char *>(in), bytes);
    });
}

double comm_take_ms(struct comm *comm)
{
    std::lock_guard<std::mutex> lock(comm->mutex);
    double ms = std::chrono::duration<double, std::milli>(comm->busy).count();
    comm->busy = Clock::duration{0};
    return ms;
}
