/* cuda_stub.c - stands in for cuda/ in a build without CUDA, so that no caller needs an #ifdef. */
#include "kernels/backend.h"

static status stub_open(struct device **out, const struct device_config *config)
{
    (void)out;
    return status_fail(STATUS_NOT_FOUND, "cuda: GPU %d was asked for, but this build has no CUDA",
                       config->index);
}

/* The other slots stay empty: without an open device they cannot be reached. */
const struct backend backend_cuda = {.name = "cuda", .open = stub_open};
