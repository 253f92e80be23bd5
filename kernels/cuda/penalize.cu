/* penalize.cu - penalties on tokens that a sequence has seen: a thread for each logit. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256;

static __device__ float penalized(float logit, uint32_t seen, const struct penalty *penalty)
{
    double x = (double)logit, generated = (double)(seen & OP_SEEN_GENERATED);

    x = x > 0 ? x / (double)penalty->repetition : x * (double)penalty->repetition;
    x -= (double)penalty->frequency * generated;
    return (float)(generated > 0 ? x - (double)penalty->presence : x);
}

static __global__ void penalize_kernel(float *out, const float *logits, int n, int first_id,
                                       const struct penalty *penalties)
{
    const struct penalty penalty = penalties[blockIdx.y];
    int id = (int)(blockIdx.x * BLOCK + threadIdx.x);
    size_t at = (size_t)blockIdx.y * (size_t)n + (size_t)id;

    if (id >= n) {
        return;
    }
    uint32_t seen = penalty.seen ? penalty.seen[id] : 0;
    if (penalty.seen && id + first_id == penalty.token) {
        penalty.seen[id] = ++seen;
    }
    out[at] = seen ? penalized(logits[at], seen, &penalty) : logits[at];
}

status cuda_penalize(struct device *dev, float *out, const float *logits, int rows, int n,
                     int first_id, const struct penalty *penalties)
{
    if (rows == 0 || n == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(penalize_kernel, dim3(cuda_blocks((size_t)n, BLOCK), (unsigned)rows), BLOCK, 0,
               cuda_stream(dev), out, logits, n, first_id, penalties);
    return cuda_launched("penalize");
}
