/* backend.cu - the CUDA device: its stream, its memory, and the table of its operations. */
#include "kernels/cuda/cuda.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

static constexpr size_t STAGING_HALF = (size_t)8 << 20;
static constexpr size_t FIRST_RESULTS = (size_t)4 << 20;
static constexpr size_t FIRST_WORKSPACE = (size_t)16 << 20;

/* The index names a GPU of this machine, or the sentence says what is missing. */
static status find_gpu(int index)
{
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);

    if (error == cudaErrorInsufficientDriver) {
        return status_fail(STATUS_NOT_FOUND,
                           "cuda: GPU %d was asked for, but this machine has no NVIDIA driver, or "
                           "one that is too old for this build",
                           index);
    }
    if (error != cudaSuccess || n == 0) {
        return status_fail(STATUS_NOT_FOUND, "cuda: GPU %d was asked for: %s", index,
                           error != cudaSuccess ? cudaGetErrorString(error) : "there is none");
    }
    if (index < 0 || index >= n) {
        return status_fail(STATUS_NOT_FOUND, "cuda: GPU %d was asked for, of 0 to %d", index,
                           n - 1);
    }
    return cuda_check(cudaSetDevice(index), "choosing the GPU");
}

static status describe(struct cuda_device *cuda)
{
    static const int lowest = 8; /* bfloat16 matrix products, asynchronous copies */
    cudaDeviceProp prop;
    status st = cuda_check(cudaGetDeviceProperties(&prop, cuda->index), "asking the GPU");

    if (st) {
        return st;
    }
    if (prop.major < lowest) {
        return status_fail(STATUS_UNIMPLEMENTED,
                           "cuda: GPU %d (%s) is of compute capability %d.%d, the least is %d.0",
                           cuda->index, prop.name, prop.major, prop.minor, lowest);
    }
    cuda->processors = prop.multiProcessorCount;
    cuda->hopper = prop.major == 9 && prop.minor == 0;
    snprintf(cuda->base.description, sizeof(cuda->base.description), "cuda:%d %.64s sm_%d%d",
             cuda->index, prop.name, prop.major, prop.minor);
    return STATUS_OK;
}

static status open_memory(struct cuda_device *cuda)
{
    void *pinned;
    status st = cuda_check(cudaMalloc(&cuda->workspace, FIRST_WORKSPACE), "workspace");

    if (st) {
        return st;
    }
    cuda->workspace_bytes = FIRST_WORKSPACE;
    st = cuda_check(cudaMallocHost(&pinned, CUDA_STAGING_HALVES * STAGING_HALF), "pinned memory");
    if (st) {
        return st;
    }
    cuda->staging = static_cast<char *>(pinned);
    st = cuda_hold_results(&cuda->base, 0);
    if (st) {
        return st;
    }
    for (cudaEvent_t &event : cuda->sent) {
        st = cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
        if (st) {
            return st;
        }
    }
    return STATUS_OK;
}

static void cuda_close(struct device *dev)
{
    struct cuda_device *cuda = cuda_device(dev);

    cuda_products_close(cuda);
    for (cudaEvent_t event : cuda->sent) {
        if (event) {
            cudaEventDestroy(event);
        }
    }
    cudaFreeHost(cuda->staging);
    cudaFreeHost(cuda->results);
    cudaFree(cuda->workspace);
    pthread_mutex_destroy(&cuda->graphs_mutex);
    if (cuda->stream) {
        cudaStreamDestroy(cuda->stream);
    }
    free(cuda);
}

static status cuda_open(struct device **out, const struct device_config *config)
{
    if (config->int8_weights) {
        return status_fail(STATUS_UNIMPLEMENTED, "cuda: int8 weights are of the cpu device only");
    }
    status st = find_gpu(config->index);
    if (st) {
        return st;
    }
    struct cuda_device *cuda = static_cast<struct cuda_device *>(calloc(1, sizeof(*cuda)));
    if (!cuda) {
        return status_fail(STATUS_EXHAUSTED, "cuda: no memory for the device");
    }
    pthread_mutex_init(&cuda->graphs_mutex, nullptr);
    cuda->base.backend = &backend_cuda;
    cuda->base.dtype = config->dtype;
    cuda->index = config->index;
    st = describe(cuda);
    if (!st) {
        st =
            cuda_check(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking), "a stream");
    }
    if (!st) {
        st = open_memory(cuda);
    }
    if (!st) {
        st = cuda_products_open(cuda);
    }
    if (st) {
        cuda_close(&cuda->base);
        return st;
    }
    *out = &cuda->base;
    return STATUS_OK;
}

