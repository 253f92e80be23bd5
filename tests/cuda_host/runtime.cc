/*
 * runtime.cc - memory, streams and events of the emulated GPU.
 *
 * Eager streams run work when it is enqueued.  Lazy ones run nothing before it is waited for, and
 * then only what that wait needs: work of another stream that should have been waited for through
 * an event has not happened, and the result shows it.  What copies, library products and
 * collectives write is NaN from the moment at which they may begin, so work of another stream that
 * still reads it without an event shows too.
 */
#include "tests/cuda_host/memory.h"
#include "tests/cuda_host/stream.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace
{

struct settings {
    cuda_host_streams streams = CUDA_HOST_EAGER;
    bool no_driver = false;
    bool hopper = false;
    int devices = 1;

    settings()
    {
        const char *words = getenv("WINNOW_CUDA_HOST");

        if (!words) {
            return;
        }
        streams = strstr(words, "lazy")       ? CUDA_HOST_LAZY
                  : strstr(words, "shuffled") ? CUDA_HOST_SHUFFLED
                                              : CUDA_HOST_EAGER;
        cuda_host_memory_keep_apart(strstr(words, "apart"));
        if (strstr(words, "reversed")) {
            cuda_host_set_schedule(CUDA_HOST_REVERSED);
        } else if (strstr(words, "rotating")) {
            cuda_host_set_schedule(CUDA_HOST_ROTATING);
        }
        if (const char *n = strstr(words, "devices=")) {
            devices = atoi(n + strlen("devices="));
        }
        if (const char *n = strstr(words, "memory=")) {
            cuda_host_memory_limit(static_cast<size_t>(atoi(n + strlen("memory="))) << 20);
        }
        no_driver = strstr(words, "no-driver");
        hopper = strstr(words, "hopper");
    }
};

settings &chosen()
{
    static settings s;
    return s;
}

/* Bytes of a block: of sm_90, or of sm_80. */
int shared_most()
{
    return (chosen().hopper ? 227 : 163) << 10;
}

thread_local struct cuda_host_calls calls;

/* Streams of this thread, for running some of them ahead. */
thread_local std::vector<cudaStream_t> used;

/* The first work that is not done may have begun. */
void begin_next(CUstream_st &stream)
{
    if (!stream.items.empty() && !stream.items.front().begun) {
        stream.items.front().begun = true;
        if (stream.items.front().work.begin) {
            stream.items.front().work.begin();
        }
    }
}

void run_until(cudaStream_t stream, unsigned long number)
{
    std::lock_guard<std::recursive_mutex> lock(stream->mutex);

    if (stream->done >= number) {
        return;
    }
    cuda_host_memory_enter();
    while (stream->done < number) {
        auto item = std::move(stream->items.front());
        stream->items.pop_front();
        item.work.run();
        stream->done = item.number;
        begin_next(*stream);
    }
    cuda_host_memory_leave();
}

/* One of four times, one of the thread's streams gets some way ahead. */
void run_some(cudaStream_t stream)
{
    thread_local unsigned random = 1;

    if (std::find(used.begin(), used.end(), stream) == used.end()) {
        used.push_back(stream);
    }
    random = random * 1664525 + 1013904223;
    unsigned draw = random >> 16;
    if (draw % 4 == 0) {
        cudaStream_t some = used[draw / 4 % used.size()];
        run_until(some, std::min(some->enqueued, some->done + 1 + draw / 64 % 8));
    }
}

void spoil(void *memory, size_t bytes)
{
    memset(memory, 0xff, bytes);
}

} // namespace

void cuda_host_misuse(const char *what)
{
    fprintf(stderr, "cuda_host: %s\n", what);
    abort();
}

struct cuda_host_calls *cuda_host_count()
{
    return &calls;
}

void cuda_host_append(cudaStream_t stream, std::function<void()> work)
{
    std::lock_guard<std::recursive_mutex> lock(stream->mutex);

    stream->items.push_back({{std::move(work), nullptr}, ++stream->enqueued, false});
}

void cuda_host_enqueue(cudaStream_t stream, std::function<void()> work, std::function<void()> begin)
{
    if (!stream) {
        cuda_host_misuse("work for the default stream, which waits for all others");
    }
    if (stream->capture) {
        stream->capture->nodes.push_back({{std::move(work), std::move(begin)}, stream->tail});
        stream->tail = {stream->capture->nodes.size() - 1};
        return;
    }
    std::unique_lock<std::recursive_mutex> lock(stream->mutex);
    stream->items.push_back({{std::move(work), std::move(begin)}, ++stream->enqueued, false});
    if (chosen().streams == CUDA_HOST_EAGER) {
        run_until(stream, stream->enqueued);
        return;
    }
    if (stream->items.size() == 1) {
        cuda_host_memory_enter();
        begin_next(*stream);
        cuda_host_memory_leave();
    }
    lock.unlock();
    if (chosen().streams == CUDA_HOST_SHUFFLED) {
        run_some(stream);
    }
}

