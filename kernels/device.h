/*
 * device.h - the memory and the stream every operation runs on: one GPU, or the host.
 *
 * A device computes in one dtype, chosen when it is opened: activations ("act" in op.h) have
 * that type; the residual stream, scores and logits are float32 everywhere.
 */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include "common/model_config.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct device;

struct device_config {
    enum dtype
        dtype; /* of activations, KV rows and weights, but for the next; float16: "cuda" only */
    bool int8_weights;
    int index;   /* of the GPU; 0 for the host */
    int threads; /* host threads of the CPU backend; >= 1 */

    /* The best instruction set the CPU backend may use: "generic", "avx2", "avx512",
     * "avx512_bf16", "amx"; NULL: what the machine has.  Tests lower it to run every variant. */
    const char *max_isa;
};

/* `backend`: "cpu" or "cuda". */
status device_open(struct device **out, const char *backend, const struct device_config *config);
void device_close(struct device *dev); /* NULL is fine */
enum dtype device_dtype(const struct device *dev);
/* Weights, but for the embedding, are held in int8. */
bool device_int8_weights(const struct device *dev);
/* Device pointers are the host's: what lies in host memory need not be uploaded. */
bool device_on_host(const struct device *dev);

/* "cpu avx512_bf16, 2 threads": what was chosen at run time, for the log and GetStatus. */
const char *device_description(const struct device *dev);

/* Zeroed pages on demand: memory that is never touched costs nothing on the host.
 * Aligned to 64 bytes.  `what` names the buffer in the error. */
status device_alloc(struct device *dev, void **out, size_t bytes, const char *what);
void device_free(struct device *dev, void *memory); /* NULL is fine */

/* Bytes that device_alloc() can still give out, at most: of the GPU, or of this machine. */
status device_free_memory(struct device *dev, uint64_t *bytes);

status device_upload(struct device *dev, void *to, const void *from, size_t bytes);
status device_download(struct device *dev, void *to, const void *from, size_t bytes); /* waits */
/* The same without waiting: `to` has it after the next device_sync() or device_download(). */
status device_fetch(struct device *dev, void *to, const void *from, size_t bytes);
/* Within the device, in the order of the stream; no overlap. */
status device_copy(struct device *dev, void *to, const void *from, size_t bytes);
status device_sync(struct device *dev);

/* The stream of a GPU's operations, a cudaStream_t; NULL for the host. */
void *device_stream(struct device *dev);

/* device_copy() and op_group_reduce() go to `stream`, until NULL gives them back to the device's.
 */
void device_redirect(struct device *dev, void *stream);

/* While `on`, device_sync() and device_download() fail with STATUS_UNAVAILABLE, one that waits now
 * too when its wait is over: results are not to be trusted.  `on` also drops all graphs, since they
 * may hold collectives: when it returns they are gone, and launching them fails likewise.  From any
 * thread. */
void device_interrupt(struct device *dev, bool on);

/*
 * Graphs, of a GPU alone (others refuse with STATUS_UNIMPLEMENTED).  Between device_record() and
 * device_record_end() operations are recorded instead of run, with the addresses that they are
 * given; uploads, downloads, waits and device_alloc() are not allowed.  A launch takes its place on
 * the stream like an operation; what changes from launch to launch lies behind the addresses.
 */
struct device_graph;
status device_record(struct device *dev);
/* `out` NULL: forgets what was recorded. */
status device_record_end(struct device *dev, struct device_graph **out);
bool device_recording(const struct device *dev);
status device_launch(struct device *dev, struct device_graph *graph);
void device_graph_free(struct device *dev, struct device_graph *graph); /* NULL is fine */

#ifdef __cplusplus
}
#endif

#endif
