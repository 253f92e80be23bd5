#include "worker/safetensors.h"

#include "common/file.h"
#include "common/json.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8 };

struct safetensors {
    char *path;
    const void *mapped; /* NULL when borrowed */
    size_t mapped_bytes;
    struct tensor *tensors; /* names are owned */
    size_t n;
};

static const struct {
    const char *name;
    unsigned bytes;
} dtypes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1},
    {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},     {"U32", 4},
    {"F32", 4},  {"F64", 8}, {"I64", 8}, {"U64", 8},     {"C64", 8},
};

static status tensor_fail(const struct tensor *tensor, const char *field, const char *problem)
{
    return status_fail(STATUS_INVALID, "%s: tensor %.128s: %s: %s", tensor->path, tensor->name,
                       field, problem);
}

static status read_dtype(struct tensor *out, unsigned *element, const cJSON *item)
{
    char problem[128];

    if (!cJSON_IsString(item)) {
        return tensor_fail(out, "dtype", item ? "not a string" : "missing");
    }
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(item->valuestring, dtypes[i].name) == 0) {
            out->dtype = dtypes[i].name;
            *element = dtypes[i].bytes;
            return STATUS_OK;
        }
    }
    snprintf(problem, sizeof(problem), "%.32s is unknown", item->valuestring);
    return tensor_fail(out, "dtype", problem);
}

/* *elements is the product of the shape. */
static status read_shape(struct tensor *out, uint64_t *elements, const cJSON *list)
{
    const cJSON *item;
    bool overflow = false;

    if (!cJSON_IsArray(list)) {
        return tensor_fail(out, "shape", list ? "not a list" : "missing");
    }
    *elements = 1;
    cJSON_ArrayForEach(item, list)
    {
        uint64_t size;
        if (out->dims == SAFETENSORS_MAX_DIMS) {
            return tensor_fail(out, "shape", "more than 8 dimensions");
        }
        if (!json_get_size(item, &size)) {
            return tensor_fail(out, "shape", "not a list of whole numbers");
        }
        out->shape[out->dims++] = size;
        overflow |= __builtin_mul_overflow(*elements, size, elements);
    }
    return overflow ? tensor_fail(out, "shape", "the product of its sizes overflows") : STATUS_OK;
}

static status read_offsets(struct tensor *out, uint64_t expected, const cJSON *list,
                           const char *data, size_t data_bytes)
{
    char problem[160];
    uint64_t begin;
    uint64_t end;

    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != 2 ||
        !json_get_size(cJSON_GetArrayItem(list, 0), &begin) ||
        !json_get_size(cJSON_GetArrayItem(list, 1), &end)) {
        return tensor_fail(out, "data_offsets",
                           list ? "not a list of two whole numbers" : "missing");
    }
    if (begin > end || end > data_bytes) {
        snprintf(problem, sizeof(problem), "[%llu, %llu] is outside the file's %zu bytes of data",
                 (unsigned long long)begin, (unsigned long long)end, data_bytes);
        return tensor_fail(out, "data_offsets", problem);
    }
    if (end - begin != expected) {
        snprintf(problem, sizeof(problem),
                 "[%llu, %llu] holds %llu bytes, dtype and shape need %llu",
                 (unsigned long long)begin, (unsigned long long)end,
                 (unsigned long long)(end - begin), (unsigned long long)expected);
        return tensor_fail(out, "data_offsets", problem);
    }
    out->data = data + begin;
    out->bytes = (size_t)(end - begin);
    return STATUS_OK;
}

