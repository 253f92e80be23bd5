#include "common/clock.h"
#include "kernels/op.h"
#include "tests/bench/limits.h"

#include <stdlib.h>

enum { SIZE = 8192, ROUNDS = 8 };
static const size_t matrix_bytes = (size_t)SIZE * SIZE * 2, copy_bytes = (size_t)2 << 30;

/* The best seconds of a product, and of a copy from one half of the memory to the other. */
static status best_of(struct device *dev, char *memory, double *product, double *copy)
{
    const struct matrix w = {.data = memory, .rows = SIZE, .cols = SIZE, .stride = SIZE};
    status st = STATUS_OK;

    *product = *copy = 1e30;
    for (int i = 0; !st && i < ROUNDS; i++) {
        double start = clock_ms();

        st = op_linear(dev, memory + 2 * matrix_bytes, DTYPE_BF16, memory + matrix_bytes, &w, SIZE);
        st = st ? st : device_sync(dev);
        double between = clock_ms();
        st = st ? st : device_copy(dev, memory + copy_bytes, memory, copy_bytes);
        st = st ? st : device_sync(dev);
        double end = clock_ms();
        *product = between - start < *product ? between - start : *product;
        *copy = end - between < *copy ? end - between : *copy;
    }
    return st;
}

status limits_measure_gpu(struct limits *out, struct device *dev)
{
    void *values = malloc(2 * matrix_bytes), *memory = NULL;
    double product, copy;
    status st = values ? STATUS_OK : status_fail(STATUS_EXHAUSTED, "no memory");

    if (!st) {
        limits_fill(values, 2 * matrix_bytes, DTYPE_BF16);
        st = device_alloc(dev, &memory, 2 * copy_bytes, "what limits are measured with");
    }
    st = st ? st : device_upload(dev, memory, values, 2 * matrix_bytes);
    st = st ? st : best_of(dev, memory, &product, &copy);
    if (!st) {
        out->gemm = 2.0 * SIZE * SIZE * SIZE / product * 1e3;
        out->read = 2.0 * (double)copy_bytes / copy * 1e3;
    }
    device_free(dev, memory);
    free(values);
    return st;
}
