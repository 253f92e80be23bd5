/* linear.cu - out = x w^T for a chunk of one prompt, by cuBLAS: 16 bits with float32 sums, or
 * float32 without TF32. */
#include "kernels/cuda/cuda.h"

static cudaDataType library_type(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : dtype == DTYPE_F16 ? CUDA_R_16F : CUDA_R_32F;
}

status cuda_linear(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                   const struct matrix *w, int rows)
{
    const float one = 1.0f, zero = 0.0f;
    cudaDataType in = library_type(dev->dtype), to = library_type(out_dtype);

    if (rows == 0) {
        return STATUS_OK;
    }
    /* Row-major matrices are the library's column-major ones transposed: out^T = w x^T. */
    cublasStatus_t st =
        cublasGemmEx(cuda_device(dev)->blas, CUBLAS_OP_T, CUBLAS_OP_N, w->rows, rows, w->cols, &one,
                     w->data, in, (int)w->stride, x, in, w->cols, &zero, out, to, w->rows,
                     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (st != CUBLAS_STATUS_SUCCESS) {
        return status_fail(STATUS_INTERNAL, "cuda: product of %d rows with %d x %d: cuBLAS: %s",
                           rows, w->rows, w->cols, cublasGetStatusString(st));
    }
    return STATUS_OK;
}
