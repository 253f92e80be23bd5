/*
 * cpu.h - the CPU device, the entry points of its operations.
 *
 * Operations run to their end before they return, on config.threads OpenMP threads.  One thread
 * at a time calls the operations of a device.
 */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/backend.h"
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/isa.h"

#include <string.h>

struct cpu_device {
    struct device base;
    int threads;
    const struct cpu_isa *isa;
    void *workspace; /* cpu_workspace() */
    size_t workspace_bytes;
    bool reserved;       /* it is as large as it will ever have to be */
    struct gemms *gemms; /* gemm.h */
};

static inline struct cpu_device *cpu_device(struct device *dev)
{
    return (struct cpu_device *)dev;
}

static inline const struct cpu_device *cpu_device_const(const struct device *dev)
{
    return (const struct cpu_device *)dev;
}

status cpu_alloc(struct device *dev, void **out, size_t bytes, const char *what);
void cpu_free(struct device *dev, void *memory);

/* Memory for one operation, 64-byte aligned, valid until the next call: what cpu_reserve() took, or
 * without it grown as it is needed. */
status cpu_workspace(struct device *dev, void **out, size_t bytes);
status cpu_reserve(struct device *dev, const struct op_limits *limits);
void cpu_drop_workspace(struct device *dev);

/* Bytes that the operations ask cpu_workspace() for. */
size_t cpu_linear_workspace(const struct device *dev, const struct matrix *w, int rows);
size_t cpu_linear_rows_workspace(const struct device *dev, const struct matrix *w, int rows);
size_t cpu_attention_workspace(const struct device *dev, int head_dim);
size_t cpu_window_scores_workspace(const struct device *dev, const struct window_scores *args);
size_t cpu_column_sums_workspace(const struct device *dev, const struct column_sums *args);
size_t cpu_dot_scores_workspace(int kv_heads, int head_dim);
/* Of cache heads of `keys` rows; the lists of `args` are not looked at. */
size_t cpu_decode_attention_workspace(const struct device *dev, const struct decode_attention *args,
                                      int keys);
/* The probabilities join the notes' masses as the rules (rows * cache_heads) say; that of the last
 * row of a head, which is new, begins with it. */
status cpu_join_mass(struct device *dev, const struct decode_attention *args,
                     const struct evict_rule *rules);
size_t cpu_decode_mass_workspace(const struct device *dev, int group, int head_dim, int keys);
size_t cpu_draw_workspace(int rows, int n);
size_t cpu_logit_histogram_workspace(int rows, int n);

/* Threads worth starting for `work` units of which one thread should do at least `grain`. */
static inline int cpu_threads(const struct device *dev, size_t work, size_t grain)
{
    size_t useful = work / grain;
    size_t limit = (size_t)cpu_device_const(dev)->threads;

    if (useful > limit) {
        useful = limit;
    }
    return useful > 1 ? (int)useful : 1;
}

/* Element i of a tensor of activations. */
static inline float act_load(enum dtype dtype, const void *data, size_t i)
{
    return dtype == DTYPE_BF16 ? bf16_to_float(((const bf16 *)data)[i]) : ((const float *)data)[i];
}

static inline void act_store(enum dtype dtype, void *data, size_t i, float value)
{
    if (dtype == DTYPE_BF16) {
        ((bf16 *)data)[i] = bf16_from_float(value);
    } else {
        ((float *)data)[i] = value;
    }
}

/* Bytes of one activation. */
static inline size_t act_bytes(const struct device *dev)
{
    return dev->dtype == DTYPE_BF16 ? sizeof(bf16) : sizeof(float);
}

/* Address of element i. */
static inline void *act_at(const struct device *dev, void *data, size_t i)
{
    return (char *)data + i * act_bytes(dev);
}

static inline const void *act_const_at(const struct device *dev, const void *data, size_t i)
{
    return (const char *)data + i * act_bytes(dev);
}

status cpu_embed(struct device *dev, float *out, const int32_t *ids, int n,
                 const struct matrix *table, int first_id);
status cpu_rmsnorm(struct device *dev, void *out, const float *x, const float *weight, int rows,
                   int cols, float eps);
status cpu_linear(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                  const struct matrix *w, int rows);
status cpu_linear_rows(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                       const struct matrix *w, int rows);
status cpu_linear_each(struct device *dev, const struct weight_product *products, int n,
                       const void *x, int rows);
status cpu_linear_rows_each(struct device *dev, const struct weight_product *products, int n,
                            const void *x, int rows);
status cpu_quantize(struct device *dev, int8_t *out, float *scale, const struct matrix *w);
size_t cpu_packed_bytes(const struct device *dev, int rows, int cols);
status cpu_pack(struct device *dev, void *out, const struct matrix *w);
status cpu_linear_add(struct device *dev, float *sum, float *scratch, const void *x,
                      const struct matrix *w, int rows);
status cpu_linear_rows_add(struct device *dev, float *sum, float *scratch, const void *x,
                           const struct matrix *w, int rows);
status cpu_add_rmsnorm(struct device *dev, void *out, float *x, const float *y, const float *weight,
                       int rows, int cols, float eps);
status cpu_rope(struct device *dev, const struct rope *args);
status cpu_attention(struct device *dev, const struct attention *args);
status cpu_window_scores(struct device *dev, const struct window_scores *args);
status cpu_column_sums(struct device *dev, const struct column_sums *args);
status cpu_dot_scores(struct device *dev, const struct dot_scores *args);
status cpu_group_reduce(struct device *dev, float *out, const float *in, int groups, int group,
                        int n, enum group_reduce how);
status cpu_pool(struct device *dev, float *out, const float *in, int rows, int n, int kernel,
                enum pooling how);
status cpu_top_k(struct device *dev, int32_t *index, const float *score, int n, int k);
status cpu_key_counts(struct device *dev, const struct key_counts *args);
status cpu_gather_rows(struct device *dev, void *out, const void *in, const int32_t *index, int n,
                       size_t row_bytes);
status cpu_add(struct device *dev, float *x, const float *y, size_t n);
status cpu_silu_mul(struct device *dev, void *out, const void *gate, const void *up, size_t n);
status cpu_kv_gather(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                     const void *k, const void *v, const int32_t *index, int n);
status cpu_kv_note(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                   const struct kv_note *notes, int n);
status cpu_kv_append(struct device *dev, const struct kv_append *args);
status cpu_decode_attention(struct device *dev, const struct decode_attention *args);
status cpu_enter_pages(struct device *dev, const struct page_entry *list, int n);
status cpu_kv_move(struct device *dev, const struct kv_pool *pool, const int32_t *to,
                   const int32_t *from, int n);
status cpu_evict(struct device *dev, const struct evict *args);
status cpu_penalize(struct device *dev, float *out, const float *logits, int rows, int n,
                    int first_id, const struct penalty *penalties);
status cpu_draw(struct device *dev, struct drawn *out, const float *logits, int rows, int n,
                int first_id, const struct draw *draws);
status cpu_best_drawn(struct device *dev, struct drawn *out, const struct drawn *drawn, int rows,
                      int ranks);
status cpu_logits_of(struct device *dev, float *out, const float *logits, int rows, int n,
                     int first_id, const struct drawn *chosen);
status cpu_logit_histogram(struct device *dev, const struct logit_histogram *args);
status cpu_narrow(struct device *dev, const struct narrow *args);
status cpu_filter_draws(struct device *dev, const struct filtered_draws *args);

#endif
