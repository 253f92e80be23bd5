#include "worker/model.h"

#include "common/file.h"
#include "worker/convert.h"
#include "worker/foreign.h"
#include "worker/weights.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    STAGING_BYTES = 4 << 20, /* converted and uploaded at a time */
    BUFFERS_PER_LAYER = 9,
    BUFFERS_BESIDE = 4, /* embedding, output, final norm, inv_freq */
    MAX_NAME = 128,
    MAX_PATH = 4096,
    MAX_CONFIG_BYTES = 4 << 20,
};

_Static_assert(STAGING_BYTES >= MODEL_MAX_WIDTH * sizeof(float), "holds the widest row");

struct model_memory {
    struct device *dev;
    struct weights *weights;
    void **buffers;
    size_t n_buffers, max_buffers;
    char *staging; /* while loading only */
};

/* The rows and columns of a tensor that this rank takes. */
struct part {
    int total_rows, total_cols;
    int row, rows;
    int col, cols;
};

struct loader {
    struct device *dev;
    struct model *model;
    struct model_memory *memory;
    const struct weights *weights;
};

static status new_buffer(struct model_memory *memory, void **out, size_t bytes, const char *name)
{
    assert(memory->n_buffers < memory->max_buffers);
    status st = device_alloc(memory->dev, out, bytes, name);
    if (st) {
        return st;
    }
    memory->buffers[memory->n_buffers++] = *out;
    return STATUS_OK;
}

static status tensor_dtype(enum dtype *out, const struct tensor *tensor)
{
    static const char *const names[] = {
        [DTYPE_F32] = "F32", [DTYPE_BF16] = "BF16", [DTYPE_F16] = "F16"};

    for (int i = 0; i < (int)(sizeof(names) / sizeof(names[0])); i++) {
        if (strcmp(tensor->dtype, names[i]) == 0) {
            *out = (enum dtype)i;
            return STATUS_OK;
        }
    }
    return status_fail(STATUS_UNIMPLEMENTED,
                       "%s: tensor %s: dtype: %s is not supported; F32, BF16 and F16 are",
                       tensor->path, tensor->name, tensor->dtype);
}

static void shape_text(char *out, size_t size, const struct tensor *tensor)
{
    size_t used = 0;

    out[0] = '\0';
    for (int i = 0; i < tensor->dims && used < size; i++) {
        used += (size_t)snprintf(out + used, size - used, "%s%llu", i ? ", " : "",
                                 (unsigned long long)tensor->shape[i]);
    }
}

/* A matrix, or with cols 0 a vector; a shape other than the configuration's is an error. */
static status find_tensor(const struct loader *loader, const struct tensor **out, const char *name,
                          int rows, int cols)
{
    const struct tensor *tensor = weights_find(loader->weights, name);
    char shape[192];
    char expected[64];

    if (!tensor) {
        return status_fail(STATUS_INVALID, "model %s: tensor %s: missing",
                           loader->model->config.name, name);
    }
    bool fits = tensor->dims == (cols ? 2 : 1) && tensor->shape[0] == (uint64_t)rows &&
                (!cols || tensor->shape[1] == (uint64_t)cols);
    if (!fits) {
        shape_text(shape, sizeof(shape), tensor);
        if (cols) {
            snprintf(expected, sizeof(expected), "%d, %d", rows, cols);
        } else {
            snprintf(expected, sizeof(expected), "%d", rows);
        }
        return status_fail(STATUS_INVALID, "%s: tensor %s: shape: [%s], config.json needs [%s]",
                           tensor->path, name, shape, expected);
    }
    *out = tensor;
    return STATUS_OK;
}

/* Advice only: where it fails nothing is lost but time. */
static void advise(const void *data, size_t bytes, int advice)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)data;
    uintptr_t start = begin / page * page;

    (void)madvise((char *)data - (begin - start), bytes + (begin - start), advice);
}

