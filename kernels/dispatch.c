/* dispatch.c - find a backend by name; check arguments once, then forward. */
#include "kernels/backend.h"

#include <assert.h>
#include <string.h>

static const struct backend *const backends[] = {
    &backend_cpu,
    &backend_cuda,
};

status device_open(struct device **out, const char *backend, const struct device_config *config)
{
    for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++) {
        if (strcmp(backends[i]->name, backend) == 0) {
            return backends[i]->open(out, config);
        }
    }
    return status_fail(STATUS_NOT_FOUND, "device: no backend '%s'", backend);
}

void device_close(struct device *dev)
{
    if (dev) {
        dev->backend->close(dev);
    }
}

enum dtype device_dtype(const struct device *dev)
{
    return dev->dtype;
}

bool device_int8_weights(const struct device *dev)
{
    return dev->int8_weights;
}

bool device_on_host(const struct device *dev)
{
    return dev->backend->on_host;
}

const char *device_description(const struct device *dev)
{
    return dev->description;
}

status device_alloc(struct device *dev, void **out, size_t bytes, const char *what)
{
    assert(out && what);
    return dev->backend->alloc(dev, out, bytes, what);
}

void device_free(struct device *dev, void *memory)
{
    if (memory) {
        dev->backend->free(dev, memory);
    }
}

status device_free_memory(struct device *dev, uint64_t *bytes)
{
    return dev->backend->free_memory(dev, bytes);
}

status device_upload(struct device *dev, void *to, const void *from, size_t bytes)
{
    return dev->backend->upload(dev, to, from, bytes);
}

static status check_interrupted(const struct device *dev)
{
    return __atomic_load_n(&dev->interrupted, __ATOMIC_ACQUIRE)
               ? status_fail(STATUS_UNAVAILABLE, "device: interrupted")
               : STATUS_OK;
}

status device_download(struct device *dev, void *to, const void *from, size_t bytes)
{
    status st = dev->backend->download(dev, to, from, bytes);

    return st ? st : check_interrupted(dev);
}

status device_fetch(struct device *dev, void *to, const void *from, size_t bytes)
{
    return bytes > 0 ? dev->backend->fetch(dev, to, from, bytes) : STATUS_OK;
}

status device_copy(struct device *dev, void *to, const void *from, size_t bytes)
{
    return dev->backend->copy(dev, to, from, bytes);
}

status device_sync(struct device *dev)
{
    status st = dev->backend->sync(dev);

    return st ? st : check_interrupted(dev);
}

void *device_stream(struct device *dev)
{
    return dev->backend->stream(dev);
}

void device_redirect(struct device *dev, void *stream)
{
    dev->backend->redirect(dev, stream);
}

void device_interrupt(struct device *dev, bool on)
{
    __atomic_store_n(&dev->interrupted, on, __ATOMIC_RELEASE);
    if (on) {
        dev->backend->drop_graphs(dev);
    }
}

status device_record(struct device *dev)
{
    assert(!dev->recording);
    status st = dev->backend->record(dev);

    dev->recording = !st;
    return st;
}

status device_record_end(struct device *dev, struct device_graph **out)
{
    assert(dev->recording);
    dev->recording = false;
    status st = dev->backend->record_end(dev, out);

    return st || !out ? st : check_interrupted(dev);
}

bool device_recording(const struct device *dev)
{
    return dev->recording;
}

status device_launch(struct device *dev, struct device_graph *graph)
{
    return dev->backend->launch(dev, graph);
}

void device_graph_free(struct device *dev, struct device_graph *graph)
{
    if (graph) {
        dev->backend->graph_free(dev, graph);
    }
}

static int matrix_valid(const struct device *dev, const struct matrix *m)
{
    if (!m->data || m->rows <= 0 || m->cols <= 0) {
        return 0;
    }
    return m->layout == MATRIX_PACKED
               ? !m->scale && dev->backend->packed_bytes(dev, m->rows, m->cols) > 0
               : m->stride >= (size_t)m->cols;
}

static int head_dim_valid(int head_dim)
{
    return head_dim > 0 && head_dim <= OP_MAX_HEAD_DIM && head_dim % 8 == 0;
}

static int groups_valid(int q_heads, int kv_heads)
{
    return kv_heads > 0 && q_heads > 0 && q_heads % kv_heads == 0;
}

status op_reserve(struct device *dev, const struct op_limits *limits)
{
    assert(limits->chunk_rows > 0 && limits->keys > 0 && limits->vocab_rows > 0);
    assert(head_dim_valid(limits->head_dim) && groups_valid(limits->q_heads, limits->kv_heads));
    return dev->backend->reserve(dev, limits);
}

