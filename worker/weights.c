#include "worker/weights.h"

#include "common/file.h"
#include "common/json.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PATH = 4096 };

struct part {
    char name[256]; /* of the file, without the directory */
    struct safetensors *file;
};

struct entry {
    const struct tensor *tensor;
};

struct weights {
    struct part *parts;
    size_t n_parts;
    struct entry *entries;
    size_t n;
};

static status no_memory(const char *path)
{
    return status_fail(STATUS_EXHAUSTED, "%s: no memory for the list of tensors", path);
}

static status open_single(struct weights *weights, const char *path)
{
    weights->parts = calloc(1, sizeof(weights->parts[0]));
    if (!weights->parts) {
        return no_memory(path);
    }
    weights->n_parts = 1;
    status st = safetensors_open(&weights->parts[0].file, path);
    if (st) {
        return st;
    }
    size_t n = safetensors_count(weights->parts[0].file);
    weights->entries = calloc(n + 1, sizeof(weights->entries[0]));
    if (!weights->entries) {
        return no_memory(path);
    }
    for (size_t i = 0; i < n; i++) {
        weights->entries[i].tensor = safetensors_at(weights->parts[0].file, i);
    }
    weights->n = n;
    return STATUS_OK;
}

/* The file `name` of the directory, opened the first time that it is asked for. */
static status find_part(struct weights *weights, struct safetensors **out, const char *index,
                        const char *dir, const char *name)
{
    char path[MAX_PATH];

    for (size_t i = weights->n_parts; i > 0; i--) {
        if (strcmp(weights->parts[i - 1].name, name) == 0) {
            *out = weights->parts[i - 1].file;
            return STATUS_OK;
        }
    }
    struct part *part = &weights->parts[weights->n_parts];
    if (strchr(name, '/') || !name[0] || strlen(name) >= sizeof(part->name)) {
        return status_fail(STATUS_INVALID, "%s: weight_map: \"%.64s\" is not a file of its folder",
                           index, name);
    }
    if (weights->n_parts == WEIGHTS_MAX_FILES) {
        return status_fail(STATUS_INVALID, "%s: weight_map: more than %d files", index,
                           WEIGHTS_MAX_FILES);
    }
    status st = file_join(path, sizeof(path), dir, name);
    if (!st) {
        st = safetensors_open(&part->file, path);
    }
    if (st) {
        return st;
    }
    snprintf(part->name, sizeof(part->name), "%s", name);
    weights->n_parts++;
    *out = part->file;
    return STATUS_OK;
}

static int by_name(const void *a, const void *b)
{
    const struct entry *x = a;
    const struct entry *y = b;

    return strcmp(x->tensor->name, y->tensor->name);
}

static status read_map(struct weights *weights, const cJSON *map, const char *index,
                       const char *dir)
{
    const cJSON *item;

    if (!cJSON_IsObject(map)) {
        return status_fail(STATUS_INVALID, "%s: weight_map: %s", index,
                           map ? "not an object" : "missing");
    }
    weights->parts = calloc(WEIGHTS_MAX_FILES + 1, sizeof(weights->parts[0]));
    weights->entries = calloc((size_t)cJSON_GetArraySize(map) + 1, sizeof(weights->entries[0]));
    if (!weights->parts || !weights->entries) {
        return no_memory(index);
    }
    cJSON_ArrayForEach(item, map)
    {
        struct safetensors *file = NULL;
        if (!cJSON_IsString(item)) {
            return status_fail(STATUS_INVALID, "%s: weight_map: %.128s: not a string", index,
                               item->string);
        }
        status st = find_part(weights, &file, index, dir, item->valuestring);
        if (st) {
            return st;
        }
        weights->entries[weights->n].tensor = safetensors_find(file, item->string);
        if (!weights->entries[weights->n].tensor) {
            return status_fail(STATUS_INVALID, "%s: weight_map: %.128s is not in %.64s", index,
                               item->string, item->valuestring);
        }
        weights->n++;
    }
    qsort(weights->entries, weights->n, sizeof(weights->entries[0]), by_name);
    for (size_t i = 1; i < weights->n; i++) {
        if (by_name(&weights->entries[i - 1], &weights->entries[i]) == 0) {
            return status_fail(STATUS_INVALID, "%s: weight_map: %.128s is there twice", index,
                               weights->entries[i].tensor->name);
        }
    }
    return STATUS_OK;
}

static status open_sharded(struct weights *weights, const char *index, const char *dir)
{
    char *text = NULL;
    size_t bytes = 0;
    cJSON *json = NULL;
    status st = file_read(&text, &bytes, index, WEIGHTS_MAX_INDEX);

    if (st == STATUS_NOT_FOUND) {
        return status_fail(
            STATUS_NOT_FOUND,
            "%s: neither model.safetensors nor model.safetensors.index.json is there", dir);
    }
    if (!st) {
        st = json_parse(&json, index, text, bytes);
    }
    if (!st) {
        st = read_map(weights, cJSON_GetObjectItemCaseSensitive(json, "weight_map"), index, dir);
    }
    cJSON_Delete(json);
    free(text);
    return st;
}

status weights_open(struct weights **out, const char *dir)
{
    char path[MAX_PATH];
    struct weights *weights = calloc(1, sizeof(*weights));

    if (!weights) {
        return no_memory(dir);
    }
    status st = file_join(path, sizeof(path), dir, "model.safetensors");
    if (!st) {
        st = open_single(weights, path);
    }
    if (st == STATUS_NOT_FOUND) {
        free(weights->parts);
        *weights = (struct weights){0};
        st = file_join(path, sizeof(path), dir, "model.safetensors.index.json");
        st = st ? st : open_sharded(weights, path, dir);
    }
    if (st) {
        weights_close(weights);
        return st;
    }
    *out = weights;
    return STATUS_OK;
}

void weights_close(struct weights *weights)
{
    if (!weights) {
        return;
    }
    for (size_t i = 0; i < weights->n_parts; i++) {
        safetensors_close(weights->parts[i].file);
    }
    free(weights->parts);
    free(weights->entries);
    free(weights);
}

status weights_preload(const struct weights *weights)
{
    status st = STATUS_OK;

    for (size_t i = 0; !st && i < weights->n_parts; i++) {
        if (safetensors_count(weights->parts[i].file) > 0) {
            st = file_preload(safetensors_at(weights->parts[i].file, 0)->path);
        }
    }
    return st;
}

size_t weights_count(const struct weights *weights)
{
    return weights->n;
}

const struct tensor *weights_at(const struct weights *weights, size_t index)
{
    assert(index < weights->n);
    return weights->entries[index].tensor;
}

const struct tensor *weights_find(const struct weights *weights, const char *name)
{
    const struct tensor named = {.name = name};
    const struct entry key = {.tensor = &named};
    const struct entry *found =
        bsearch(&key, weights->entries, weights->n, sizeof(weights->entries[0]), by_name);

    return found ? found->tensor : NULL;
}
