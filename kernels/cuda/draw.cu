/*
 * draw.cu - choosing tokens: perturbed maxima.  A block looks at a part of one row's vocabulary,
 * a second kernel at what the parts found.  The noise is that of kernels/cpu/philox.h.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256, PART = 4096;

struct draw_shared {
    struct drawn best[BLOCK];
};

/* The 52 noise bits of tokens id and id + 1, id even. */
static __device__ void noise_bits(uint64_t bits[2], const struct draw *draw, uint32_t id)
{
    uint32_t c[4] = {id / 2, draw->step, draw->sample, 0};
    uint32_t k0 = (uint32_t)draw->seed, k1 = (uint32_t)(draw->seed >> 32);

    for (int i = 0; i < 10; i++) {
        uint64_t a = (uint64_t)0xd2511f53u * c[0], b = (uint64_t)0xcd9e8d57u * c[2];

        c[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
        c[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[1] = (uint32_t)b;
        c[3] = (uint32_t)a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    bits[0] = ((uint64_t)c[1] << 32 | c[0]) >> 12;
    bits[1] = ((uint64_t)c[3] << 32 | c[2]) >> 12;
}

static __device__ double gumbel(uint64_t bits)
{
    double u = ((double)bits + 0.5) * (1.0 / (double)((uint64_t)1 << 52));

    return -log(-log(u));
}

/* At least gumbel(bits), without a logarithm: -log(u) >= 1 - u = (rest + 1/2) 2^-52, and the
 * leading zeros of rest bound the logarithm of that. */
static __device__ double gumbel_bound(uint64_t bits)
{
    uint64_t rest = ((uint64_t)1 << 52) - 1 - bits;
    int zeros = rest ? __clzll((unsigned long long)rest) - 12 : 52;

    return 0.69315 * (zeros + 1);
}

/* NaN, whose key is 0, never does. */
static __device__ bool takes_part(const struct draw *draw, float logit, int32_t id)
{
    uint32_t key = gpu_key(logit);

    return key != 0 && (key > draw->floor_key || (key == draw->floor_key && id <= draw->tie_id));
}

static __device__ void take_better(struct drawn *best, const struct drawn *other)
{
    bool better = other->id >= 0 && (best->id < 0 || other->value > best->value ||
                                     (other->value == best->value && other->id < best->id));

    if (better) {
        *best = *other;
    }
}

static __device__ void look_at(struct drawn *best, const struct draw *draw, float logit, int32_t id,
                               uint64_t bits)
{
    struct drawn here = {logit, id};

    if (!takes_part(draw, logit, id)) {
        return;
    }
    if (draw->temperature > 0.0f) {
        double z = (double)logit / (double)draw->temperature;

        if (best->id >= 0 && z + gumbel_bound(bits) < (double)best->value) {
            return;
        }
        here.value = (float)(z + gumbel(bits));
    }
    take_better(best, &here);
}

/* The best of the block's threads, in thread 0. */
static __device__ struct drawn best_of_block(struct drawn best)
{
    auto *shared = gpu_shared<struct draw_shared>();

    shared->best[threadIdx.x] = best;
    for (unsigned by = BLOCK / 2; by > 0; by /= 2) {
        __syncthreads();
        if (threadIdx.x < by) {
            take_better(&shared->best[threadIdx.x], &shared->best[threadIdx.x + by]);
        }
    }
    return shared->best[threadIdx.x];
}

static __global__ void parts_kernel(struct drawn *parts, const float *logits, int n, int first_id,
                                    const struct draw *draws)
{
    const struct draw draw = draws[blockIdx.y];
    const float *row = logits + (size_t)blockIdx.y * (size_t)n;
    int first_even = first_id & ~1; /* noise comes for an even id and the next one */
    int begin = first_even + (int)blockIdx.x * PART, end = min(begin + PART, first_id + n);
    struct drawn best = {-INFINITY, -1};

    for (int id = begin + 2 * (int)threadIdx.x; id < end; id += 2 * BLOCK) {
        uint64_t bits[2] = {0, 0};

        if (draw.temperature > 0.0f) {
            noise_bits(bits, &draw, (uint32_t)id);
        }
        for (int i = 0; i < 2; i++) {
            if (id + i >= first_id && id + i < end) {
                look_at(&best, &draw, row[id + i - first_id], id + i, bits[i]);
            }
        }
    }
    best = best_of_block(best);
    if (threadIdx.x == 0) {
        parts[(size_t)blockIdx.y * gridDim.x + blockIdx.x] = best;
    }
}

static __global__ void best_kernel(struct drawn *out, const struct drawn *parts, int n)
{
    struct drawn best = {-INFINITY, -1};

    for (int i = (int)threadIdx.x; i < n; i += BLOCK) {
        take_better(&best, &parts[(size_t)blockIdx.x * (size_t)n + (size_t)i]);
    }
    best = best_of_block(best);
    if (threadIdx.x == 0) {
        out[blockIdx.x] = best;
    }
}

/* An odd first id begins one earlier. */
static unsigned draw_blocks(int n)
{
    return cuda_blocks((size_t)n + 1, PART);
}

size_t cuda_draw_workspace(int rows, int n)
{
    return (size_t)rows * draw_blocks(n) * sizeof(struct drawn);
}

status cuda_draw(struct device *dev, struct drawn *out, const float *logits, int rows, int n,
                 int first_id, const struct draw *draws)
{
    unsigned blocks = draw_blocks(n);
    void *parts;
    status st = cuda_workspace(dev, &parts, cuda_draw_workspace(rows, n));

    if (st || rows == 0) {
        return st;
    }
    GPU_LAUNCH(parts_kernel, dim3(blocks, (unsigned)rows), BLOCK, sizeof(struct draw_shared),
               cuda_stream(dev), static_cast<struct drawn *>(parts), logits, n, first_id, draws);
    GPU_LAUNCH(best_kernel, (unsigned)rows, BLOCK, sizeof(struct draw_shared), cuda_stream(dev),
               out, static_cast<const struct drawn *>(parts), (int)blocks);
    return cuda_launched("draw");
}

static __global__ void best_drawn_kernel(struct drawn *out, const struct drawn *drawn, int rows,
                                         int ranks)
{
    int i = (int)gpu_thread();

    if (i >= rows) {
        return;
    }
    struct drawn best = drawn[i];
    for (int r = 1; r < ranks; r++) {
        take_better(&best, &drawn[r * rows + i]); /* ids ascend with the ranks */
    }
    out[i] = best;
}

status cuda_best_drawn(struct device *dev, struct drawn *out, const struct drawn *drawn, int rows,
                       int ranks)
{
    if (rows == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(best_drawn_kernel, cuda_blocks((size_t)rows, BLOCK), BLOCK, 0, cuda_stream(dev), out,
               drawn, rows, ranks);
    return cuda_launched("best_drawn");
}

static __global__ void logits_of_kernel(float *out, const float *logits, int rows, int n,
                                        int first_id, const struct drawn *chosen)
{
    int i = (int)gpu_thread();

    if (i < rows) {
        int id = chosen[i].id - first_id;

        out[i] = id >= 0 && id < n ? logits[(size_t)i * (size_t)n + (size_t)id] : 0.0f;
    }
}

status cuda_logits_of(struct device *dev, float *out, const float *logits, int rows, int n,
                      int first_id, const struct drawn *chosen)
{
    if (rows == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(logits_of_kernel, cuda_blocks((size_t)rows, BLOCK), BLOCK, 0, cuda_stream(dev), out,
               logits, rows, n, first_id, chosen);
    return cuda_launched("logits_of");
}