status op_embed(struct device *dev, float *out, const int32_t *ids, int n,
                const struct matrix *table, int first_id)
{
    assert(n >= 0 && first_id >= 0 && matrix_valid(dev, table) && !table->scale);
    return dev->backend->embed(dev, out, ids, n, table, first_id);
}

status op_rmsnorm(struct device *dev, void *out, const float *x, const float *weight, int rows,
                  int cols, float eps)
{
    assert(rows >= 0 && cols > 0);
    return dev->backend->rmsnorm(dev, out, x, weight, rows, cols, eps);
}

status op_linear(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                 const struct matrix *w, int rows)
{
    assert(rows >= 0 && matrix_valid(dev, w));
    assert(out_dtype == DTYPE_F32 || out_dtype == dev->dtype);
    return dev->backend->linear(dev, out, out_dtype, x, w, rows);
}

status op_linear_rows(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                      const struct matrix *w, int rows)
{
    assert(rows > 0 && rows <= OP_MAX_DECODE_ROWS && matrix_valid(dev, w));
    assert(out_dtype == DTYPE_F32 || out_dtype == dev->dtype);
    return dev->backend->linear_rows(dev, out, out_dtype, x, w, rows);
}

static int products_valid(const struct device *dev, const struct weight_product *products, int n)
{
    for (int i = 0; i < n; i++) {
        if (!matrix_valid(dev, products[i].w) || products[i].w->cols != products[0].w->cols) {
            return 0;
        }
    }
    return n > 0 && n <= OP_MAX_PRODUCTS;
}

status op_linear_each(struct device *dev, const struct weight_product *products, int n,
                      const void *x, int rows)
{
    status st = STATUS_OK;

    assert(rows >= 0 && products_valid(dev, products, n));
    if (dev->backend->linear_each) {
        return dev->backend->linear_each(dev, products, n, x, rows);
    }
    for (int i = 0; i < n && !st; i++) {
        st = dev->backend->linear(dev, products[i].out, dev->dtype, x, products[i].w, rows);
    }
    return st;
}

status op_linear_rows_each(struct device *dev, const struct weight_product *products, int n,
                           const void *x, int rows)
{
    status st = STATUS_OK;

    assert(rows > 0 && rows <= OP_MAX_DECODE_ROWS && products_valid(dev, products, n));
    if (dev->backend->linear_rows_each) {
        return dev->backend->linear_rows_each(dev, products, n, x, rows);
    }
    for (int i = 0; i < n && !st; i++) {
        st = dev->backend->linear_rows(dev, products[i].out, dev->dtype, x, products[i].w, rows);
    }
    return st;
}

status op_quantize(struct device *dev, int8_t *out, float *scale, const struct matrix *w)
{
    assert(out && scale && matrix_valid(dev, w) && !w->scale && w->layout == MATRIX_ROWS);
    return dev->backend->quantize(dev, out, scale, w);
}

size_t op_packed_bytes(const struct device *dev, int rows, int cols)
{
    assert(rows >= 0 && cols > 0);
    return dev->backend->packed_bytes(dev, rows, cols);
}

status op_pack(struct device *dev, void *out, const struct matrix *w)
{
    assert(out && matrix_valid(dev, w) && !w->scale && w->layout == MATRIX_ROWS);
    assert(op_packed_bytes(dev, w->rows, w->cols) > 0);
    return dev->backend->pack(dev, out, w);
}

status op_linear_add(struct device *dev, float *sum, float *scratch, const void *x,
                     const struct matrix *w, int rows)
{
    assert(rows >= 0 && matrix_valid(dev, w) && sum != scratch);
    return dev->backend->linear_add(dev, sum, scratch, x, w, rows);
}

status op_linear_rows_add(struct device *dev, float *sum, float *scratch, const void *x,
                          const struct matrix *w, int rows)
{
    assert(rows > 0 && rows <= OP_MAX_DECODE_ROWS && matrix_valid(dev, w) && sum != scratch);
    return dev->backend->linear_rows_add(dev, sum, scratch, x, w, rows);
}

status op_add_rmsnorm(struct device *dev, void *out, float *x, const float *y, const float *weight,
                      int rows, int cols, float eps)
{
    assert(rows >= 0 && cols > 0);
    return dev->backend->add_rmsnorm(dev, out, x, y, weight, rows, cols, eps);
}

