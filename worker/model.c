#include "worker/model.h"

#include "common/file.h"
#include "worker/foreign.h"
#include "worker/loader.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    STAGING_BYTES = 4 << 20, /* converted at a time, if they hold OP_PACK_ROWS rows */
    BUFFERS_PER_LAYER = 9,
    BUFFERS_BESIDE = 5, /* packed weights, embedding, output, final norm, inv_freq */
    MAX_NAME = 128,
    MAX_PATH = 4096,
    MAX_CONFIG_BYTES = 4 << 20,
};

static status load_norm(struct loader *loader, const float **out, const char *name)
{
    int hidden = loader->model->config.hidden;
    struct part part = {.total_rows = 1, .total_cols = hidden, .rows = 1, .cols = hidden};
    const struct tensor *tensor = NULL;
    const void *data = NULL;
    size_t stride;
    status st = loader_find(loader, &tensor, name, hidden, 0);

    if (!st) {
        assert(tensor);
        st = loader_part(loader, &data, &stride, DTYPE_F32, tensor, &part);
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

/* What this rank takes of the matrices. */
struct parts {
    struct part queries, keys, heads, mlp, down, vocab;
};

static struct parts parts_of(const struct model *model)
{
    const struct model_config *c = &model->config;
    const struct split *s = &model->split;
    int d = c->head_dim;

    return (struct parts){
        .queries = rows_of(c->query_heads * d, c->hidden, s->query_first * d, s->query_heads * d),
        .keys = rows_of(c->kv_heads * d, c->hidden, s->kv_first * d, s->kv_heads * d),
        .heads = columns_of(c->hidden, c->query_heads * d, s->query_first * d, s->query_heads * d),
        .mlp = rows_of(c->intermediate, c->hidden, s->mlp_first, s->mlp_columns),
        .down = columns_of(c->hidden, c->intermediate, s->mlp_first, s->mlp_columns),
        .vocab = rows_of(c->vocab, c->hidden, s->vocab_first, s->vocab_rows),
    };
}

static size_t packed_part(const struct device *dev, const struct part *part)
{
    return op_packed_bytes(dev, part->rows, part->cols);
}

/* Room for all that load_packed() is asked for; none where weights are used as they lie. */
static status reserve_packed(struct loader *loader)
{
    const struct parts parts = parts_of(loader->model);
    const struct device *dev = loader->dev;
    size_t layer = packed_part(dev, &parts.queries) + 2 * packed_part(dev, &parts.keys) +
                   packed_part(dev, &parts.heads) + 2 * packed_part(dev, &parts.mlp) +
                   packed_part(dev, &parts.down);
    size_t bytes = (size_t)loader->model->config.layers * layer + packed_part(dev, &parts.vocab);
    void *buffer = NULL;

    if (bytes == 0 || device_int8_weights(dev)) {
        return STATUS_OK;
    }
    status st = loader_buffer(loader, &buffer, bytes, "weights");
    loader->memory->packed = buffer;
    return st;
}

static status load_layer(struct loader *loader, struct layer_weights *out, int layer)
{
    const struct parts parts = parts_of(loader->model);
    const struct {
        struct matrix *out;
        const char *name;
        const struct part *part;
    } matrices[] = {
        {&out->q, "self_attn.q_proj", &parts.queries}, {&out->k, "self_attn.k_proj", &parts.keys},
        {&out->v, "self_attn.v_proj", &parts.keys},    {&out->o, "self_attn.o_proj", &parts.heads},
        {&out->gate, "mlp.gate_proj", &parts.mlp},     {&out->up, "mlp.up_proj", &parts.mlp},
        {&out->down, "mlp.down_proj", &parts.down},
    };
    char name[MAX_NAME];

    for (size_t i = 0; i < sizeof(matrices) / sizeof(matrices[0]); i++) {
        snprintf(name, sizeof(name), "model.layers.%d.%s.weight", layer, matrices[i].name);
        status st = loader_linear(loader, matrices[i].out, name, matrices[i].part);
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
    status st = loader_buffer(loader, &buffer, bytes, "inv_freq");

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
    status st = loader_find(loader, &embed, "model.embed_tokens.weight", part->total_rows,
                            part->total_cols);
    enum dtype dtype = DTYPE_F32;

    if (st || !head) {
        return st;
    }
    assert(embed);
    st = loader_dtype(&dtype, embed);
    if (st) {
        return st;
    }
    size_t row_bytes = (size_t)part->total_cols * dtype_bytes(dtype);
    size_t offset = (size_t)part->row * row_bytes;
    bool same = strcmp(head->dtype, embed->dtype) == 0 && head->bytes == embed->bytes &&
                memcmp((const char *)head->data + offset, (const char *)embed->data + offset,
                       (size_t)part->rows * row_bytes) == 0;
    loader_forget(head);
    if (!same) {
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s: tensor lm_head.weight: not model.embed_tokens.weight, although "
                           "config.json says tie_word_embeddings",
                           head->path);
    }
    return STATUS_OK;
}

/* A tied output is the embedding, unless that is in int8: then it is a rounded copy. */
static status load_ends(struct loader *loader)
{
    struct model *model = loader->model;
    static const char *const embed = "model.embed_tokens.weight";
    const bool tied = model->config.tied_embeddings, int8 = device_int8_weights(loader->dev);
    const struct part vocab = parts_of(model).vocab;
    status st = tied ? check_tied(loader, &vocab) : STATUS_OK;

    if (!st && tied && !int8) {
        st = loader_linear(loader, &model->embed, embed, &vocab);
        model->lm_head = model->embed;
    } else if (!st) {
        st = loader_matrix(loader, &model->embed, embed, &vocab);
        if (!st) {
            st = loader_linear(loader, &model->lm_head, tied ? embed : "lm_head.weight", &vocab);
        }
    }
    if (!st) {
        st = load_norm(loader, &model->final_norm, "model.norm.weight");
    }
    return st ? st : load_inv_freq(loader);
}

/* For converted rows of the widest matrix. */
static size_t staging_bytes(const struct model_config *c)
{
    size_t widest = (size_t)c->query_heads * (size_t)c->head_dim;

    widest = widest > (size_t)c->hidden ? widest : (size_t)c->hidden;
    widest = widest > (size_t)c->intermediate ? widest : (size_t)c->intermediate;
    size_t bytes = OP_PACK_ROWS * widest * sizeof(float);
    return bytes > STAGING_BYTES ? bytes : STAGING_BYTES;
}

static status load_all(struct model *model, struct device *dev, const char *dir)
{
    struct model_memory *memory = model->memory;
    memory->dev = dev;
    memory->max_buffers = (size_t)model->config.layers * BUFFERS_PER_LAYER + BUFFERS_BESIDE;
    memory->buffers = calloc(memory->max_buffers, sizeof(memory->buffers[0]));
    memory->staging_bytes = staging_bytes(&model->config);
    memory->staging = malloc(memory->staging_bytes);
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
        st = reserve_packed(&loader);
    }
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