static status read_tensor(struct tensor *out, const cJSON *item, const char *data,
                          size_t data_bytes)
{
    unsigned element = 0;
    uint64_t elements = 0;
    uint64_t bytes;

    if (!cJSON_IsObject(item)) {
        return tensor_fail(out, "description", "not an object");
    }
    status st = read_dtype(out, &element, cJSON_GetObjectItemCaseSensitive(item, "dtype"));
    if (!st) {
        st = read_shape(out, &elements, cJSON_GetObjectItemCaseSensitive(item, "shape"));
    }
    if (!st && __builtin_mul_overflow(elements, element, &bytes)) {
        st = tensor_fail(out, "shape", "the product of its sizes overflows");
    }
    if (!st) {
        st = read_offsets(out, bytes, cJSON_GetObjectItemCaseSensitive(item, "data_offsets"), data,
                          data_bytes);
    }
    return st;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

/* An empty tensor comes before what begins at the same place. */
static int by_place(const void *a, const void *b)
{
    const struct tensor *x = a;
    const struct tensor *y = b;

    if (x->data != y->data) {
        return (const char *)x->data < (const char *)y->data ? -1 : 1;
    }
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static status check_cover(struct safetensors *file, const char *data, size_t data_bytes)
{
    const char *next = data;

    qsort(file->tensors, file->n, sizeof(file->tensors[0]), by_place);
    for (size_t i = 0; i < file->n; i++) {
        const struct tensor *tensor = &file->tensors[i];
        const char *begin = tensor->data;
        if (begin < next) {
            return tensor_fail(tensor, "data_offsets", "overlaps another tensor");
        }
        if (begin > next) {
            return tensor_fail(tensor, "data_offsets", "unused bytes before it");
        }
        next = begin + tensor->bytes;
    }
    if (next != data + data_bytes) {
        return status_fail(STATUS_INVALID, "%s: %zu bytes at the end belong to no tensor",
                           file->path, (size_t)(data + data_bytes - next));
    }
    return STATUS_OK;
}

static status check_names(struct safetensors *file)
{
    qsort(file->tensors, file->n, sizeof(file->tensors[0]), by_name);
    for (size_t i = 1; i < file->n; i++) {
        if (strcmp(file->tensors[i - 1].name, file->tensors[i].name) == 0) {
            return tensor_fail(&file->tensors[i], "name", "is there twice");
        }
    }
    return STATUS_OK;
}

static status read_tensors(struct safetensors *file, const cJSON *header, const char *data,
                           size_t data_bytes)
{
    int count = cJSON_GetArraySize(header);
    const cJSON *item;

    file->tensors = calloc((size_t)count + 1, sizeof(file->tensors[0]));
    if (!file->tensors) {
        return status_fail(STATUS_EXHAUSTED, "%s: no memory for its header", file->path);
    }
    cJSON_ArrayForEach(item, header)
    {
        if (strcmp(item->string, "__metadata__") == 0) {
            continue;
        }
        struct tensor *tensor = &file->tensors[file->n];
        tensor->path = file->path;
        tensor->name = strdup(item->string);
        if (!tensor->name) {
            return status_fail(STATUS_EXHAUSTED, "%s: no memory for its header", file->path);
        }
        file->n++;
        status st = read_tensor(tensor, item, data, data_bytes);
        if (st) {
            return st;
        }
    }
    status st = check_cover(file, data, data_bytes);
    return st ? st : check_names(file);
}

static status parse(struct safetensors *file, const char *data, size_t bytes)
{
    const unsigned char *length = (const unsigned char *)data;
    uint64_t header_bytes = 0;
    cJSON *header = NULL;

    if (bytes < LENGTH_BYTES) {
        return status_fail(STATUS_INVALID, "%s: %zu bytes are too short for a safetensors file",
                           file->path, bytes);
    }
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) {
        header_bytes = header_bytes << 8 | length[i];
    }
    if (header_bytes > bytes - LENGTH_BYTES || header_bytes > SAFETENSORS_MAX_HEADER) {
        return status_fail(STATUS_INVALID, "%s: header length: %llu is more than %s", file->path,
                           (unsigned long long)header_bytes,
                           header_bytes > bytes - LENGTH_BYTES ? "the file has"
                                                               : "the limit of 16 MiB");
    }
    data += LENGTH_BYTES;
    status st = json_parse(&header, file->path, data, (size_t)header_bytes);
    if (!st) {
        st = read_tensors(file, header, data + header_bytes,
                          bytes - LENGTH_BYTES - (size_t)header_bytes);
    }
    cJSON_Delete(header);
    return st;
}

status safetensors_parse(struct safetensors **out, const char *path, const void *data, size_t bytes)
{
    struct safetensors *file = calloc(1, sizeof(*file));
    status st = STATUS_EXHAUSTED;

    if (file) {
        file->path = strdup(path);
    }
    if (!file || !file->path) {
        st = status_fail(STATUS_EXHAUSTED, "%s: no memory for its header", path);
    } else {
        st = parse(file, data, bytes);
    }
    if (st) {
        safetensors_close(file);
        return st;
    }
    *out = file;
    return STATUS_OK;
}

status safetensors_open(struct safetensors **out, const char *path)
{
    const void *data = NULL;
    size_t bytes = 0;
    status st = file_map(&data, &bytes, path);

    if (st) {
        return st;
    }
    st = safetensors_parse(out, path, data, bytes);
    if (st) {
        file_unmap(data, bytes);
        return st;
    }
    (*out)->mapped = data;
    (*out)->mapped_bytes = bytes;
    return STATUS_OK;
}

void safetensors_close(struct safetensors *file)
{
    if (!file) {
        return;
    }
    for (size_t i = 0; i < file->n; i++) {
        free((void *)file->tensors[i].name);
    }
    free(file->tensors);
    file_unmap(file->mapped, file->mapped_bytes);
    free(file->path);
    free(file);
}

size_t safetensors_count(const struct safetensors *file)
{
    return file->n;
}

const struct tensor *safetensors_at(const struct safetensors *file, size_t index)
{
    assert(index < file->n);
    return &file->tensors[index];
}

const struct tensor *safetensors_find(const struct safetensors *file, const char *name)
{
    struct tensor key = {.name = name};

    return bsearch(&key, file->tensors, file->n, sizeof(file->tensors[0]), by_name);
}
