/*
 * graph.cc - stream capture and graphs.
 *
 * A launch runs the nodes in an order that their edges permit: that of the capture, then, launch by
 * launch, the latest first or any, so that a missing edge shows.  What CUDA forbids during a
 * capture fails and spoils it, as there.
 */
#include "tests/cuda_host/stream.h"

#include <algorithm>

struct CUgraph_st {
    std::shared_ptr<const std::vector<cuda_host_node>> nodes;
    std::vector<std::shared_ptr<void>> held;
};

struct CUgraphExec_st {
    CUgraph_st graph;
    unsigned launches = 0;
};

namespace
{

struct here {
    std::shared_ptr<cuda_host_capture> capture; /* begun by this thread */
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
};
thread_local here mine;
thread_local bool refused; /* are graphs of this thread */

void add_nodes(cuda_host_nodes &to, const cuda_host_nodes &more)
{
    for (size_t node : more) {
        if (std::find(to.begin(), to.end(), node) == to.end()) {
            to.push_back(node);
        }
    }
}

/* Whether everything that was captured comes before the origin's tail. */
bool is_joined(const cuda_host_capture &capture)
{
    std::vector<bool> before(capture.nodes.size(), false);
    cuda_host_nodes next = capture.origin->tail;

    while (!next.empty()) {
        size_t node = next.back();
        next.pop_back();
        if (!before[node]) {
            before[node] = true;
            next.insert(next.end(), capture.nodes[node].after.begin(),
                        capture.nodes[node].after.end());
        }
    }
    return std::find(before.begin(), before.end(), false) == before.end();
}

/* Nodes that may run, the rest, and which one is taken. */
class run
{
  public:
    run(const std::vector<cuda_host_node> &nodes, unsigned order)
        : nodes_(nodes), state_(nodes.size(), WAITS), order_(order), random_(order)
    {
    }

    void all()
    {
        for (size_t left = nodes_.size(); left > 0; left--) {
            size_t node = take();
            nodes_[node].work.run();
            state_[node] = DONE;
        }
    }

  private:
    enum state { WAITS, READY, DONE };

    size_t take()
    {
        cuda_host_nodes ready;

        for (size_t i = 0; i < nodes_.size(); i++) {
            bool may =
                state_[i] != DONE && std::all_of(nodes_[i].after.begin(), nodes_[i].after.end(),
                                                 [&](size_t node) { return state_[node] == DONE; });
            if (may && state_[i] == WAITS && nodes_[i].work.begin) {
                nodes_[i].work.begin();
            }
            if (may) {
                state_[i] = READY;
                ready.push_back(i);
            }
            if (may && order_ == 0) {
                break;
            }
        }
        random_ = random_ * 1664525 + 1013904223;
        return order_ == 0   ? ready.front()
               : order_ == 1 ? ready.back()
                             : ready[random_ / 65536 % ready.size()];
    }

    const std::vector<cuda_host_node> &nodes_;
    std::vector<state> state_;
    unsigned order_, random_;
};

} // namespace

bool cuda_host_forbidden()
{
    if (!mine.capture || mine.mode == cudaStreamCaptureModeRelaxed) {
        return false;
    }
    mine.capture->broken = true;
    return true;
}

cudaError_t cuda_host_join(cudaStream_t stream, cudaEvent_t event)
{
    if (!event->capture) { /* of before the capture: what it stands for is not in the graph */
        stream->capture->broken = true;
        return cudaErrorStreamCaptureIsolation;
    }
    if (!stream->capture) {
        stream->capture = event->capture;
        stream->capture->joined.push_back(stream);
    } else if (stream->capture != event->capture) {
        stream->capture->broken = true;
        return cudaErrorStreamCaptureIsolation;
    }
    add_nodes(stream->tail, event->tail);
    return cudaSuccess;
}

void cuda_host_hold(cudaStream_t stream, std::shared_ptr<void> what)
{
    if (stream->capture) {
        stream->capture->held.push_back(std::move(what));
    }
}

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    if (stream->capture || mine.capture || mode != cudaStreamCaptureModeThreadLocal) {
        return cudaErrorIllegalState;
    }
    mine = {std::make_shared<cuda_host_capture>(), mode};
    mine.capture->origin = stream;
    stream->capture = mine.capture;
    stream->tail.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    std::shared_ptr<cuda_host_capture> capture = stream->capture;

    *out = nullptr;
    if (!capture || capture->origin != stream || mine.capture != capture) {
        return cudaErrorIllegalState;
    }
    bool joined = is_joined(*capture);
    for (cudaStream_t other : capture->joined) {
        other->capture = nullptr;
        other->tail.clear();
    }
    stream->capture = nullptr;
    stream->tail.clear();
    mine = {};
    if (capture->broken) {
        return cudaErrorStreamCaptureInvalidated;
    }
    if (!joined) {
        return cudaErrorStreamCaptureUnjoined;
    }
    *out = new CUgraph_st{
        std::make_shared<const std::vector<cuda_host_node>>(std::move(capture->nodes)),
        std::move(capture->held)};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    *status = !stream->capture          ? cudaStreamCaptureStatusNone
              : stream->capture->broken ? cudaStreamCaptureStatusInvalidated
                                        : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode)
{
    std::swap(mine.mode, *mode);
    return cudaSuccess;
}

void cuda_host_refuse_graphs(void)
{
    refused = true;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    cuda_host_count()->allocations++;
    if (cuda_host_forbidden()) {
        return cudaErrorStreamCaptureUnsupported;
    }
    if (refused) {
        return cudaErrorMemoryAllocation;
    }
    *out = new CUgraphExec_st{*graph, 0};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    if (stream->capture) {
        cuda_host_misuse("a graph is launched into a capture");
    }
    cuda_host_count()->graphs++;
    cuda_host_append(stream, [nodes = exec->graph.nodes, order = exec->launches++ % 3] {
        run(*nodes, order).all();
    });
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

/* What of it is on a stream goes on. */
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}
}
