/*
 * runtime.cc - memory, streams and events of the emulated GPU.
 *
 * A stream is a list of work.  Eager streams run it when it is enqueued.  Lazy ones run nothing
 * before it is waited for, and then only what that wait needs: work of another stream that should
 * have been waited for through an event has not happened, and the result shows it.
 */
#include "tests/cuda_host/block.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
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
    std::deque<item> items;
    unsigned long enqueued = 0;
    unsigned long done = 0;
};

namespace
{

struct settings {
    bool lazy = false;
    int devices = 1;

    settings()
    {
        const char *words = getenv("WINNOW_CUDA_HOST");

        if (!words) {
            return;
        }
        lazy = strstr(words, "lazy");
        if (strstr(words, "reversed")) {
            cuda_host_set_schedule(CUDA_HOST_REVERSED);
        } else if (strstr(words, "rotating")) {
            cuda_host_set_schedule(CUDA_HOST_ROTATING);
        }
        if (const char *n = strstr(words, "devices=")) {
            devices = atoi(n + strlen("devices="));
        }
    }
};

settings &chosen()
{
    static settings s;
    return s;
}

/* What cudaMalloc gave out: copies say which side is which, and that is checked. */
std::mutex memory_mutex;
std::map<uintptr_t, size_t> memory;

constexpr size_t memory_total = size_t{8} << 30;
size_t memory_used = 0;

bool on_device(const void *address, size_t bytes)
{
    auto at = reinterpret_cast<uintptr_t>(address);
    std::lock_guard<std::mutex> lock(memory_mutex);
    auto it = memory.upper_bound(at);

    if (it == memory.begin()) {
        return false;
    }
    --it;
    return at + bytes <= it->first + it->second;
}

[[noreturn]] void misuse(const char *what)
{
    fprintf(stderr, "cuda_host: %s\n", what);
    abort();
}

void run_until(cudaStream_t stream, unsigned long number)
{
    while (stream->done < number) {
        auto item = std::move(stream->items.front());
        stream->items.pop_front();
        item.work();
        stream->done = item.number;
    }
}

cudaError_t new_memory(void **out, size_t bytes)
{
    /* Exactly as much as was asked for, so that AddressSanitizer sees the first byte past it. */
    if (posix_memalign(out, 256, bytes ? bytes : 1)) {
        return cudaErrorMemoryAllocation;
    }
    return cudaSuccess;
}

} // namespace

void cuda_host_enqueue(cudaStream_t stream, std::function<void()> work)
{
    if (!stream) {
        misuse("work for the default stream, which waits for all others");
    }
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

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = chosen().devices;
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
    prop->totalGlobalMem = memory_total;
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
    std::lock_guard<std::mutex> lock(memory_mutex);

    *free_bytes = memory_total - memory_used;
    *total = memory_total;
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
    {
        std::lock_guard<std::mutex> lock(memory_mutex);
        if (bytes > memory_total - memory_used) {
            return cudaErrorMemoryAllocation;
        }
    }
    if (new_memory(out, bytes)) {
        return cudaErrorMemoryAllocation;
    }
    std::lock_guard<std::mutex> lock(memory_mutex);
    memory[reinterpret_cast<uintptr_t>(*out)] = bytes;
    memory_used += bytes;
    return cudaSuccess;
}

cudaError_t cudaFree(void *address)
{
    if (address) {
        std::lock_guard<std::mutex> lock(memory_mutex);
        auto it = memory.find(reinterpret_cast<uintptr_t>(address));
        if (it == memory.end()) {
            misuse("cudaFree of what cudaMalloc did not give");
        }
        memory_used -= it->second;
        memory.erase(it);
    }
    free(address);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **out, size_t bytes)
{
    return new_memory(out, bytes);
}

cudaError_t cudaFreeHost(void *address)
{
    free(address);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    if (on_device(to, bytes) != (kind != cudaMemcpyDeviceToHost) ||
        on_device(from, bytes) != (kind != cudaMemcpyHostToDevice)) {
        misuse("a copy whose sides are not what its kind says");
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

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
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