extern "C" {

void cuda_host_set_streams(enum cuda_host_streams how)
{
    chosen().streams = how;
}

struct cuda_host_calls cuda_host_calls(void)
{
    return calls;
}

void cuda_host_set_apart(void)
{
    cuda_host_memory_keep_apart(true);
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = chosen().no_driver ? 0 : chosen().devices;
    if (chosen().no_driver) {
        return cudaErrorInsufficientDriver;
    }
    return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaSetDevice(int device)
{
    return device >= 0 && device < chosen().devices ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int)
{
    *prop = cudaDeviceProp{};
    snprintf(prop->name, sizeof(prop->name), "emulated GPU");
    prop->totalGlobalMem = cuda_host_memory_total();
    prop->sharedMemPerBlockOptin = shared_most();
    prop->major = chosen().hopper ? 9 : 8;
    prop->multiProcessorCount = 4;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int, int)
{
    *can = 1;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *free_bytes = cuda_host_memory_free();
    *total = cuda_host_memory_total();
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    default:
        return "an error";
    }
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    (void)chosen(); /* memory is kept apart from the first on */
    calls.allocations++;
    if (cuda_host_forbidden()) {
        return cudaErrorStreamCaptureUnsupported;
    }
    *out = cuda_host_memory_new(bytes);
    return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *address)
{
    calls.allocations++;
    if (cuda_host_forbidden()) {
        return cudaErrorStreamCaptureUnsupported;
    }
    if (address && !cuda_host_memory_delete(address)) {
        cuda_host_misuse("cudaFree of what cudaMalloc did not give");
    }
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **out, size_t bytes)
{
    calls.allocations++;
    if (cuda_host_forbidden()) {
        return cudaErrorStreamCaptureUnsupported;
    }
    return posix_memalign(out, 4096, bytes ? bytes : 1) ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFreeHost(void *address)
{
    free(address);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    if (cuda_host_memory_holds(to, bytes) != (kind != cudaMemcpyDeviceToHost) ||
        cuda_host_memory_holds(from, bytes) != (kind != cudaMemcpyHostToDevice)) {
        cuda_host_misuse("a copy whose sides are not what its kind says");
    }
    calls.uploads += kind == cudaMemcpyHostToDevice;
    calls.downloads += kind == cudaMemcpyDeviceToHost;
    if (kind == cudaMemcpyDeviceToHost && !stream->capture) {
        spoil(to, bytes);
    }
    cuda_host_enqueue(
        stream, [=] { memcpy(to, from, bytes); }, [=] { spoil(to, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    cuda_host_enqueue(
        stream, [=] { memset(to, value, bytes); }, [=] { spoil(to, bytes); });
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    if (flags != cudaStreamNonBlocking) {
        cuda_host_misuse("a stream that waits for the default one");
    }
    *out = new CUstream_st;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    std::erase(used, stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    calls.waits++;
    if (cuda_host_forbidden()) {
        return cudaErrorStreamCaptureUnsupported;
    }
    run_until(stream, stream->enqueued);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    if (event->capture || stream->capture) {
        return cuda_host_join(stream, event);
    }
    if (event->stream) {
        cuda_host_enqueue(stream,
                          [on = event->stream, number = event->number] { run_until(on, number); });
    }
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned)
{
    *out = new CUevent_st;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    event->capture = stream->capture;
    event->tail = stream->tail;
    event->stream = stream->capture ? nullptr : stream;
    event->number = stream->enqueued;
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    if (event->capture) {
        return cudaErrorCapturedEvent;
    }
    if (cuda_host_forbidden()) {
        return cudaErrorStreamCaptureUnsupported;
    }
    if (!event->stream) {
        return cudaSuccess;
    }
    std::unique_lock<std::recursive_mutex> lock(event->stream->mutex, std::try_to_lock);
    return lock && event->stream->done >= event->number ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    calls.waits++;
    if (event->capture) {
        return cudaErrorCapturedEvent;
    }
    if (cuda_host_forbidden()) {
        return cudaErrorStreamCaptureUnsupported;
    }
    if (event->stream) {
        run_until(event->stream, event->number);
    }
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int value)
{
    return value <= shared_most() ? cudaSuccess : cudaErrorInvalidValue;
}
}