status op_rope(struct device *dev, const struct rope *args)
{
    assert(args->rows >= 0 && head_dim_valid(args->head_dim));
    assert(args->positions && args->inv_freq && (!args->q || args->q_heads > 0));
    assert((!args->k && !args->v) || args->kv_heads > 0);
    assert((!args->k || args->layer_k) && (!args->v || args->layer_v));
    assert((!args->k && !args->v) || args->kv_heads == 1 ||
           args->kv_stride >= (size_t)args->rows * (size_t)args->head_dim);
    return dev->backend->rope(dev, args);
}

status op_attention(struct device *dev, const struct attention *args)
{
    assert(args->rows >= 0 && args->n_keys > 0 && head_dim_valid(args->head_dim));
    assert(groups_valid(args->q_heads, args->kv_heads));
    assert(args->q_index || (args->first_row >= 0 && args->rows <= args->n_keys - args->first_row));
    assert(args->kv_stride >= (size_t)args->n_keys * (size_t)args->head_dim || args->kv_heads == 1);
    assert(args->sliding_window >= 0 && (args->sliding_window == 0 || args->positions));
    return dev->backend->attention(dev, args);
}

status op_window_scores(struct device *dev, const struct window_scores *args)
{
    assert(args->window > 0 && args->n_keys >= args->window && head_dim_valid(args->head_dim));
    assert(groups_valid(args->q_heads, args->kv_heads));
    assert(args->kv_stride >= (size_t)args->n_keys * (size_t)args->head_dim || args->kv_heads == 1);
    assert(args->sliding_window >= 0 && (args->sliding_window == 0 || args->positions));
    return dev->backend->window_scores(dev, args);
}

status op_column_sums(struct device *dev, const struct column_sums *args)
{
    assert(args->rows >= 0 && args->first_row >= 0 && head_dim_valid(args->head_dim));
    assert(args->rows <= args->n_keys - args->first_row && args->stride >= (size_t)args->n_keys);
    assert(groups_valid(args->q_heads, args->kv_heads));
    assert(args->kv_stride >= (size_t)args->n_keys * (size_t)args->head_dim || args->kv_heads == 1);
    assert(args->sliding_window >= 0 && (args->sliding_window == 0 || args->positions));
    assert(args->fresh >= 0 && args->open_rows >= 0 && args->n_local >= 0);
    return dev->backend->column_sums(dev, args);
}

status op_dot_scores(struct device *dev, const struct dot_scores *args)
{
    assert(args->n_keys >= 0 && head_dim_valid(args->head_dim));
    assert(groups_valid(args->q_heads, args->kv_heads));
    assert(args->kv_stride >= (size_t)args->n_keys * (size_t)args->head_dim || args->kv_heads == 1);
    return dev->backend->dot_scores(dev, args);
}

status op_group_reduce(struct device *dev, float *out, const float *in, int groups, int group,
                       int n, enum group_reduce how)
{
    assert(groups > 0 && group > 0 && n >= 0);
    assert(how == GROUP_SUM || how == GROUP_MEAN || how == GROUP_MAX);
    return dev->backend->group_reduce(dev, out, in, groups, group, n, how);
}

status op_pool(struct device *dev, float *out, const float *in, int rows, int n, int kernel,
               enum pooling how)
{
    assert(rows >= 0 && n >= 0 && out != in);
    assert(kernel > 0 && kernel <= OP_MAX_POOL_KERNEL && kernel % 2 == 1);
    assert(how == POOLING_MAX || how == POOLING_AVG);
    return dev->backend->pool(dev, out, in, rows, n, kernel, how);
}

status op_top_k(struct device *dev, int32_t *index, const float *score, int n, int k)
{
    assert(k >= 0 && k <= n);
    return dev->backend->top_k(dev, index, score, n, k);
}

status op_key_counts(struct device *dev, const struct key_counts *args)
{
    assert(args->rows >= 0 && args->n >= 0);
    assert(args->shift == 24 || args->shift == 16 || args->shift == 8 || args->shift == 0);
    return dev->backend->key_counts(dev, args);
}

status op_gather_rows(struct device *dev, void *out, const void *in, const int32_t *index, int n,
                      size_t row_bytes)
{
    assert(n >= 0 && row_bytes > 0 && out != in);
    return dev->backend->gather_rows(dev, out, in, index, n, row_bytes);
}

status op_add(struct device *dev, float *x, const float *y, size_t n)
{
    return dev->backend->add(dev, x, y, n);
}

status op_silu_mul(struct device *dev, void *out, const void *gate, const void *up, size_t n)
{
    return dev->backend->silu_mul(dev, out, gate, up, n);
}

