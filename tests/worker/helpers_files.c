#include "helpers_files.h"

#include "tests/check.h"
#include "worker/convert.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *make_directory(void)
{
    char *dir = strdup("/tmp/winnow_test_XXXXXX");

    assert_non_null(dir);
    assert_non_null(mkdtemp(dir));
    return dir;
}

void remove_directory(char *dir)
{
    DIR *list = opendir(dir);
    struct dirent *entry;
    char path[512];

    assert_non_null(list);
    while ((entry = readdir(list)) != NULL) {
        if (entry->d_name[0] != '.') {
            snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
            assert_int_equal(unlink(path), 0);
        }
    }
    closedir(list);
    assert_int_equal(rmdir(dir), 0);
    free(dir);
}

static FILE *open_for_writing(const char *dir, const char *name)
{
    char path[512];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    return file;
}

static void put(FILE *file, const void *data, size_t bytes)
{
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
}

void write_bytes(const char *dir, const char *name, const void *data, size_t bytes)
{
    FILE *file = open_for_writing(dir, name);

    put(file, data, bytes);
    assert_int_equal(fclose(file), 0);
}

void write_text(const char *dir, const char *name, const char *text)
{
    write_bytes(dir, name, text, strlen(text));
}

static void put_header(FILE *file, const char *header)
{
    uint64_t length = strlen(header);

    for (int i = 0; i < 8; i++) {
        unsigned char byte = (unsigned char)(length >> (8 * i));
        put(file, &byte, 1);
    }
    put(file, header, length);
}

void write_safetensors(const char *dir, const char *name, const char *header, const void *data,
                       size_t bytes)
{
    FILE *file = open_for_writing(dir, name);

    put_header(file, header);
    put(file, data, bytes);
    assert_int_equal(fclose(file), 0);
}

float small_value(const char *tensor, size_t index)
{
    uint32_t hash = 2166136261u;

    for (; *tensor; tensor++) {
        hash = (hash ^ (unsigned char)*tensor) * 16777619u;
    }
    hash = (hash ^ (uint32_t)index) * 2654435761u;
    hash ^= hash >> 15;
    return (float)((int)(hash % 255) - 127) / 64.0f;
}

struct entry {
    char name[96];
    int rows, cols; /* cols 0: a vector */
};

enum { MAX_ENTRIES = TINY_LAYERS * 9 + 3 };

static void add(struct entry *entries, int *n, int layer, const char *name, int rows, int cols)
{
    struct entry *entry = &entries[(*n)++];

    assert_true(*n <= MAX_ENTRIES);
    if (layer < 0) {
        snprintf(entry->name, sizeof(entry->name), "%s.weight", name);
    } else {
        snprintf(entry->name, sizeof(entry->name), "model.layers.%d.%s.weight", layer, name);
    }
    entry->rows = rows;
    entry->cols = cols;
}

static int list_entries(struct entry *entries, bool tied)
{
    enum { QUERIES = TINY_QUERY_HEADS * TINY_HEAD_DIM, KEYS = TINY_KV_HEADS * TINY_HEAD_DIM };
    int n = 0;

    add(entries, &n, -1, "model.embed_tokens", TINY_VOCAB, TINY_HIDDEN);
    for (int layer = 0; layer < TINY_LAYERS; layer++) {
        add(entries, &n, layer, "input_layernorm", TINY_HIDDEN, 0);
        add(entries, &n, layer, "self_attn.q_proj", QUERIES, TINY_HIDDEN);
        add(entries, &n, layer, "self_attn.k_proj", KEYS, TINY_HIDDEN);
        add(entries, &n, layer, "self_attn.v_proj", KEYS, TINY_HIDDEN);
        add(entries, &n, layer, "self_attn.o_proj", TINY_HIDDEN, QUERIES);
        add(entries, &n, layer, "post_attention_layernorm", TINY_HIDDEN, 0);
        add(entries, &n, layer, "mlp.gate_proj", TINY_MLP, TINY_HIDDEN);
        add(entries, &n, layer, "mlp.up_proj", TINY_MLP, TINY_HIDDEN);
        add(entries, &n, layer, "mlp.down_proj", TINY_HIDDEN, TINY_MLP);
    }
    add(entries, &n, -1, "model.norm", TINY_HIDDEN, 0);
    if (!tied) {
        add(entries, &n, -1, "lm_head", TINY_VOCAB, TINY_HIDDEN);
    }
    return n;
}

static uint16_t to_half(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    if (value == 0) {
        return 0;
    }
    uint32_t exponent = (bits >> 23 & 0xff) - 127 + 15;
    return (uint16_t)(bits >> 16 & 0x8000) | (uint16_t)(exponent << 10) |
           (uint16_t)(bits >> 13 & 0x3ff);
}

