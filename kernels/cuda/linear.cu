/*
 * linear.cu - out = x w^T for a chunk of one prompt, by cuBLASLt: 16 bits with float32 sums, or
 * float32 without TF32; added to what is there where wanted, which costs no kernel of its own.
 *
 * What the library needs to know of a shape, and the algorithm that it advises, are kept.  Where an
 * algorithm splits the columns, its parts are summed in float32, in its workspace.
 */
#include "kernels/cuda/cuda.h"

#include <cublasLt.h>

#include <cstdlib>
#include <initializer_list>

static constexpr size_t WORKSPACE = (size_t)32 << 20; /* what NVIDIA advises for sm_90 */
static constexpr size_t PLANS = 128;
static constexpr uintptr_t BEST_ALIGNMENT = 256;

/* Of out^T (n, rows) = w x^T: row-major matrices are the library's column-major ones transposed. */
struct shape {
    int n, rows, k;
    size_t stride; /* of w */
    cudaDataType_t in, out;
    uint32_t w_align, x_align, out_align;
    bool operator==(const struct shape &) const = default;
};

struct plan {
    struct shape shape;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, out;
    cublasLtMatmulAlgo_t algo;
    bool made;
};

struct cuda_products {
    cublasLtHandle_t library;
    void *workspace;
    struct plan plans[PLANS]; /* a shape has one place, which the last one to come takes */
};

static status check(cublasStatus_t st, const char *what)
{
    if (st == CUBLAS_STATUS_SUCCESS) {
        return STATUS_OK;
    }
    return status_fail(STATUS_INTERNAL, "cuda: cuBLASLt: %s: status %d", what, (int)st);
}

static void plan_free(struct plan *plan)
{
    if (plan->product) {
        cublasLtMatmulDescDestroy(plan->product);
    }
    for (cublasLtMatrixLayout_t layout : {plan->w, plan->x, plan->out}) {
        if (layout) {
            cublasLtMatrixLayoutDestroy(layout);
        }
    }
    *plan = {};
}

status cuda_products_open(struct cuda_device *cuda)
{
    auto *products = static_cast<struct cuda_products *>(calloc(1, sizeof(struct cuda_products)));

    if (!products) {
        return status_fail(STATUS_EXHAUSTED, "cuda: no memory for matrix products");
    }
    cuda->products = products;
    status st = cuda_check(cudaMalloc(&products->workspace, WORKSPACE), "cuBLASLt workspace");
    return st ? st : check(cublasLtCreate(&products->library), "it does not start");
}

void cuda_products_close(struct cuda_device *cuda)
{
    struct cuda_products *products = cuda->products;

    if (!products) {
        return;
    }
    for (struct plan &plan : products->plans) {
        plan_free(&plan);
    }
    if (products->library) {
        cublasLtDestroy(products->library);
    }
    cudaFree(products->workspace);
    free(products);
    cuda->products = nullptr;
}

static cudaDataType_t library_type(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : dtype == DTYPE_F16 ? CUDA_R_16F : CUDA_R_32F;
}

static uint32_t alignment_of(const void *address)
{
    uintptr_t at = reinterpret_cast<uintptr_t>(address) | BEST_ALIGNMENT;

    return (uint32_t)(at & (~at + 1));
}