/* Asks for the pages of a part that stays mapped; of a narrow column slice whole rows. */
static void prefetch(const char *data, const struct part *part, size_t element)
{
    size_t row_bytes = (size_t)part->total_cols * element;
    size_t bytes = (size_t)part->cols * element;

    if (part->cols == part->total_cols || row_bytes < 2 * (size_t)sysconf(_SC_PAGESIZE)) {
        advise(data, ((size_t)part->rows - 1) * row_bytes + bytes, MADV_WILLNEED);
        return;
    }
    for (int r = 0; r < part->rows; r++) {
        advise(data + (size_t)r * row_bytes, bytes, MADV_WILLNEED);
    }
}

/* Converts a part to rows that follow each other, on the device. */
static status upload_part(struct loader *loader, void *to, enum dtype to_dtype, const char *from,
                          enum dtype from_dtype, const struct part *part)
{
    size_t from_stride = (size_t)part->total_cols * dtype_bytes(from_dtype);
    size_t to_stride = (size_t)part->cols * dtype_bytes(to_dtype);
    size_t block = STAGING_BYTES / to_stride;

    for (size_t r = 0; r < (size_t)part->rows; r += block) {
        size_t n = (size_t)part->rows - r < block ? (size_t)part->rows - r : block;
        for (size_t i = 0; i < n; i++) {
            convert(loader->memory->staging + i * to_stride, to_dtype, from + (r + i) * from_stride,
                    from_dtype, (size_t)part->cols);
        }
        status st = device_upload(loader->dev, (char *)to + r * to_stride, loader->memory->staging,
                                  n * to_stride);
        if (!st) {
            st = device_sync(loader->dev); /* staging is used again */
        }
        if (st) {
            return st;
        }
    }
    return STATUS_OK;
}

/* The part as `dtype`: *out with its stride in elements; in the mapping where that is possible. */
static status load_part(struct loader *loader, const void **out, size_t *stride, enum dtype dtype,
                        const struct tensor *tensor, const struct part *part)
{
    enum dtype source = DTYPE_F32;
    status st = tensor_dtype(&source, tensor);

    if (st) {
        return st;
    }
    size_t element = dtype_bytes(source);
    size_t offset = (size_t)part->row * (size_t)part->total_cols + (size_t)part->col;
    const char *from = (const char *)tensor->data + offset * element;
    size_t elements = (size_t)part->rows * (size_t)part->cols;

    loader->model->bytes += elements * dtype_bytes(dtype);
    if (source == dtype && (uintptr_t)from % element == 0 && device_on_host(loader->dev)) {
        prefetch(from, part, element);
        *out = from;
        *stride = (size_t)part->total_cols;
        return STATUS_OK;
    }
    void *buffer = NULL;
    st = new_buffer(loader->memory, &buffer, elements * dtype_bytes(dtype), tensor->name);
    if (!st) {
        st = upload_part(loader, buffer, dtype, from, source, part);
    }
    if (st) {
        return status_note(st, "tensor %s", tensor->name);
    }
    /* The source is not read again: its pages need not count as this process's. */
    advise(tensor->data, tensor->bytes, MADV_DONTNEED);
    *out = buffer;
    *stride = (size_t)part->cols;
    return STATUS_OK;
}

static status load_matrix(struct loader *loader, struct matrix *out, const char *name,
                          const struct part *part)
{
    const struct tensor *tensor = NULL;
    status st = find_tensor(loader, &tensor, name, part->total_rows, part->total_cols);

    *out = (struct matrix){.rows = part->rows, .cols = part->cols};
    if (!st) {
        assert(tensor);
        st = load_part(loader, &out->data, &out->stride, device_dtype(loader->dev), tensor, part);
    }
    return st;
}

/* The part in int8 to `out` and its scales to `scale`, through the staging memory block by block.
 */
static status quantize_staged(struct loader *loader, int8_t *out, float *scale, const char *from,
                              enum dtype source, const struct part *part)
{
    enum dtype act = device_dtype(loader->dev);
    size_t cols = (size_t)part->cols, stride = (size_t)part->total_cols * dtype_bytes(source);
    size_t row = cols * dtype_bytes(act);
    struct matrix w = {.data = loader->memory->staging, .cols = part->cols, .stride = cols};
    status st = STATUS_OK;

