/* graph.cu - graphs: operations that are recorded once and launched as a whole. */
#include "kernels/cuda/cuda.h"

#include <cstdlib>

/* Of the device's list; `exec` is NULL when it was dropped. */
struct device_graph {
    cudaGraphExec_t exec;
    struct device_graph *next;
};

static void drop(struct device_graph *graph)
{
    if (graph->exec) {
        cudaGraphExecDestroy(graph->exec); /* one that runs is freed when it is through */
    }
    graph->exec = nullptr;
}

status cuda_record(struct device *dev)
{
    return cuda_check(cudaStreamBeginCapture(cuda_stream(dev), cudaStreamCaptureModeThreadLocal),
                      "recording");
}

/* What was recorded, ready to be launched. */
static status instantiate(struct cuda_device *cuda, cudaGraphExec_t *exec)
{
    cudaGraph_t graph = nullptr;
    status st = cuda_check(cudaStreamEndCapture(cuda->stream, &graph), "recording");

    if (!st) {
        st = cuda_check(cudaGraphInstantiate(exec, graph, 0), "making a graph");
        cudaGraphDestroy(graph);
    }
    if (st == STATUS_EXHAUSTED) {
        (void)cudaGetLastError(); /* it is told here, not by the next call */
    }
    return st;
}

status cuda_record_end(struct device *dev, struct device_graph **out)
{
    struct cuda_device *cuda = cuda_device(dev);
    cudaGraphExec_t exec = nullptr;
    status st = instantiate(cuda, &exec);

    if (st || !out) {
        if (exec) {
            cudaGraphExecDestroy(exec);
        }
        return out ? st : STATUS_OK;
    }
    *out = static_cast<struct device_graph *>(calloc(1, sizeof(**out)));
    if (!*out) {
        cudaGraphExecDestroy(exec);
        return status_fail(STATUS_EXHAUSTED, "cuda: no memory for a graph");
    }
    pthread_mutex_lock(&cuda->graphs_mutex);
    (*out)->exec = exec;
    (*out)->next = cuda->graphs;
    cuda->graphs = *out;
    if (__atomic_load_n(&dev->interrupted, __ATOMIC_ACQUIRE)) {
        drop(*out); /* who interrupts has looked for graphs, and found the others alone */
    }
    pthread_mutex_unlock(&cuda->graphs_mutex);
    return STATUS_OK;
}

status cuda_launch(struct device *dev, struct device_graph *graph)
{
    struct cuda_device *cuda = cuda_device(dev);
    status st;

    pthread_mutex_lock(&cuda->graphs_mutex);
    if (graph->exec) {
        st = cuda_check(cudaGraphLaunch(graph->exec, cuda->stream), "launching a graph");
    } else {
        st = status_fail(STATUS_UNAVAILABLE, "cuda: interrupted, and its graphs are gone");
    }
    pthread_mutex_unlock(&cuda->graphs_mutex);
    return st;
}

void cuda_graph_free(struct device *dev, struct device_graph *graph)
{
    struct cuda_device *cuda = cuda_device(dev);
    struct device_graph **at = &cuda->graphs;

    pthread_mutex_lock(&cuda->graphs_mutex);
    while (*at != graph) {
        at = &(*at)->next;
    }
    *at = graph->next;
    drop(graph);
    pthread_mutex_unlock(&cuda->graphs_mutex);
    free(graph);
}

void cuda_drop_graphs(struct device *dev)
{
    struct cuda_device *cuda = cuda_device(dev);

    pthread_mutex_lock(&cuda->graphs_mutex);
    for (struct device_graph *graph = cuda->graphs; graph; graph = graph->next) {
        drop(graph);
    }
    pthread_mutex_unlock(&cuda->graphs_mutex);
}