static size_t place_of(const struct shape *shape)
{
    uint64_t hash = (uint64_t)shape->rows;

    for (uint64_t x : {(uint64_t)shape->n, (uint64_t)shape->k, (uint64_t)shape->out,
                       (uint64_t)shape->w_align << 32 | shape->x_align << 16 | shape->out_align}) {
        hash = (hash ^ x) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return hash % PLANS;
}

static cublasStatus_t describe(struct plan *plan)
{
    const struct shape *s = &plan->shape;
    const int32_t transposed = CUBLAS_OP_T;
    auto n = (uint64_t)s->n, rows = (uint64_t)s->rows, k = (uint64_t)s->k;
    cublasStatus_t st = cublasLtMatmulDescCreate(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);

    if (!st) {
        st = cublasLtMatmulDescSetAttribute(plan->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                            sizeof(transposed));
    }
    if (!st) {
        st = cublasLtMatrixLayoutCreate(&plan->w, s->in, k, n, (int64_t)s->stride);
    }
    if (!st) {
        st = cublasLtMatrixLayoutCreate(&plan->x, s->in, k, rows, (int64_t)k);
    }
    return st ? st : cublasLtMatrixLayoutCreate(&plan->out, s->out, n, rows, (int64_t)n);
}

static cublasStatus_t set(cublasLtMatmulPreference_t wish,
                          cublasLtMatmulPreferenceAttributes_t attribute, uint32_t value)
{
    return cublasLtMatmulPreferenceSetAttribute(wish, attribute, &value, sizeof(value));
}

static cublasStatus_t ask(const struct cuda_products *products, struct plan *plan,
                          cublasLtMatmulPreference_t wish)
{
    const struct shape *s = &plan->shape;
    const uint64_t workspace = WORKSPACE;
    cublasLtMatmulHeuristicResult_t found = {};
    int n = 0;
    cublasStatus_t st = cublasLtMatmulPreferenceSetAttribute(
        wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace));

    if (!st) {
        st = set(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    }
    if (!st) {
        st = set(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, s->w_align);
    }
    if (!st) {
        st = set(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, s->x_align);
    }
    if (!st) {
        st = set(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, s->out_align);
    }
    if (!st) {
        st = set(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, s->out_align);
    }
    if (!st) {
        st = cublasLtMatmulAlgoGetHeuristic(products->library, plan->product, plan->w, plan->x,
                                            plan->out, plan->out, wish, 1, &found, &n);
    }
    plan->algo = found.algo;
    return st ? st : n < 1 ? CUBLAS_STATUS_NOT_SUPPORTED : found.state;
}

/* The plan of a shape, made when it first comes. */
static cublasStatus_t find_plan(struct cuda_products *products, const struct shape &shape,
                                struct plan **out)
{
    struct plan *plan = &products->plans[place_of(&shape)];
    cublasLtMatmulPreference_t wish;

    *out = plan;
    if (plan->made && plan->shape == shape) {
        return CUBLAS_STATUS_SUCCESS;
    }
    plan_free(plan);
    plan->shape = shape;
    cublasStatus_t st = describe(plan);
    if (st) {
        return st;
    }
    st = cublasLtMatmulPreferenceCreate(&wish);
    if (!st) {
        st = ask(products, plan, wish);
        cublasLtMatmulPreferenceDestroy(wish);
    }
    plan->made = st == CUBLAS_STATUS_SUCCESS;
    return st;
}

static status multiply(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                       const struct matrix *w, int rows, float keep)
{
    struct cuda_products *products = cuda_device(dev)->products;
    const float one = 1.0f;
    const struct shape shape = {.n = w->rows,
                                .rows = rows,
                                .k = w->cols,
                                .stride = w->stride,
                                .in = library_type(dev->dtype),
                                .out = library_type(out_dtype),
                                .w_align = alignment_of(w->data),
                                .x_align = alignment_of(x),
                                .out_align = alignment_of(out)};
    struct plan *plan;

    if (rows == 0) {
        return STATUS_OK;
    }
    cublasStatus_t st = find_plan(products, shape, &plan);
    if (!st) {
        st = cublasLtMatmul(products->library, plan->product, &one, w->data, plan->w, x, plan->x,
                            &keep, out, plan->out, out, plan->out, &plan->algo, products->workspace,
                            WORKSPACE, cuda_stream(dev));
    }
    return st ? status_note(check(st, "product"), "%d rows with %d x %d", rows, w->rows, w->cols)
              : STATUS_OK;
}

status cuda_linear(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                   const struct matrix *w, int rows)
{
    return multiply(dev, out, out_dtype, x, w, rows, 0.0f);
}

status cuda_linear_add(struct device *dev, float *sum, float *, const void *x,
                       const struct matrix *w, int rows)
{
    return multiply(dev, sum, DTYPE_F32, x, w, rows, 1.0f);
}