    assert(row > 0);
    size_t block = STAGING_BYTES / row;

    for (size_t r = 0; r < (size_t)part->rows && !st; r += block) {
        size_t n = (size_t)part->rows - r < block ? (size_t)part->rows - r : block;

        for (size_t i = 0; i < n; i++) {
            convert(loader->memory->staging + i * row, act, from + (r + i) * stride, source, cols);
        }
        w.rows = (int)n;
        st = op_quantize(loader->dev, out + r * cols, scale + r, &w);
    }
    return st;
}

/* A matrix that linear operations alone read: in int8 if the device has its weights so.  A scale is
 * of the columns that this rank has. */
static status load_linear(struct loader *loader, struct matrix *out, const char *name,
                          const struct part *part)
{
    const struct tensor *tensor = NULL;
    enum dtype source = DTYPE_F32;
    void *buffer = NULL;

    if (!device_int8_weights(loader->dev)) {
        return load_matrix(loader, out, name, part);
    }
    status st = find_tensor(loader, &tensor, name, part->total_rows, part->total_cols);
    if (!st) {
        st = tensor_dtype(&source, tensor);
    }
    if (st) {
        return st;
    }
    size_t scales = (size_t)part->rows * sizeof(float);
    size_t elements = (size_t)part->rows * (size_t)part->cols;
    size_t offset = (size_t)part->row * (size_t)part->total_cols + (size_t)part->col;
    const char *from = (const char *)tensor->data + offset * dtype_bytes(source);
    struct matrix w = {
        .data = from, .rows = part->rows, .cols = part->cols, .stride = (size_t)part->total_cols};

    st = new_buffer(loader->memory, &buffer, scales + elements, tensor->name);
    if (st) {
        return status_note(st, "tensor %s", tensor->name);
    }
    prefetch(from, part, dtype_bytes(source));
    int8_t *data = (int8_t *)buffer + scales;
    st = source == device_dtype(loader->dev) && (uintptr_t)from % dtype_bytes(source) == 0
             ? op_quantize(loader->dev, data, buffer, &w)
             : quantize_staged(loader, data, buffer, from, source, part);
    advise(tensor->data, tensor->bytes, MADV_DONTNEED); /* not read again */
    loader->model->bytes += scales + elements;
    w.data = data;
    w.scale = buffer;
    w.stride = (size_t)part->cols;
    *out = w;
    return st ? status_note(st, "tensor %s", tensor->name) : STATUS_OK;
}

static status load_norm(struct loader *loader, const float **out, const char *name)
{
    int hidden = loader->model->config.hidden;
    struct part part = {.total_rows = 1, .total_cols = hidden, .rows = 1, .cols = hidden};
    const struct tensor *tensor = NULL;
    const void *data = NULL;
    size_t stride;
    status st = find_tensor(loader, &tensor, name, hidden, 0);

    if (!st) {
        assert(tensor);
        st = load_part(loader, &data, &stride, DTYPE_F32, tensor, &part);
    }
    *out = data;
    return st;
}

static struct part rows_of(int total_rows, int cols, int row, int rows)
{
    return (struct part){
        .total_rows = total_rows, .total_cols = cols, .row = row, .rows = rows, .cols = cols};
}

static struct part columns_of(int rows, int total_cols, int col, int cols)
{
    return (struct part){
        .total_rows = rows, .total_cols = total_cols, .rows = rows, .col = col, .cols = cols};
}

