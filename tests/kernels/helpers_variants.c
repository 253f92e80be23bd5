/* helpers_variants.c - the variants of the CPU backend: its instruction sets. */
#include "tests/kernels/helpers_act.h"

#include <assert.h>
#include <stddef.h>

const struct variant variants[] = {
    {"generic", DTYPE_F32},  {"avx2", DTYPE_F32},         {"avx512", DTYPE_F32},
    {"generic", DTYPE_BF16}, {"avx2", DTYPE_BF16},        {"avx512", DTYPE_BF16},
    {NULL, DTYPE_F32},       {"avx512_bf16", DTYPE_BF16}, {NULL, DTYPE_BF16},
};
const int n_variants = sizeof(variants) / sizeof(variants[0]);

struct device *act_device(const struct variant *variant, int threads)
{
    struct device_config config = {
        .dtype = variant->dtype, .threads = threads, .max_isa = variant->isa};
    struct device *dev = NULL;
    status st = device_open(&dev, "cpu", &config);

    assert(!st && dev);
    return dev;
}
