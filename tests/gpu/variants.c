/* variants.c - the variants of a real GPU, for the tests of tests/kernels: all dtypes. */
#include "tests/kernels/helpers_act.h"

#include <assert.h>
#include <stddef.h>

const struct variant variants[] = {
    {"cuda", DTYPE_F32},
    {"cuda", DTYPE_BF16},
    {"cuda", DTYPE_F16},
};
const int n_variants = sizeof(variants) / sizeof(variants[0]);

struct device *act_device(const struct variant *variant, int threads)
{
    struct device_config config = {.dtype = variant->dtype, .threads = threads};
    struct device *dev = NULL;
    status st = device_open(&dev, "cuda", &config);

    assert(!st && dev);
    return dev;
}
