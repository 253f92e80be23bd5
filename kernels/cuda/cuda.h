/*
 * cuda.h - the CUDA device, the entry points of its operations, and the one way to check a call.
 *
 * Everything is enqueued on the device's stream, in program order.  One thread at a time calls
 * the operations of a device.
 */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "kernels/cuda/act.h"

#include <cuda_runtime.h>

#include <pthread.h>

enum { CUDA_STAGING_HALVES = 2, CUDA_MOST_FETCHED = 256 };

/* A short download on its way: `bytes` at `at` of the pinned results. */
struct cuda_fetched {
    void *to;
    size_t at, bytes;
};

struct cuda_device {
    struct device base;
    int index;
    int processors; /* streaming multiprocessors */
    bool hopper;    /* compute capability 9.0: kernels for sm_90a run */
    cudaStream_t stream;
    cudaStream_t redirected;        /* where operations go instead; NULL: nowhere else */
    struct cuda_products *products; /* linear.cu */
    void *workspace;                /* cuda_workspace() */
    size_t workspace_bytes;
    bool reserved; /* it is as large as it will ever have to be */

    pthread_mutex_t graphs_mutex; /* guards the list: it is cleared from any thread */
    struct device_graph *graphs;

    /* Pinned memory that uploads go through, a half at a time: `sent` of a half was recorded when
     * its last upload had been enqueued. */
    char *staging;
    size_t staging_at;
    cudaEvent_t sent[CUDA_STAGING_HALVES];
    char *results; /* pinned: short downloads, one behind the other until the next wait */
    size_t results_bytes, results_at;
    int n_fetched;
    struct cuda_fetched fetched[CUDA_MOST_FETCHED];
};

static inline struct cuda_device *cuda_device(struct device *dev)
{
    return reinterpret_cast<struct cuda_device *>(dev);
}

static inline cudaStream_t cuda_stream(struct device *dev)
{
    const struct cuda_device *cuda = cuda_device(dev);

    return cuda->redirected ? cuda->redirected : cuda->stream;
}

/* Activations are bfloat16 or float16: tensor cores. */
static inline bool cuda_is_narrow(const struct device *dev)
{
    return dev->dtype != DTYPE_F32;
}

/* Bytes of one activation. */
static inline size_t cuda_act_bytes(const struct device *dev)
{
    return cuda_is_narrow(dev) ? 2 : sizeof(float);
}

status cuda_check(cudaError_t error, const char *what);

/* What a launch says at once; errors of its execution come with the next wait. */
static inline status cuda_launched(const char *what)
{
    return cuda_check(cudaGetLastError(), what);
}

/* Memory for one operation, aligned to 256 bytes, valid until the next call: what cuda_reserve()
 * took, or if it was not called, grown rarely (which waits) and kept. */
status cuda_workspace(struct device *dev, void **out, size_t bytes);
status cuda_reserve(struct device *dev, const struct op_limits *limits);

/* One wait brings results of so many bytes, and some more. */
status cuda_hold_results(struct device *dev, size_t bytes);

/* Bytes that the operations ask cuda_workspace() for. */
size_t cuda_dot_scores_workspace(int kv_heads, int head_dim);
size_t cuda_decode_attention_workspace(int rows, int q_heads, int head_dim);
/* The probabilities join the notes' masses as the rules (rows * cache_heads) say; that of the last
 * row of a head, which is new, begins with it. */
status cuda_join_mass(struct device *dev, const struct decode_attention *args,
                      const struct evict_rule *rules);
size_t cuda_decode_mass_workspace(int rows, int q_heads);
size_t cuda_draw_workspace(int rows, int n);
size_t cuda_logit_histogram_workspace(int rows, int n);

/* The library of matrix products, its workspace and what it knows of shapes; closed also when it
 * was not opened to the end. */
status cuda_products_open(struct cuda_device *cuda);
void cuda_products_close(struct cuda_device *cuda);

static inline unsigned cuda_blocks(size_t n, size_t each)
{
    return (unsigned)((n + each - 1) / each);
}

status cuda_record(struct device *dev);
status cuda_record_end(struct device *dev, struct device_graph **out);
status cuda_launch(struct device *dev, struct device_graph *graph);
void cuda_graph_free(struct device *dev, struct device_graph *graph);
void cuda_drop_graphs(struct device *dev);

status cuda_embed(struct device *dev, float *out, const int32_t *ids, int n,
                  const struct matrix *table, int first_id);
status cuda_rmsnorm(struct device *dev, void *out, const float *x, const float *weight, int rows,
                    int cols, float eps);
status cuda_linear(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                   const struct matrix *w, int rows);
status cuda_linear_rows(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                        const struct matrix *w, int rows);
status cuda_linear_add(struct device *dev, float *sum, float *scratch, const void *x,
                       const struct matrix *w, int rows);
status cuda_linear_rows_each(struct device *dev, const struct weight_product *products, int n,
                             const void *x, int rows);
status cuda_linear_rows_add(struct device *dev, float *sum, float *scratch, const void *x,
                            const struct matrix *w, int rows);
status cuda_add_rmsnorm(struct device *dev, void *out, float *x, const float *y,
                        const float *weight, int rows, int cols, float eps);
status cuda_rope(struct device *dev, const struct rope *args);
status cuda_attention(struct device *dev, const struct attention *args);
status cuda_window_scores(struct device *dev, const struct window_scores *args);
status cuda_column_sums(struct device *dev, const struct column_sums *args);
status cuda_dot_scores(struct device *dev, const struct dot_scores *args);
status cuda_group_reduce(struct device *dev, float *out, const float *in, int groups, int group,
                         int n, enum group_reduce how);
status cuda_pool(struct device *dev, float *out, const float *in, int rows, int n, int kernel,
                 enum pooling how);
status cuda_top_k(struct device *dev, int32_t *index, const float *score, int n, int k);
status cuda_key_counts(struct device *dev, const struct key_counts *args);
status cuda_gather_rows(struct device *dev, void *out, const void *in, const int32_t *index, int n,
                        size_t row_bytes);
status cuda_add(struct device *dev, float *x, const float *y, size_t n);
status cuda_silu_mul(struct device *dev, void *out, const void *gate, const void *up, size_t n);
status cuda_kv_gather(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                      const void *k, const void *v, const int32_t *index, int n);
status cuda_kv_note(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                    const struct kv_note *notes, int n);
status cuda_kv_append(struct device *dev, const struct kv_append *args);
status cuda_decode_attention(struct device *dev, const struct decode_attention *args);
status cuda_enter_pages(struct device *dev, const struct page_entry *list, int n);
status cuda_kv_move(struct device *dev, const struct kv_pool *pool, const int32_t *to,
                    const int32_t *from, int n);
status cuda_evict(struct device *dev, const struct evict *args);
status cuda_penalize(struct device *dev, float *out, const float *logits, int rows, int n,
                     int first_id, const struct penalty *penalties);
status cuda_draw(struct device *dev, struct drawn *out, const float *logits, int rows, int n,
                 int first_id, const struct draw *draws);
status cuda_best_drawn(struct device *dev, struct drawn *out, const struct drawn *drawn, int rows,
                       int ranks);
status cuda_logits_of(struct device *dev, float *out, const float *logits, int rows, int n,
                      int first_id, const struct drawn *chosen);
status cuda_logit_histogram(struct device *dev, const struct logit_histogram *args);
status cuda_narrow(struct device *dev, const struct narrow *args);
status cuda_filter_draws(struct device *dev, const struct filtered_draws *args);

#endif
