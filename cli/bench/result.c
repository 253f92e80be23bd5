#include "cli/bench/result.h"

#include "cli/json_text.h"
#include "cli/print.h"
#include "common/file.h"
#include "common/json.h"
#include "common/method.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

void result_options_rows(struct option *rows, struct result_options *options)
{
    struct result_options *r = options;
    const struct option table[RESULT_OPTIONS] = {
        {"save-result", OPTION_FLAG, &r->save, NULL, "write a JSON file", 0, 0},
        {"result-dir", OPTION_STRING, &r->dir, "DIR", "in this folder", 0, 0},
        {"result-filename", OPTION_STRING, &r->filename, "NAME", "of this name", 0, 0},
        {"label", OPTION_STRING, &r->label, "TEXT", "what reports call this run", 0, 0},
        {"metadata", OPTION_LIST, &r->metadata_words, "KEY=VALUE", "goes into the JSON", 0, 0},
        {"json", OPTION_FLAG, &r->json, NULL, "the JSON on stdout instead of a table", 0, 0},
        {"quiet", OPTION_FLAG, &r->quiet, NULL, "no progress", 0, 0},
    };

    memcpy(rows, table, sizeof(table));
}

status result_options_add_metadata(struct result_options *options, const char *word)
{
    const char *equals = strchr(word, '=');

    if (!equals || equals == word) {
        return status_fail(STATUS_INVALID, "--metadata: \"%s\" is not KEY=VALUE", word);
    }
    if (options->n_metadata == RESULT_MAX_METADATA) {
        return status_fail(STATUS_INVALID, "more than %d pairs of metadata", RESULT_MAX_METADATA);
    }
    options->metadata[options->n_metadata++] = word;
    return STATUS_OK;
}

status result_options_check(struct result_options *options)
{
    status st = STATUS_OK;

    options->save = options->save || options->detailed || options->filename;
    for (int i = 0; !st && i < options->metadata_words.n; i++) {
        st = result_options_add_metadata(options, options->metadata_words.values[i]);
    }
    return st;
}

static void write_time(char *out, size_t out_size, const char *format)
{
    time_t now = time(NULL);
    struct tm parts;

    gmtime_r(&now, &parts);
    strftime(out, out_size, format, &parts);
}

static bool add_bytes(cJSON *object, const char *key, const ProtobufCBinaryData *text)
{
    return json_text_add(object, key, (const char *)text->data, text->len);
}

static bool add_model(cJSON *object, const Winnow__V1__Model *m)
{
    cJSON *o = cJSON_AddObjectToObject(object, "model");

    return o && add_bytes(o, "architecture", &m->architecture) &&
           add_bytes(o, "dtype", &m->dtype) && json_text_add_whole(o, "layers", m->layers) &&
           json_text_add_whole(o, "hidden_size", m->hidden_size) &&
           json_text_add_whole(o, "query_heads", m->query_heads) &&
           json_text_add_whole(o, "kv_heads", m->kv_heads) &&
           json_text_add_whole(o, "head_dim", m->head_dim) &&
           json_text_add_whole(o, "max_context", m->max_context) &&
           json_text_add_whole(o, "tensor_parallel", m->tensor_parallel);
}

cJSON *result_create(const char *command, const struct result_options *options,
                     const Winnow__V1__Model *model)
{
    cJSON *o = cJSON_CreateObject();
    const char *label = options->label ? options->label : "";
    char date[32];

    write_time(date, sizeof(date), "%Y%m%d-%H%M%S");
    bool ok = o && cJSON_AddStringToObject(o, "winnow_bench", command) &&
              cJSON_AddStringToObject(o, "winnow_version", WINNOW_VERSION) &&
              cJSON_AddStringToObject(o, "date", date) &&
              cJSON_AddStringToObject(o, "endpoint_type", "winnow.v1") &&
              cJSON_AddStringToObject(o, "backend", "winnow") &&
              json_text_add(o, "label", label, strlen(label)) &&
              add_bytes(o, "model_id", &model->name) &&
              add_bytes(o, "tokenizer_id", &model->name) && add_model(o, model);
    if (!ok) {
        cJSON_Delete(o);
        return NULL;
    }
    return o;
}

