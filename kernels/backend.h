/*
 * backend.h - what cpu/ and cuda/ implement.  Private to kernels/.
 *
 * One slot for every function of device.h and op.h, with the same arguments.  Every slot is
 * required: no optional operations and no NULL checks.  Preconditions are asserted once, in
 * dispatch.c, before the call is forwarded.
 */
#ifndef KERNELS_BACKEND_H
#define KERNELS_BACKEND_H

#include "kernels/op.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DEVICE_DESCRIPTION_BYTES = 128 };

/* The first member of every backend's device. */
struct device {
    const struct backend *backend;
    enum dtype dtype;
    bool int8_weights;
    int interrupted; /* atomic */
    bool recording;
    char description[DEVICE_DESCRIPTION_BYTES];
};

struct backend {
    const char *name;
    bool on_host; /* operations take pointers to host memory */
    status (*open)(struct device **out, const struct device_config *config);
    void (*close)(struct device *dev);
    status (*alloc)(struct device *dev, void **out, size_t bytes, const char *what);
    void (*free)(struct device *dev, void *memory);
    status (*free_memory)(struct device *dev, uint64_t *bytes);
    status (*reserve)(struct device *dev, const struct op_limits *limits);
    status (*upload)(struct device *dev, void *to, const void *from, size_t bytes);
    status (*download)(struct device *dev, void *to, const void *from, size_t bytes);
    status (*fetch)(struct device *dev, void *to, const void *from, size_t bytes);
    status (*copy)(struct device *dev, void *to, const void *from, size_t bytes);
    status (*sync)(struct device *dev);
    void *(*stream)(struct device *dev);
    void (*redirect)(struct device *dev, void *stream);
    status (*record)(struct device *dev);
    status (*record_end)(struct device *dev, struct device_graph **out);
    status (*launch)(struct device *dev, struct device_graph *graph);
    void (*graph_free)(struct device *dev, struct device_graph *graph);
    void (*drop_graphs)(struct device *dev);

    status (*embed)(struct device *dev, float *out, const int32_t *ids, int n,
                    const struct matrix *table, int first_id);
    status (*rmsnorm)(struct device *dev, void *out, const float *x, const float *weight, int rows,
                      int cols, float eps);
    status (*linear)(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                     const struct matrix *w, int rows);
    status (*linear_rows)(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                          const struct matrix *w, int rows);
    /* NULL: one after the other */
    status (*linear_each)(struct device *dev, const struct weight_product *products, int n,
                          const void *x, int rows);
    status (*linear_rows_each)(struct device *dev, const struct weight_product *products, int n,
                               const void *x, int rows);
    status (*quantize)(struct device *dev, int8_t *out, float *scale, const struct matrix *w);
    size_t (*packed_bytes)(const struct device *dev, int rows, int cols);
    status (*pack)(struct device *dev, void *out, const struct matrix *w);
    status (*linear_add)(struct device *dev, float *sum, float *scratch, const void *x,
                         const struct matrix *w, int rows);
    status (*linear_rows_add)(struct device *dev, float *sum, float *scratch, const void *x,
                              const struct matrix *w, int rows);
    status (*add_rmsnorm)(struct device *dev, void *out, float *x, const float *y,
                          const float *weight, int rows, int cols, float eps);
    status (*rope)(struct device *dev, const struct rope *args);
    status (*attention)(struct device *dev, const struct attention *args);
    status (*window_scores)(struct device *dev, const struct window_scores *args);
    status (*column_sums)(struct device *dev, const struct column_sums *args);
    status (*dot_scores)(struct device *dev, const struct dot_scores *args);
    status (*group_reduce)(struct device *dev, float *out, const float *in, int groups, int group,
                           int n, enum group_reduce how);
    status (*pool)(struct device *dev, float *out, const float *in, int rows, int n, int kernel,
                   enum pooling how);
    status (*top_k)(struct device *dev, int32_t *index, const float *score, int n, int k);
    status (*key_counts)(struct device *dev, const struct key_counts *args);
    status (*gather_rows)(struct device *dev, void *out, const void *in, const int32_t *index,
                          int n, size_t row_bytes);
    status (*add)(struct device *dev, float *x, const float *y, size_t n);
    status (*silu_mul)(struct device *dev, void *out, const void *gate, const void *up, size_t n);
    status (*kv_gather)(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                        const void *k, const void *v, const int32_t *index, int n);
    status (*kv_note)(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                      const struct kv_note *notes, int n);
    status (*kv_append)(struct device *dev, const struct kv_append *args);
    status (*decode_attention)(struct device *dev, const struct decode_attention *args);
    status (*kv_move)(struct device *dev, const struct kv_pool *pool, const int32_t *to,
                      const int32_t *from, int n);
    status (*enter_pages)(struct device *dev, const struct page_entry *list, int n);
    status (*evict)(struct device *dev, const struct evict *args);
    status (*penalize)(struct device *dev, float *out, const float *logits, int rows, int n,
                       int first_id, const struct penalty *penalties);
    status (*draw)(struct device *dev, struct drawn *out, const float *logits, int rows, int n,
                   int first_id, const struct draw *draws);
    status (*best_drawn)(struct device *dev, struct drawn *out, const struct drawn *drawn, int rows,
                         int ranks);
    status (*logits_of)(struct device *dev, float *out, const float *logits, int rows, int n,
                        int first_id, const struct drawn *chosen);
    status (*logit_histogram)(struct device *dev, const struct logit_histogram *args);
    status (*narrow)(struct device *dev, const struct narrow *args);
    status (*filter_draws)(struct device *dev, const struct filtered_draws *args);
};

extern const struct backend backend_cpu;
extern const struct backend backend_cuda;

#ifdef __cplusplus
}
#endif

#endif