static status load_layer(struct loader *loader, struct layer_weights *out, int layer)
{
    const struct model_config *c = &loader->model->config;
    const struct split *s = &loader->model->split;
    int d = c->head_dim;
    struct part queries =
        rows_of(c->query_heads * d, c->hidden, s->query_first * d, s->query_heads * d);
    struct part keys = rows_of(c->kv_heads * d, c->hidden, s->kv_first * d, s->kv_heads * d);
    struct part heads =
        columns_of(c->hidden, c->query_heads * d, s->query_first * d, s->query_heads * d);
    struct part mlp = rows_of(c->intermediate, c->hidden, s->mlp_first, s->mlp_columns);
    struct part down = columns_of(c->hidden, c->intermediate, s->mlp_first, s->mlp_columns);
    const struct {
        struct matrix *out;
        const char *name;
        const struct part *part;
    } matrices[] = {
        {&out->q, "self_attn.q_proj", &queries}, {&out->k, "self_attn.k_proj", &keys},
        {&out->v, "self_attn.v_proj", &keys},    {&out->o, "self_attn.o_proj", &heads},
        {&out->gate, "mlp.gate_proj", &mlp},     {&out->up, "mlp.up_proj", &mlp},
        {&out->down, "mlp.down_proj", &down},
    };
    char name[MAX_NAME];

    for (size_t i = 0; i < sizeof(matrices) / sizeof(matrices[0]); i++) {
        snprintf(name, sizeof(name), "model.layers.%d.%s.weight", layer, matrices[i].name);
        status st = load_linear(loader, matrices[i].out, name, matrices[i].part);
        if (st) {
            return st;
        }
    }
    snprintf(name, sizeof(name), "model.layers.%d.input_layernorm.weight", layer);
    status st = load_norm(loader, &out->input_norm, name);
    if (st) {
        return st;
    }
    snprintf(name, sizeof(name), "model.layers.%d.post_attention_layernorm.weight", layer);
    return load_norm(loader, &out->attention_norm, name);
}

static status load_inv_freq(struct loader *loader)
{
    float inv_freq[MODEL_MAX_HEAD_DIM / 2];
    size_t bytes = (size_t)loader->model->config.head_dim / 2 * sizeof(float);
    void *buffer = NULL;
    status st = new_buffer(loader->memory, &buffer, bytes, "inv_freq");

    if (st) {
        return st;
    }
    model_config_inv_freq(&loader->model->config, inv_freq);
    st = device_upload(loader->dev, buffer, inv_freq, bytes);
    loader->model->inv_freq = buffer;
    return st ? st : device_sync(loader->dev);
}

/* Files that say they are tied and still carry an output: it must be the embedding, since
 * published implementations disagree on which of two different ones counts. */
static status check_tied(const struct loader *loader, const struct part *part)
{
    const struct tensor *head = weights_find(loader->weights, "lm_head.weight");
    const struct tensor *embed = NULL;
    status st = find_tensor(loader, &embed, "model.embed_tokens.weight", part->total_rows,
                            part->total_cols);
    enum dtype dtype = DTYPE_F32;

    if (st || !head) {
        return st;
    }
    assert(embed);
    st = tensor_dtype(&dtype, embed);
    if (st) {
        return st;
    }
    size_t row_bytes = (size_t)part->total_cols * dtype_bytes(dtype);
    size_t offset = (size_t)part->row * row_bytes;
    bool same = strcmp(head->dtype, embed->dtype) == 0 && head->bytes == embed->bytes &&
                memcmp((const char *)head->data + offset, (const char *)embed->data + offset,
                       (size_t)part->rows * row_bytes) == 0;
    advise(head->data, head->bytes, MADV_DONTNEED); /* not read again */
    if (!same) {
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s: tensor lm_head.weight: not model.embed_tokens.weight, although "
                           "config.json says tie_word_embeddings",
                           head->path);
    }
    return STATUS_OK;
}

static status load_ends(struct loader *loader)
{
    struct model *model = loader->model;
    static const char *const embed = "model.embed_tokens.weight";
    const char *output = model->config.tied_embeddings ? embed : "lm_head.weight";
    struct part vocab = rows_of(model->config.vocab, model->config.hidden, model->split.vocab_first,
                                model->split.vocab_rows);
    status st = load_matrix(loader, &model->embed, embed, &vocab);

    if (!st && model->config.tied_embeddings) {
        st = check_tied(loader, &vocab);
        model->lm_head = model->embed;
    }
    if (!st && (device_int8_weights(loader->dev) || !model->config.tied_embeddings)) {
        st = load_linear(loader, &model->lm_head, output, &vocab);
    }
    if (!st) {
        st = load_norm(loader, &model->final_norm, "model.norm.weight");
    }
    return st ? st : load_inv_freq(loader);
}