/* Unreachable through an open device, which has no int8. */
static status cuda_quantize(struct device *dev, int8_t *out, float *scale, const struct matrix *w)
{
    (void)dev;
    (void)out;
    (void)scale;
    (void)w;
    return status_fail(STATUS_UNIMPLEMENTED, "cuda: no int8 weights");
}

static size_t cuda_packed_bytes(const struct device *dev, int rows, int cols)
{
    (void)dev;
    (void)rows;
    (void)cols;
    return 0;
}

/* Not called where packed_bytes() says 0. */
static status cuda_pack(struct device *dev, void *out, const struct matrix *w)
{
    (void)dev;
    (void)out;
    (void)w;
    return status_fail(STATUS_UNIMPLEMENTED, "cuda: weights lie by rows");
}

/* What was fetched goes from pinned memory to where it was asked for. */
static status cuda_sync(struct device *dev)
{
    struct cuda_device *cuda = cuda_device(dev);
    status st = cuda_check(cudaStreamSynchronize(cuda->stream), "waiting for the GPU");

    for (int i = 0; !st && i < cuda->n_fetched; i++) {
        const struct cuda_fetched *f = &cuda->fetched[i];
        memcpy(f->to, cuda->results + f->at, f->bytes);
    }
    cuda->n_fetched = 0;
    cuda->results_at = 0;
    return st;
}

status cuda_hold_results(struct device *dev, size_t bytes)
{
    struct cuda_device *cuda = cuda_device(dev);
    size_t total = FIRST_RESULTS + bytes;
    void *pinned;

    if (total <= cuda->results_bytes) {
        return STATUS_OK;
    }
    status st = cuda_sync(dev); /* what is on its way to the old one */
    if (!st) {
        st = cuda_check(cudaMallocHost(&pinned, total), "pinned memory");
    }
    if (st) {
        return st;
    }
    cudaFreeHost(cuda->results);
    cuda->results = static_cast<char *>(pinned);
    cuda->results_bytes = total;
    return STATUS_OK;
}

static status cuda_alloc(struct device *dev, void **out, size_t bytes, const char *what)
{
    size_t free_bytes = 0, total = 0;

    if (cudaMalloc(out, bytes ? bytes : 1) == cudaSuccess) {
        return cuda_check(cudaMemsetAsync(*out, 0, bytes, cuda_stream(dev)), what);
    }
    (void)cudaGetLastError(); /* it is told here, not by the next call */
    cudaMemGetInfo(&free_bytes, &total);
    return status_fail(STATUS_EXHAUSTED,
                       "cuda: no memory for %s (%zu bytes; %zu of the GPU's %zu are free)", what,
                       bytes, free_bytes, total);
}

static void cuda_free(struct device *dev, void *memory)
{
    /* What is enqueued may still use it; should the wait fail, the next call says so. */
    if (cuda_sync(dev) == STATUS_OK) {
        cudaFree(memory);
    }
}

static status cuda_free_memory(struct device *, uint64_t *bytes)
{
    size_t free_bytes = 0, total = 0;
    status st = cuda_check(cudaMemGetInfo(&free_bytes, &total), "asking for free memory");

    *bytes = free_bytes;
    return st;
}

/* A graph would read and write the same host memory at every launch. */
static status check_not_recording(const struct device *dev)
{
    return dev->recording
               ? status_fail(STATUS_INTERNAL, "cuda: a copy of host memory would be recorded")
               : STATUS_OK;
}

/* Through pinned memory, so that `from` is free again at once and nothing waits for the GPU unless
 * two halves are under way. */
static status cuda_upload(struct device *dev, void *to, const void *from, size_t bytes)
{
    struct cuda_device *cuda = cuda_device(dev);
    size_t all = CUDA_STAGING_HALVES * STAGING_HALF;
    status st = check_not_recording(dev);

    for (size_t done = 0; !st && done < bytes;) {
        size_t half = cuda->staging_at / STAGING_HALF;
        size_t room = (half + 1) * STAGING_HALF - cuda->staging_at;
        size_t n = bytes - done < room ? bytes - done : room;
        char *staged = cuda->staging + cuda->staging_at;

        if (cuda->staging_at % STAGING_HALF == 0) {
            st = cuda_check(cudaEventSynchronize(cuda->sent[half]), "waiting for an upload");
            if (st) {
                break;
            }
        }
        memcpy(staged, static_cast<const char *>(from) + done, n);
        st = cuda_check(cudaMemcpyAsync(static_cast<char *>(to) + done, staged, n,
                                        cudaMemcpyHostToDevice, cuda->stream),
                        "upload");
        done += n;
        cuda->staging_at = (cuda->staging_at + n) % all;
        if (!st && cuda->staging_at % STAGING_HALF == 0) {
            st = cuda_check(cudaEventRecord(cuda->sent[half], cuda->stream), "upload");
        }
    }
    return st;
}

