/* check.cu - errors of the CUDA runtime as sentences. */
#include "kernels/cuda/cuda.h"

status cuda_check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) {
        return STATUS_OK;
    }
    return status_fail(error == cudaErrorMemoryAllocation ? STATUS_EXHAUSTED : STATUS_INTERNAL,
                       "cuda: %s: %s", what, cudaGetErrorString(error));
}
