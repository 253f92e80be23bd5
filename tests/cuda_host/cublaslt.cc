/*
 * cublaslt.cc - the stand-in's product: plain loops, float sums.  It refuses what the library would
 * refuse, and what it would accept and then do wrong: an algorithm that was chosen for another
 * shape or a better alignment, a workspace that is too small.
 */
#include "tests/cuda_host/block.h"

#include <cublasLt.h>

#include <gpu_platform.h>
#include <vector>

struct cublasLtContext {
};
struct cublasLtMatmulDesc {
    int32_t transa = CUBLAS_OP_N, transb = CUBLAS_OP_N;
};
struct cublasLtMatrixLayout {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld;
};
struct cublasLtMatmulPreference {
    uint64_t workspace = 0;
    uint32_t reduction = 7, alignment[4] = {256, 256, 256, 256};
};

namespace
{

/* What an algorithm was chosen for: cublasLtMatmulAlgo_t::data. */
struct choice {
    uint64_t m, n, k, lda;
    uint64_t types; /* in, out */
    uint64_t alignments;
    uint64_t workspace;
    uint64_t made;
};
static_assert(sizeof(choice) == sizeof(cublasLtMatmulAlgo_t));

constexpr uint64_t MADE = 0x616c676f;
constexpr size_t SPLIT_ROWS = 256; /* with fewer, the columns are split */

float load(const void *data, cudaDataType_t type, size_t i)
{
    if (type == CUDA_R_32F) {
        return static_cast<const float *>(data)[i];
    }
    unsigned bits = static_cast<const uint16_t *>(data)[i];
    return type == CUDA_R_16F ? gpu_f16_low(bits) : __uint_as_float(bits << 16);
}

void store(void *data, cudaDataType_t type, size_t i, float value)
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

/* d (m, n) column by column = a^T b + beta d; a (k, m), b (k, n). */
struct product {
    cublasLtMatrixLayout a_layout, b_layout, d_layout;
    const void *a, *b;
    void *d;
    float beta;
    void *workspace;
    size_t workspace_bytes;

    void spoil() const
    {
        size_t bytes = d_layout.type == CUDA_R_32F ? 4 : 2;

        memset(workspace, 0xff, workspace_bytes); /* nothing else may be there */
        for (size_t j = 0; beta == 0.0f && j < d_layout.cols; j++) {
            memset(static_cast<char *>(d) + j * static_cast<size_t>(d_layout.ld) * bytes, 0xff,
                   d_layout.rows * bytes);
        }
    }

