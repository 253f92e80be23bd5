#include "worker/loader.h"

#include "worker/convert.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

status loader_buffer(struct loader *loader, void **out, size_t bytes, const char *name)
{
    struct model_memory *memory = loader->memory;

    assert(memory->n_buffers < memory->max_buffers);
    status st = device_alloc(memory->dev, out, bytes, name);
    if (st) {
        return st;
    }
    memory->buffers[memory->n_buffers++] = *out;
    return STATUS_OK;
}

status loader_dtype(enum dtype *out, const struct tensor *tensor)
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

status loader_find(const struct loader *loader, const struct tensor **out, const char *name,
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

void loader_forget(const struct tensor *tensor)
{
    advise(tensor->data, tensor->bytes, MADV_DONTNEED);
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
    size_t block = loader->memory->staging_bytes / to_stride;

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

status loader_part(struct loader *loader, const void **out, size_t *stride, enum dtype dtype,
                   const struct tensor *tensor, const struct part *part)
{
    enum dtype source = DTYPE_F32;
    status st = loader_dtype(&source, tensor);

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
    st = loader_buffer(loader, &buffer, elements * dtype_bytes(dtype), tensor->name);
    if (!st) {
        st = upload_part(loader, buffer, dtype, from, source, part);
    }
    if (st) {
        return status_note(st, "tensor %s", tensor->name);
    }
    loader_forget(tensor);
    *out = buffer;
    *stride = (size_t)part->cols;
    return STATUS_OK;
}

status loader_matrix(struct loader *loader, struct matrix *out, const char *name,
                     const struct part *part)
{
    const struct tensor *tensor = NULL;
    status st = loader_find(loader, &tensor, name, part->total_rows, part->total_cols);

    *out = (struct matrix){.rows = part->rows, .cols = part->cols};
    if (!st) {
        assert(tensor);
        st = loader_part(loader, &out->data, &out->stride, device_dtype(loader->dev), tensor, part);
    }
    return st;
}

/* A part on its way to where linear operations read it. */
struct linear {
    char *data;   /* in the layout of the device */
    float *scale; /* NULL: packed, not int8 */
};

/* `rows` are those from `first` of the part, a multiple of OP_PACK_ROWS. */
static status put_rows(struct device *dev, const struct linear *to, size_t first,
                       const struct matrix *rows)
{
    if (to->scale) {
        return op_quantize(dev, (int8_t *)to->data + first * (size_t)rows->cols, to->scale + first,
                           rows);
    }
    return op_pack(dev, to->data + op_packed_bytes(dev, (int)first, rows->cols), rows);
}

/* The same through the staging memory, block by block. */
static status put_staged(struct loader *loader, const struct linear *to, const char *from,
                         enum dtype source, const struct part *part)
{
    enum dtype act = device_dtype(loader->dev);
    char *staging = loader->memory->staging;
    size_t cols = (size_t)part->cols, stride = (size_t)part->total_cols * dtype_bytes(source);
    size_t row = cols * dtype_bytes(act);

    assert(row > 0);
    size_t block = loader->memory->staging_bytes / row / OP_PACK_ROWS * OP_PACK_ROWS;
    struct matrix w = {.data = staging, .cols = part->cols, .stride = cols};
    status st = STATUS_OK;

    for (size_t r = 0; r < (size_t)part->rows && !st; r += block) {
        size_t n = (size_t)part->rows - r < block ? (size_t)part->rows - r : block;

        for (size_t i = 0; i < n; i++) {
            convert(staging + i * row, act, from + (r + i) * stride, source, cols);
        }
        w.rows = (int)n;
        st = put_rows(loader->dev, to, r, &w);
    }
    return st;
}

/* The part as a copy that linear operations read. */
static status put_linear(struct loader *loader, const struct linear *to,
                         const struct tensor *tensor, const struct part *part)
{
    enum dtype source = DTYPE_F32;
    status st = loader_dtype(&source, tensor);

    if (st) {
        return st;
    }
    size_t offset = (size_t)part->row * (size_t)part->total_cols + (size_t)part->col;
    const char *from = (const char *)tensor->data + offset * dtype_bytes(source);
    struct matrix w = {
        .data = from, .rows = part->rows, .cols = part->cols, .stride = (size_t)part->total_cols};

    prefetch(from, part, dtype_bytes(source));
    if (source == device_dtype(loader->dev) && (uintptr_t)from % dtype_bytes(source) == 0) {
        st = put_rows(loader->dev, to, 0, &w);
    } else {
        st = put_staged(loader, to, from, source, part);
    }
    loader_forget(tensor);
    return st;
}

static status load_int8(struct loader *loader, struct matrix *out, const struct tensor *tensor,
                        const struct part *part)
{
    size_t scales = (size_t)part->rows * sizeof(float);
    size_t elements = (size_t)part->rows * (size_t)part->cols;
    void *buffer = NULL;
    status st = loader_buffer(loader, &buffer, scales + elements, tensor->name);

    if (st) {
        return st;
    }
    const struct linear to = {.data = (char *)buffer + scales, .scale = buffer};
    loader->model->bytes += scales + elements;
    *out = (struct matrix){.data = to.data,
                           .scale = to.scale,
                           .rows = part->rows,
                           .cols = part->cols,
                           .stride = (size_t)part->cols};
    return put_linear(loader, &to, tensor, part);
}

static status load_packed(struct loader *loader, struct matrix *out, const struct tensor *tensor,
                          const struct part *part)
{
    const struct linear to = {.data = loader->memory->packed};
    size_t bytes = op_packed_bytes(loader->dev, part->rows, part->cols);

    loader->memory->packed += bytes;
    loader->model->bytes += bytes;
    *out = (struct matrix){
        .data = to.data, .rows = part->rows, .cols = part->cols, .layout = MATRIX_PACKED};
    return put_linear(loader, &to, tensor, part);
}

status loader_linear(struct loader *loader, struct matrix *out, const char *name,
                     const struct part *part)
{
    const struct tensor *tensor = NULL;

    if (!device_int8_weights(loader->dev) && !loader->memory->packed) {
        return loader_matrix(loader, out, name, part);
    }
    status st = loader_find(loader, &tensor, name, part->total_rows, part->total_cols);
    if (st) {
        return st;
    }
    assert(tensor);
    st = device_int8_weights(loader->dev) ? load_int8(loader, out, tensor, part)
                                          : load_packed(loader, out, tensor, part);
    return st ? status_note(st, "tensor %s", name) : STATUS_OK;
}