/* What is larger than the pinned memory arrives at once, through the driver's. */
static status cuda_fetch(struct device *dev, void *to, const void *from, size_t bytes)
{
    struct cuda_device *cuda = cuda_device(dev);
    status st = check_not_recording(dev);

    if (st) {
        return st;
    }
    if (bytes > cuda->results_bytes) {
        return cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, cuda->stream),
                          "download");
    }
    if (cuda->n_fetched == CUDA_MOST_FETCHED || bytes > cuda->results_bytes - cuda->results_at) {
        st = cuda_sync(dev);
    }
    if (st) {
        return st;
    }
    cuda->fetched[cuda->n_fetched++] = {to, cuda->results_at, bytes};
    st = cuda_check(cudaMemcpyAsync(cuda->results + cuda->results_at, from, bytes,
                                    cudaMemcpyDeviceToHost, cuda->stream),
                    "download");
    cuda->results_at += bytes;
    return st;
}

static status cuda_download(struct device *dev, void *to, const void *from, size_t bytes)
{
    status st = bytes > 0 ? cuda_fetch(dev, to, from, bytes) : STATUS_OK;

    return st || bytes == 0 ? st : cuda_sync(dev);
}

static status cuda_copy(struct device *dev, void *to, const void *from, size_t bytes)
{
    return cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda_stream(dev)),
                      "copy");
}

static void *cuda_stream_of(struct device *dev)
{
    return cuda_device(dev)->stream;
}

static void cuda_redirect(struct device *dev, void *stream)
{
    cuda_device(dev)->redirected = static_cast<cudaStream_t>(stream);
}

const struct backend backend_cuda = {
    .name = "cuda",
    .on_host = false,
    .open = cuda_open,
    .close = cuda_close,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .free_memory = cuda_free_memory,
    .reserve = cuda_reserve,
    .upload = cuda_upload,
    .download = cuda_download,
    .fetch = cuda_fetch,
    .copy = cuda_copy,
    .sync = cuda_sync,
    .stream = cuda_stream_of,
    .redirect = cuda_redirect,
    .record = cuda_record,
    .record_end = cuda_record_end,
    .launch = cuda_launch,
    .graph_free = cuda_graph_free,
    .drop_graphs = cuda_drop_graphs,
    .embed = cuda_embed,
    .rmsnorm = cuda_rmsnorm,
    .linear = cuda_linear,
    .linear_rows = cuda_linear_rows,
    .linear_each = nullptr,
    .linear_rows_each = cuda_linear_rows_each,
    .quantize = cuda_quantize,
    .packed_bytes = cuda_packed_bytes,
    .pack = cuda_pack,
    .linear_add = cuda_linear_add,
    .linear_rows_add = cuda_linear_rows_add,
    .add_rmsnorm = cuda_add_rmsnorm,
    .rope = cuda_rope,
    .attention = cuda_attention,
    .window_scores = cuda_window_scores,
    .column_sums = cuda_column_sums,
    .dot_scores = cuda_dot_scores,
    .group_reduce = cuda_group_reduce,
    .pool = cuda_pool,
    .top_k = cuda_top_k,
    .key_counts = cuda_key_counts,
    .gather_rows = cuda_gather_rows,
    .add = cuda_add,
    .silu_mul = cuda_silu_mul,
    .kv_gather = cuda_kv_gather,
    .kv_note = cuda_kv_note,
    .kv_append = cuda_kv_append,
    .decode_attention = cuda_decode_attention,
    .kv_move = cuda_kv_move,
    .enter_pages = cuda_enter_pages,
    .evict = cuda_evict,
    .penalize = cuda_penalize,
    .draw = cuda_draw,
    .best_drawn = cuda_best_drawn,
    .logits_of = cuda_logits_of,
    .logit_histogram = cuda_logit_histogram,
    .narrow = cuda_narrow,
    .filter_draws = cuda_filter_draws,
};
