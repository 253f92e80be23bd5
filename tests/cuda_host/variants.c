/* variants.c - the variants of the emulated GPU, for the tests of tests/kernels: all dtypes, and
 * orders in which the warps of a block run (another one where a test asks for 1 or 3 threads). */
#include "tests/cuda_host/cuda_host.h"
#include "tests/kernels/helpers_act.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

const struct variant variants[] = {
    {"forward", DTYPE_F32},
    {"reversed", DTYPE_BF16},
    {"forward", DTYPE_F16},
};
const int n_variants = sizeof(variants) / sizeof(variants[0]);

struct device *act_device(const struct variant *variant, int threads)
{
    struct device_config config = {.dtype = variant->dtype, .threads = 1};
    bool reversed = strcmp(variant->isa, "reversed") == 0;
    struct device *dev = NULL;
    status st = device_open(&dev, "cuda", &config);

    assert(!st && dev);
    cuda_host_set_schedule(threads == 3                 ? CUDA_HOST_ROTATING
                           : reversed == (threads != 1) ? CUDA_HOST_REVERSED
                                                        : CUDA_HOST_FORWARD);
    return dev;
}