static void put_entry(FILE *file, const struct entry *entry, enum dtype dtype)
{
    size_t n = (size_t)entry->rows * (entry->cols ? (size_t)entry->cols : 1);

    for (size_t i = 0; i < n; i++) {
        float value = small_value(entry->name, i);
        uint16_t half = to_half(value);
        if (dtype == DTYPE_F32) {
            put(file, &value, sizeof(value));
        } else {
            if (dtype == DTYPE_BF16) {
                convert(&half, DTYPE_BF16, &value, DTYPE_F32, 1);
            }
            put(file, &half, sizeof(half));
        }
    }
}

static size_t describe(char *out, size_t size, const struct entry *entry, size_t begin,
                       const struct tiny_options *options)
{
    static const char *const names[] = {"F32", "BF16", "F16"};
    size_t end = begin + (size_t)entry->rows * (entry->cols ? (size_t)entry->cols : 1) *
                             dtype_bytes(options->dtype);
    bool turn = options->reshaped && strcmp(options->reshaped, entry->name) == 0;
    char shape[64];

    if (entry->cols) {
        snprintf(shape, sizeof(shape), "%d,%d", turn ? entry->cols : entry->rows,
                 turn ? entry->rows : entry->cols);
    } else {
        snprintf(shape, sizeof(shape), "%d", entry->rows);
    }
    snprintf(out + strlen(out), size - strlen(out),
             "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
             out[1] ? "," : "", entry->name, names[options->dtype], shape, begin, end);
    return end;
}

/* One file with the entries whose number modulo `files` is `index`. */
static void write_part(const char *dir, const char *name, const struct entry *entries, int n,
                       int index, int files, const struct tiny_options *options)
{
    char header[8192] = "{";
    size_t offset = 0;
    bool extra = options->extra && index == 0;

    for (int i = index; i < n; i += files) {
        if (!options->skip || strcmp(options->skip, entries[i].name) != 0) {
            offset = describe(header, sizeof(header), &entries[i], offset, options);
        }
    }
    size_t used = strlen(header);
    if (extra) {
        used += (size_t)snprintf(header + used, sizeof(header) - used,
                                 ",%s,\"data_offsets\":[%zu,%zu]}", options->extra, offset,
                                 offset + options->extra_bytes);
    }
    used += (size_t)snprintf(header + used, sizeof(header) - used, "}");
    while (options->misaligned ? used % 2 == 0 : used % 8 != 0) {
        used += (size_t)snprintf(header + used, sizeof(header) - used, " ");
    }
    FILE *file = open_for_writing(dir, name);
    put_header(file, header);
    for (int i = index; i < n; i += files) {
        if (!options->skip || strcmp(options->skip, entries[i].name) != 0) {
            put_entry(file, &entries[i], options->dtype);
        }
    }
    for (size_t i = 0; extra && i < options->extra_bytes; i++) {
        put(file, "", 1);
    }
    assert_int_equal(fclose(file), 0);
}

static void write_index(const char *dir, const struct entry *entries, int n)
{
    char text[8192] = "{\"metadata\":{\"total_size\":1},\"weight_map\":{";

    for (int i = 0; i < n; i++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof(text) - used, "%s\"%s\":\"model-%05d-of-00002.safetensors\"",
                 i ? "," : "", entries[i].name, i % 2 + 1);
    }
    size_t used = strlen(text);
    snprintf(text + used, sizeof(text) - used, "}}");
    write_text(dir, "model.safetensors.index.json", text);
}

void write_tiny_model(const char *dir, const struct tiny_options *options)
{
    struct entry entries[MAX_ENTRIES];
    int n = list_entries(entries, options->tied);
    char config[1024];

    snprintf(config, sizeof(config),
             "{\"model_type\":\"llama\",\"vocab_size\":%d,\"hidden_size\":%d,"
             "\"num_hidden_layers\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,"
             "\"head_dim\":%d,\"intermediate_size\":%d,\"max_position_embeddings\":128,"
             "\"rope_theta\":10000.0,\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":%s,"
             "\"torch_dtype\":\"%s\"}",
             TINY_VOCAB, TINY_HIDDEN, TINY_LAYERS, TINY_QUERY_HEADS, TINY_KV_HEADS, TINY_HEAD_DIM,
             TINY_MLP, options->tied ? "true" : "false", dtype_name(options->dtype));
    write_text(dir, "config.json", config);
    if (options->sharded) {
        write_part(dir, "model-00001-of-00002.safetensors", entries, n, 0, 2, options);
        write_part(dir, "model-00002-of-00002.safetensors", entries, n, 1, 2, options);
        write_index(dir, entries, n);
    } else {
        write_part(dir, "model.safetensors", entries, n, 0, 1, options);
    }
}