static status load_all(struct model *model, struct device *dev, const char *dir)
{
    struct model_memory *memory = model->memory;
    memory->dev = dev;
    memory->max_buffers = (size_t)model->config.layers * BUFFERS_PER_LAYER + BUFFERS_BESIDE;
    memory->buffers = calloc(memory->max_buffers, sizeof(memory->buffers[0]));
    memory->staging = malloc(STAGING_BYTES);
    model->layers = calloc((size_t)model->config.layers, sizeof(model->layers[0]));
    if (!memory->buffers || !memory->staging || !model->layers) {
        return status_fail(STATUS_EXHAUSTED, "model %s: no memory", model->config.name);
    }
    status st = weights_open(&memory->weights, dir);
    if (!st) {
        st = foreign_refuse(memory->weights, &model->config);
    }
    struct loader loader = {
        .dev = dev, .model = model, .memory = memory, .weights = memory->weights};
    if (!st) {
        st = load_ends(&loader);
    }
    for (int layer = 0; !st && layer < model->config.layers; layer++) {
        st = load_layer(&loader, &model->layers[layer], layer);
    }
    free(memory->staging);
    memory->staging = NULL;
    return st;
}

status model_open(struct model **out, struct device *dev, const char *dir, int rank, int ranks)
{
    struct model *model = calloc(1, sizeof(*model));
    struct model_memory *memory = calloc(1, sizeof(*memory));
    status st = STATUS_OK;

    if (!model || !memory) {
        free(memory);
        free(model);
        return status_fail(STATUS_EXHAUSTED, "%s: no memory for the model", dir);
    }
    model->memory = memory;
    st = model_config_load(&model->config, dir);
    if (!st) {
        st = split_for_rank(&model->split, &model->config, rank, ranks);
    }
    if (!st) {
        st = load_all(model, dev, dir);
    }
    if (st) {
        model_close(model);
        return st;
    }
    *out = model;
    return STATUS_OK;
}

status model_preload(const char *dir)
{
    struct weights *weights = NULL;
    status st = weights_open(&weights, dir);

    if (!st) {
        st = weights_preload(weights);
    }
    weights_close(weights);
    return st;
}

void model_close(struct model *model)
{
    if (!model) {
        return;
    }
    struct model_memory *memory = model->memory;
    for (size_t i = 0; i < memory->n_buffers; i++) {
        device_free(memory->dev, memory->buffers[i]);
    }
    free(memory->buffers);
    free(memory->staging);
    weights_close(memory->weights);
    free(memory);
    free(model->layers);
    free(model);
}

/* FNV-1a. */
static uint64_t mix(uint64_t hash, const void *data, size_t bytes)
{
    const unsigned char *byte = data;

    for (size_t i = 0; i < bytes; i++) {
        hash = (hash ^ byte[i]) * 0x100000001b3u;
    }
    return hash;
}

status model_fingerprint(uint64_t *out, const char *dir)
{
    char path[MAX_PATH];
    char *config = NULL;
    size_t bytes = 0;
    struct weights *weights = NULL;
    status st = file_join(path, sizeof(path), dir, "config.json");

    if (!st) {
        st = file_read(&config, &bytes, path, MAX_CONFIG_BYTES);
    }
    if (!st) {
        st = weights_open(&weights, dir);
    }
    if (st) {
        free(config);
        return st;
    }
    uint64_t hash = mix(0xcbf29ce484222325u, config, bytes);
    for (size_t i = 0; i < weights_count(weights); i++) {
        const struct tensor *tensor = weights_at(weights, i);
        hash = mix(hash, tensor->name, strlen(tensor->name) + 1);
        hash = mix(hash, tensor->dtype, strlen(tensor->dtype) + 1);
        hash = mix(hash, tensor->shape, (size_t)tensor->dims * sizeof(tensor->shape[0]));
    }
    weights_close(weights);
    free(config);
    *out = hash;
    return STATUS_OK;
}