    void run() const
    {
        size_t k = a_layout.rows, lda = static_cast<size_t>(a_layout.ld),
               ldb = static_cast<size_t>(b_layout.ld), ldd = static_cast<size_t>(d_layout.ld);
        std::vector<float> column(k), row(k);

        for (size_t j = 0; j < d_layout.cols; j++) {
            for (size_t l = 0; l < k; l++) {
                column[l] = load(b, b_layout.type, j * ldb + l);
            }
            for (size_t i = 0; i < d_layout.rows; i++) {
                for (size_t l = 0; l < k; l++) {
                    row[l] = load(a, a_layout.type, i * lda + l);
                }
                float sum = dot(row.data(), column.data(), k);
                if (beta != 0.0f) { /* what is there may be NaN else */
                    sum += beta * load(d, d_layout.type, j * ldd + i);
                }
                store(d, d_layout.type, j * ldd + i, sum);
            }
        }
    }
};

bool sound(const cublasLtMatrixLayout *layout)
{
    return layout && layout->rows > 0 && layout->cols > 0 &&
           layout->ld >= static_cast<int64_t>(layout->rows);
}

/* The only product there is here: d (m, n) = a^T (k, m) b (k, n), of types that the library has. */
cublasStatus_t check(const cublasLtMatmulDesc *desc, const cublasLtMatrixLayout *a,
                     const cublasLtMatrixLayout *b, const cublasLtMatrixLayout *c,
                     const cublasLtMatrixLayout *d)
{
    if (!desc || !sound(a) || !sound(b) || !sound(c) || !sound(d) || a->rows != b->rows ||
        a->cols != d->rows || b->cols != d->cols || c->rows != d->rows || c->cols != d->cols) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    bool types =
        a->type == b->type && c->type == d->type && (d->type == CUDA_R_32F || d->type == a->type);
    bool plain = desc->transa == CUBLAS_OP_T && desc->transb == CUBLAS_OP_N;
    return types && plain ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

choice choice_for(const cublasLtMatrixLayout *a, const cublasLtMatrixLayout *d)
{
    return {d->rows,
            d->cols,
            a->rows,
            static_cast<uint64_t>(a->ld),
            static_cast<uint64_t>(a->type) << 32 | static_cast<uint64_t>(d->type),
            0,
            d->cols < SPLIT_ROWS ? d->rows * d->cols * sizeof(float) : 0,
            MADE};
}

bool aligned(const void *address, uint64_t alignments, int which)
{
    return reinterpret_cast<uintptr_t>(address) % (alignments >> (16 * which) & 0xffff) == 0;
}

cublasStatus_t set(void *to, size_t size, const void *value, size_t bytes)
{
    if (!value || bytes != size) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

} // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    *out = new cublasLtContext;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    *out = new cublasLtMatmulDesc;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes)
{
    int32_t *to = attribute == CUBLASLT_MATMUL_DESC_TRANSA ? &desc->transa : &desc->transb;

    return set(to, sizeof(*to), value, bytes);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType_t type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    *out = new cublasLtMatrixLayout{type, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    *out = new cublasLtMatmulPreference;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes)
{
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
        return set(&preference->workspace, sizeof(preference->workspace), value, bytes);
    }
    if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) {
        return set(&preference->reduction, sizeof(preference->reduction), value, bytes);
    }
    uint32_t *to = &preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES];
    return set(to, sizeof(*to), value, bytes);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *found)
{
    cublasStatus_t st = check(desc, a, b, c, d);

    if (st || !handle || wanted < 1) {
        return st ? st : CUBLAS_STATUS_INVALID_VALUE;
    }
    choice mine = choice_for(a, d);
    if (mine.workspace > preference->workspace ||
        !(preference->reduction & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)) {
        mine.workspace = 0; /* an algorithm that does not split */
    }
    for (int i = 0; i < 4; i++) {
        uint64_t alignment = preference->alignment[i];
        const cublasLtMatrixLayout *layout = i == 0 ? a : i == 1 ? b : d;

        if (alignment == 0 || alignment > 256 || (alignment & (alignment - 1)) ||
            alignment < (layout->type == CUDA_R_32F ? 4 : 2)) {
            return CUBLAS_STATUS_NOT_SUPPORTED;
        }
        mine.alignments |= alignment << (16 * i);
    }
    results[0] = {};
    memcpy(&results[0].algo, &mine, sizeof(mine));
    results[0].workspaceSize = mine.workspace;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    cublasStatus_t st = check(desc, a_layout, b_layout, c_layout, d_layout);
    choice chosen = {};

    if (st || !handle || !algo) {
        return st ? st : CUBLAS_STATUS_INVALID_VALUE;
    }
    memcpy(&chosen, algo, sizeof(chosen));
    choice expected = choice_for(a_layout, d_layout);
    expected.alignments = chosen.alignments;
    expected.workspace = chosen.workspace;
    bool fits = memcmp(&chosen, &expected, sizeof(chosen)) == 0 &&
                aligned(a, chosen.alignments, 0) && aligned(b, chosen.alignments, 1) &&
                aligned(c, chosen.alignments, 2) && aligned(d, chosen.alignments, 3) &&
                chosen.workspace <= workspace_bytes &&
                reinterpret_cast<uintptr_t>(workspace) % 256 == 0;
    if (!fits || *static_cast<const float *>(alpha) != 1.0f || c != d) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    const product p = {
        *a_layout, *b_layout,       *d_layout, a, b, d, *static_cast<const float *>(beta),
        workspace, chosen.workspace};
    cuda_host_enqueue(
        stream, [p] { p.run(); }, [p] { p.spoil(); });
    return CUBLAS_STATUS_SUCCESS;
}
}