static bool add_given(cJSON *o, const char *key, double value, bool given)
{
    return !given || cJSON_AddNumberToObject(o, key, value);
}

static bool add_word(cJSON *o, const char *key, const char *value)
{
    return !value || json_text_add(o, key, value, strlen(value));
}

bool result_add_compression(cJSON *object, const struct compression_options *c)
{
    const int64_t unset = INT64_MIN;
    cJSON *o = cJSON_AddObjectToObject(object, "compression");

    return o && add_given(o, "retain_rate", c->retain_rate, !isnan(c->retain_rate)) &&
           add_given(o, "capacity", (double)c->capacity, c->capacity != unset) &&
           add_given(o, "window", (double)c->window, c->window != unset) &&
           add_given(o, "kernel", (double)c->kernel, c->kernel != unset) &&
           add_given(o, "tsp_layer", (double)c->tsp_layer, c->tsp_layer != unset) &&
           add_given(o, "tsp_rate", c->tsp_rate, !isnan(c->tsp_rate)) &&
           add_given(o, "tsp_len", (double)c->tsp_len, c->tsp_len != unset) &&
           add_word(o, "pooling", c->pooling) && add_word(o, "granularity", c->granularity) &&
           add_word(o, "group_reduce", c->group_reduce) &&
           add_word(o, "reduce_stage", c->reduce_stage);
}

bool result_add_metadata(cJSON *object, const struct result_options *options)
{
    bool ok = true;

    for (int i = 0; ok && i < options->n_metadata; i++) {
        const char *equals = strchr(options->metadata[i], '=');
        char key[256];
        int n = (int)(equals - options->metadata[i]);
        snprintf(key, sizeof(key), "%.*s", n, options->metadata[i]);
        if (cJSON_HasObjectItem(object, key)) {
            snprintf(key, sizeof(key), "metadata_%.*s", n, options->metadata[i]);
        }
        ok = json_text_add(object, key, equals + 1, strlen(equals + 1));
    }
    return ok;
}

/* ---- where it goes ---- */

static status choose_path(char *out, size_t out_size, const struct result_options *options,
                          const char *stem)
{
    char name[NAME_MAX];
    char date[32];
    int n;

    write_time(date, sizeof(date), "%Y%m%d-%H%M%S");
    if (options->filename) {
        n = snprintf(name, sizeof(name), "%s", options->filename);
    } else {
        n = snprintf(name, sizeof(name), "%s-%s.json", stem, date);
    }
    if (n >= (int)sizeof(name)) {
        return status_fail(STATUS_INVALID, "the name of the result file is too long");
    }
    if (!options->dir) {
        snprintf(out, out_size, "%s", name);
        return STATUS_OK;
    }
    if (mkdir(options->dir, 0777) != 0 && errno != EEXIST) {
        return status_fail(STATUS_INTERNAL, "%s: %s", options->dir, strerror(errno));
    }
    return file_join(out, out_size, options->dir, name);
}

status result_deliver(const cJSON *object, const struct result_options *options, const char *stem)
{
    char path[PATH_MAX];
    char *text = cJSON_Print(object);
    status st = STATUS_OK;

    if (!text) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the result");
    }
    if (options->json) {
        print_out("%s\n", text);
    }
    if (options->save) {
        st = choose_path(path, sizeof(path), options, stem);
        st = st ? st : print_file(path, text);
        if (!st && !options->quiet) {
            print_note("written: %s\n", path);
        }
    }
    free(text);
    return st;
}

status result_read(cJSON **out, const char *path)
{
    char *text = NULL;
    size_t bytes = 0;
    cJSON *object = NULL;
    status st = file_read(&text, &bytes, path, RESULT_MAX_FILE);

    if (st) {
        return st;
    }
    st = json_parse(&object, path, text, bytes);
    free(text);
    if (st) {
        return st;
    }
    if (!cJSON_IsString(cJSON_GetObjectItemCaseSensitive(object, "winnow_bench"))) {
        cJSON_Delete(object);
        return status_fail(STATUS_INVALID, "%s: not a result of winnow bench", path);
    }
    *out = object;
    return STATUS_OK;
}
