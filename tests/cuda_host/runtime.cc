/*
 * runtime.cc - memory, streams and events of the emulated GPU.
 *
 * A stream is a list of work.  Eager streams run it when it is enqueued.  Lazy ones run nothing
 * before it is waited for, and then only what that wait needs: work of another stream that should
 * have been waited for through an event has not happened, and the result shows it.  Until a copy to
 * the host has run, its destination is NaN.
 */
#include "tests/cuda_host/block.h"
#include "tests/cuda_host/memory.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>

struct CUevent_st {
    cudaStream_t stream = nullptr;
    unsigned long number = 0; /* of the stream's work that comes before it */
};

struct CUstream_st {
    struct item {
        std::function<void()> work;
        unsigned long number;
    };
    std::recursive_mutex mutex; /* held while work runs: others may ask how far it is */
    std::deque<item> items;
    unsigned long enqueued = 0;
    unsigned long done = 0;
};

namespace
{

struct settings {
    bool lazy = false;
    bool no_driver = false;
    int devices = 1;

    settings()
    {
        const char *words = getenv("WINNOW_CUDA_HOST");

        if (!words) {
            return;
        }
        lazy = strstr(words, "lazy");
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
    }
};

settings &chosen()
{
    static settings s;
    return s;
}

thread_local struct cuda_host_calls calls;

[[noreturn]] void misuse(const char *what)
{
    fprintf(stderr, "cuda_host: %s\n", what);
    abort();
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
        item.work();
        stream->done = item.number;
    }
    cuda_host_memory_leave();
}

} // namespace

void cuda_host_enqueue(cudaStream_t stream, std::function<void()> work)
{
    if (!stream) {
        misuse("work for the default stream, which waits for all others");
    }
    std::lock_guard<std::recursive_mutex> lock(stream->mutex);
    stream->items.push_back({std::move(work), ++stream->enqueued});
    if (!chosen().lazy) {
        run_until(stream, stream->enqueued);
    }
}

extern "C" {

void cuda_host_set_lazy(int lazy)
{
    chosen().lazy = lazy;
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
    prop->sharedMemPerBlockOptin = 163 << 10; /* the least of sm_80, sm_90 and sm_100 */
    prop->major = 8;
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
    *out = cuda_host_memory_new(bytes);
    return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *address)
{
    calls.allocations++;
    if (address && !cuda_host_memory_delete(address)) {
        misuse("cudaFree of what cudaMalloc did not give");
    }
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **out, size_t bytes)
{
    calls.allocations++;
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
        misuse("a copy whose sides are not what its kind says");
    }
    calls.uploads += kind == cudaMemcpyHostToDevice;
    calls.downloads += kind == cudaMemcpyDeviceToHost;
    if (kind == cudaMemcpyDeviceToHost) {
        memset(to, 0xff, bytes);
    }
    cuda_host_enqueue(stream, [=] { memcpy(to, from, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    cuda_host_enqueue(stream, [=] { memset(to, value, bytes); });
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    if (flags != cudaStreamNonBlocking) {
        misuse("a stream that waits for the default one");
    }
    *out = new CUstream_st;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    calls.waits++;
    run_until(stream, stream->enqueued);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
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
    event->stream = stream;
    event->number = stream->enqueued;
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    if (!event->stream) {
        return cudaSuccess;
    }
    std::unique_lock<std::recursive_mutex> lock(event->stream->mutex, std::try_to_lock);
    return lock && event->stream->done >= event->number ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    calls.waits++;
    if (event->stream) {
        run_until(event->stream, event->number);
    }
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int value)
{
    return value <= (163 << 10) ? cudaSuccess : cudaErrorInvalidValue;
}
}
