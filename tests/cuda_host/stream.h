/*
 * stream.h - streams, events and captures, as runtime.cc and graph.cc see them.
 *
 * A stream is a list of work.  While it is captured nothing joins the list: work becomes a node of
 * the capture, behind the nodes that the stream waits for at that moment (its tail).
 */
#ifndef TESTS_CUDA_HOST_STREAM_H
#define TESTS_CUDA_HOST_STREAM_H

#include "tests/cuda_host/block.h"

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

/* `begin` may be empty: what the work writes becomes NaN as soon as the work may begin. */
struct cuda_host_work {
    std::function<void()> run, begin;
};

using cuda_host_nodes = std::vector<size_t>;

struct cuda_host_node {
    cuda_host_work work;
    cuda_host_nodes after;
};

struct cuda_host_capture {
    cudaStream_t origin = nullptr;
    std::vector<cudaStream_t> joined; /* with the origin */
    std::vector<cuda_host_node> nodes;
    std::vector<std::shared_ptr<void>> held; /* until the graph is destroyed */
    bool broken = false;                     /* by a call that captures do not allow */
};

struct CUstream_st {
    struct item {
        cuda_host_work work;
        unsigned long number;
        bool begun;
    };
    std::recursive_mutex mutex; /* held while work runs: others may ask how far it is */
    std::deque<item> items;
    unsigned long enqueued = 0;
    unsigned long done = 0;

    std::shared_ptr<cuda_host_capture> capture; /* null: not captured */
    cuda_host_nodes tail;
};

struct CUevent_st {
    cudaStream_t stream = nullptr;
    unsigned long number = 0; /* of the stream's work that comes before it */

    std::shared_ptr<cuda_host_capture> capture; /* it was recorded in; else null */
    cuda_host_nodes tail;
};

/* Whether the call that is being made is forbidden, because this thread captures; breaks its
 * capture. */
bool cuda_host_forbidden();

/* The stream joins the capture in which the event was recorded, behind it. */
cudaError_t cuda_host_join(cudaStream_t stream, cudaEvent_t event);

/* Counts of this thread. */
struct cuda_host_calls *cuda_host_count();

[[noreturn]] void cuda_host_misuse(const char *what);

#endif
