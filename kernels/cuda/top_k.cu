/*
 * top_k.cu - the k largest scores by radix select, in one block: four histograms of 8 bits find
 * the k-th key, one more pass writes the positions in ascending order.  Exact, no sorting; ties
 * go by position.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 1024, BINS = 256, WARPS = BLOCK / WARP;

struct top_k_shared {
    uint32_t bins[BINS];
    uint32_t bin, left;      /* the chosen bin, and how many are wanted in it */
    uint32_t greater[WARPS]; /* in the part of a warp: keys above the k-th one */
    uint32_t equal[WARPS];   /* and equal to it */
};

static __device__ void count_keys(struct top_k_shared *s, const float *score, int n,
                                  uint32_t prefix, int shift)
{
    for (int b = (int)threadIdx.x; b < BINS; b += BLOCK) {
        s->bins[b] = 0;
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < n; i += BLOCK) {
        uint32_t key = gpu_rank_key(score[i]);

        if (shift == 24 || key >> (shift + 8) == prefix) {
            atomicAdd(&s->bins[(key >> shift) % BINS], 1u);
        }
    }
    __syncthreads();
}

/* The first warp finds the bin, from the top, in which the `left`-th key lies.  Lane l looks at
 * eight bins, the highest ones first. */
static __device__ void find_bin(struct top_k_shared *s, uint32_t left)
{
    constexpr int EACH = BINS / WARP;
    int lane = (int)threadIdx.x, top = BINS - 1 - lane * EACH;
    uint32_t mine = 0;

    if (threadIdx.x >= WARP) {
        return;
    }
    for (int i = 0; i < EACH; i++) {
        mine += s->bins[top - i];
    }
    uint32_t through = mine;
    for (int by = 1; by < WARP; by *= 2) {
        uint32_t other = __shfl_up_sync((unsigned)WHOLE_WARP, through, by);
        through += lane >= by ? other : 0;
    }
    uint32_t above = through - mine;
    if (above < left && left <= through) {
        int b = top;

        left -= above;
        while (s->bins[b] < left) {
            left -= s->bins[b--];
        }
        s->bin = (uint32_t)b;
        s->left = left;
    }
}

/* The key of the k-th largest score; s->left is how many scores equal to it are taken. */
static __device__ uint32_t find_key(struct top_k_shared *s, const float *score, int n, int k)
{
    uint32_t key = 0, left = (uint32_t)k;

    for (int shift = 24; shift >= 0; shift -= 8) {
        count_keys(s, score, n, key, shift);
        find_bin(s, left);
        __syncthreads();
        key = key << 8 | s->bin;
        left = s->left;
        __syncthreads();
    }
    return key;
}

/* Each warp has a part of the row; it counts, learns what lies before it, and writes. */
static __device__ void write_indices(struct top_k_shared *s, int32_t *index, const float *score,
                                     int n, uint32_t least)
{
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    int part = (n + WARPS * WARP - 1) / (WARPS * WARP) * WARP;
    int begin = min(warp * part, n), end = min(begin + part, n);
    uint32_t wanted = s->left, greater = 0, equal = 0;
    uint32_t before = (1u << lane) - 1u;

    for (int i = begin; i < end; i += WARP) {
        uint32_t key = i + lane < end ? gpu_rank_key(score[i + lane]) : 0;
        greater += (uint32_t)__popc(__ballot_sync((unsigned)WHOLE_WARP, key > least));
        equal +=
            (uint32_t)__popc(__ballot_sync((unsigned)WHOLE_WARP, i + lane < end && key == least));
    }
    if (lane == 0) {
        s->greater[warp] = greater;
        s->equal[warp] = equal;
    }
    __syncthreads();
    greater = equal = 0;
    for (int w = 0; w < warp; w++) {
        greater += s->greater[w];
        equal += s->equal[w];
    }
    for (int i = begin; i < end; i += WARP) {
        uint32_t key = i + lane < end ? gpu_rank_key(score[i + lane]) : 0;
        bool above = key > least, tie = i + lane < end && key == least;
        uint32_t aboves = __ballot_sync((unsigned)WHOLE_WARP, above);
        uint32_t ties = __ballot_sync((unsigned)WHOLE_WARP, tie);
        uint32_t rank = equal + (uint32_t)__popc(ties & before);

        if (above || (tie && rank < wanted)) {
            uint32_t taken = rank < wanted ? rank : wanted;
            index[greater + (uint32_t)__popc(aboves & before) + taken] = i + lane;
        }
        greater += (uint32_t)__popc(aboves);
        equal += (uint32_t)__popc(ties);
    }
}

static __global__ void __launch_bounds__(BLOCK)
    top_k_kernel(int32_t *index, const float *score, int n, int k)
{
    auto *shared = gpu_shared<struct top_k_shared>();
    uint32_t least = find_key(shared, score, n, k);

    write_indices(shared, index, score, n, least);
}

status cuda_top_k(struct device *dev, int32_t *index, const float *score, int n, int k)
{
    if (k == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(top_k_kernel, 1, BLOCK, sizeof(struct top_k_shared), cuda_stream(dev), index, score,
               n, k);
    return cuda_launched("top_k");
}
