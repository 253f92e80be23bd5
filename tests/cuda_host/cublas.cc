/* cublas.cc - the stand-in's product: plain loops, float sums. */
#include "tests/cuda_host/block.h"

#include <cublas_v2.h>

#include <cstring>
#include <gpu_platform.h>
#include <vector>

struct cublasContext {
    cudaStream_t stream = nullptr;
};

namespace
{

float load(const void *data, cudaDataType type, size_t i)
{
    if (type == CUDA_R_32F) {
        return static_cast<const float *>(data)[i];
    }
    unsigned bits = static_cast<const uint16_t *>(data)[i];
    return type == CUDA_R_16F ? gpu_f16_low(bits) : __uint_as_float(bits << 16);
}

void store(void *data, cudaDataType type, size_t i, float value)
{
    if (type == CUDA_R_32F) {
        static_cast<float *>(data)[i] = value;
    } else {
        unsigned pair = type == CUDA_R_16F ? gpu_pack_f16(value, 0.0f) : gpu_pack_bf16(value, 0.0f);
        static_cast<uint16_t *>(data)[i] = static_cast<uint16_t>(pair);
    }
}

/* In several lanes, as libraries do: short chains, so small rounding. */
float dot(const float *a, const float *b, size_t n)
{
    constexpr size_t lanes = 64;
    float sum[lanes] = {}, total = 0.0f;

    for (size_t l = 0; l < n; l++) {
        sum[l % lanes] += a[l] * b[l];
    }
    for (float lane : sum) {
        total += lane;
    }
    return total;
}

/* c (m, n) column by column = a^T b; a (k, m), b (k, n). */
struct product {
    int m, n, k;
    const void *a, *b;
    void *c;
    cudaDataType in, out;
    size_t lda, ldb, ldc;

    void spoil() const
    {
        size_t bytes = out == CUDA_R_32F ? 4 : 2;

        for (size_t j = 0; j < static_cast<size_t>(n); j++) {
            memset(static_cast<char *>(c) + j * ldc * bytes, 0xff, static_cast<size_t>(m) * bytes);
        }
    }

    void run() const
    {
        std::vector<float> column(static_cast<size_t>(k)), row(static_cast<size_t>(k));

        for (size_t j = 0; j < static_cast<size_t>(n); j++) {
            for (size_t l = 0; l < column.size(); l++) {
                column[l] = load(b, in, j * ldb + l);
            }
            for (size_t i = 0; i < static_cast<size_t>(m); i++) {
                for (size_t l = 0; l < row.size(); l++) {
                    row[l] = load(a, in, i * lda + l);
                }
                store(c, out, j * ldc + i, dot(row.data(), column.data(), row.size()));
            }
        }
    }
};

} // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t *out)
{
    *out = new cublasContext;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream)
{
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void *memory, size_t)
{
    return memory ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t)
{
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS ? "success" : "an invalid value";
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa,
                            cublasOperation_t transb, int m, int n, int k, const void *alpha,
                            const void *a, cudaDataType a_type, int lda, const void *b,
                            cudaDataType b_type, int ldb, const void *beta, void *c,
                            cudaDataType c_type, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t algo)
{
    bool plain = transa == CUBLAS_OP_T && transb == CUBLAS_OP_N && a_type == b_type &&
                 *static_cast<const float *>(alpha) == 1.0f &&
                 *static_cast<const float *>(beta) == 0.0f && compute == CUBLAS_COMPUTE_32F &&
                 algo == CUBLAS_GEMM_DEFAULT;

    if (!plain || m <= 0 || n <= 0 || k <= 0 || lda < k || ldb < k || ldc < m) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    const product p = {m,
                       n,
                       k,
                       a,
                       b,
                       c,
                       a_type,
                       c_type,
                       static_cast<size_t>(lda),
                       static_cast<size_t>(ldb),
                       static_cast<size_t>(ldc)};
    cuda_host_enqueue(
        handle->stream, [p] { p.run(); }, [p] { p.spoil(); });
    return CUBLAS_STATUS_SUCCESS;
}
}