static int pool_valid(const struct kv_pool *pool)
{
    return pool->k && pool->v && !pool->k_scale == !pool->v_scale && pool->page_rows > 0 &&
           head_dim_valid(pool->head_dim);
}

status op_kv_gather(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                    const void *k, const void *v, const int32_t *index, int n)
{
    assert(n >= 0 && pool_valid(pool));
    return dev->backend->kv_gather(dev, pool, pages, k, v, index, n);
}

status op_kv_note(struct device *dev, const struct kv_pool *pool, const int32_t *pages,
                  const struct kv_note *notes, int n)
{
    assert(n >= 0 && pool_valid(pool) && pool->notes);
    return dev->backend->kv_note(dev, pool, pages, notes, n);
}

status op_kv_append(struct device *dev, const struct kv_append *args)
{
    assert(args->rows >= 0 && pool_valid(args->pool) && args->k && args->v);
    assert(groups_valid(args->cache_heads, args->kv_heads));
    assert(args->positions && args->inv_freq && (!args->q || args->q_heads > 0));
    return dev->backend->kv_append(dev, args);
}

status op_decode_attention(struct device *dev, const struct decode_attention *args)
{
    assert(args->rows > 0 && args->rows <= OP_MAX_DECODE_ROWS && pool_valid(args->pool));
    assert(args->head_dim == args->pool->head_dim);
    assert(groups_valid(args->q_heads, args->cache_heads));
    assert(!args->sinks || args->q_sinks);
    return dev->backend->decode_attention(dev, args);
}

status op_kv_move(struct device *dev, const struct kv_pool *pool, const int32_t *to,
                  const int32_t *from, int n)
{
    assert(n >= 0 && pool_valid(pool));
    return dev->backend->kv_move(dev, pool, to, from, n);
}

status op_enter_pages(struct device *dev, const struct page_entry *list, int n)
{
    assert(n >= 0);
    return dev->backend->enter_pages(dev, list, n);
}

status op_evict(struct device *dev, const struct evict *args)
{
    assert(args->heads > 0 && pool_valid(args->pool) && args->pool->notes);
    assert(!args->attention ||
           (args->attention->pool == args->pool && !args->attention->sinks &&
            args->attention->head_dim == args->pool->head_dim &&
            groups_valid(args->attention->q_heads, args->attention->cache_heads) &&
            args->attention->rows <= OP_MAX_DECODE_ROWS &&
            args->attention->rows * args->attention->cache_heads == args->heads));
    return dev->backend->evict(dev, args);
}

status op_penalize(struct device *dev, float *out, const float *logits, int rows, int n,
                   int first_id, const struct penalty *penalties)
{
    assert(rows >= 0 && n >= 0 && first_id >= 0 && out != logits);
    return dev->backend->penalize(dev, out, logits, rows, n, first_id, penalties);
}

status op_draw(struct device *dev, struct drawn *out, const float *logits, int rows, int n,
               int first_id, const struct draw *draws)
{
    assert(rows >= 0 && n >= 0 && first_id >= 0);
    return dev->backend->draw(dev, out, logits, rows, n, first_id, draws);
}

status op_best_drawn(struct device *dev, struct drawn *out, const struct drawn *drawn, int rows,
                     int ranks)
{
    assert(rows >= 0 && ranks > 0);
    return dev->backend->best_drawn(dev, out, drawn, rows, ranks);
}

status op_logits_of(struct device *dev, float *out, const float *logits, int rows, int n,
                    int first_id, const struct drawn *chosen)
{
    assert(rows >= 0 && n >= 0 && first_id >= 0);
    return dev->backend->logits_of(dev, out, logits, rows, n, first_id, chosen);
}

static bool shift_valid(int shift)
{
    return shift == 24 || shift == 16 || shift == 8 || shift == 0;
}

status op_logit_histogram(struct device *dev, const struct logit_histogram *args)
{
    assert(args->rows >= 0 && args->n >= 0 && shift_valid(args->shift));
    return dev->backend->logit_histogram(dev, args);
}

status op_narrow(struct device *dev, const struct narrow *args)
{
    assert(args->rows >= 0 && args->rank >= 0 && args->rank < args->ranks);
    assert(shift_valid(args->shift));
    return dev->backend->narrow(dev, args);
}

status op_filter_draws(struct device *dev, const struct filtered_draws *args)
{
    assert(args->rows >= 0 && args->n >= 0 && args->first_id >= 0);
    return dev->backend->filter_draws(dev, args);
}
