/*
 * filter.cu - which ids top_k, top_p and min_p leave: rounds of a radix select over the histograms
 * of all ranks.  A block for each filter: its threads sum a bin each, then one walks down the
 * sums, in one order, since masses are doubles.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

static constexpr int BLOCK = 256, BINS = OP_HISTOGRAM_BINS;
static constexpr uint32_t KEY_MINUS_INFINITY = 0x007fffff; /* gpu_key(-INFINITY) */

struct narrow_shared {
    struct logit_bin sum[BINS];
};

static __device__ float key_value(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* A logit's probability relative to that of the largest. */
static __device__ double weight(const struct logit_filter *filter, float peak, uint32_t key)
{
    return exp(((double)key_value(key) - (double)peak) / (double)filter->temperature);
}

static __device__ const struct logit_bin *bins_of(const struct narrow *args, int rank, int row)
{
    return args->bins + ((size_t)rank * (size_t)args->rows + (size_t)row) * BINS;
}

/* What the select starts with: for a mass, top_p of the top_k set, or of everything, which the
 * first round sums. */
static __device__ void begin(struct logit_filter *filter, const struct logit_bin *bins,
                             bool by_mass)
{
    filter->prefix = 0;
    filter->above_count = 0;
    filter->above_mass = 0;
    filter->want = (double)filter->top_k;
    if (by_mass && filter->top_k == 0) {
        filter->total = 0;
        for (int b = BINS - 1; b >= 0; b--) {
            filter->total += bins[b].mass;
        }
    }
    if (by_mass) {
        filter->want = (double)filter->top_p * filter->total;
    }
}

/* Walks down the bins to the one in which the wanted count or mass is reached. */
static __device__ int find_bin(struct logit_filter *filter, const struct logit_bin *bins,
                               bool by_mass)
{
    int last = -1;

    for (int b = BINS - 1; b >= 0; b--) {
        if (bins[b].count == 0) {
            continue;
        }
        double reached = by_mass ? filter->above_mass + bins[b].mass
                                 : (double)(filter->above_count + bins[b].count);
        if (reached >= filter->want) {
            return b;
        }
        filter->above_count += bins[b].count;
        filter->above_mass += bins[b].mass;
        last = b;
    }
    /* The parts of a mass may add up to less than their sum did: then the lowest bin is it. */
    if (last >= 0) {
        filter->above_count -= bins[last].count;
        filter->above_mass -= bins[last].mass;
    }
    return last < 0 ? 0 : last;
}

/* Ids with one key, of weight `each`: how many of them the set needs. */
static __device__ uint64_t ties_needed(const struct logit_filter *filter, uint64_t count,
                                       double each, bool by_mass)
{
    double needed = filter->want - (double)filter->above_count;

    if (by_mass) {
        needed = each > 0 ? ceil((filter->want - filter->above_mass) / each) : (double)count;
    }
    if (needed < 1) {
        return 1;
    }
    return needed < (double)count ? (uint64_t)needed : count;
}

/* Which of the ids with the floor's key stay, by the last round's counts of each rank: they are
 * the lowest ids, and ranks hold the vocabulary in order. */
static __device__ void take_ties(struct logit_filter *filter, const struct narrow *args, int row,
                                 uint64_t count)
{
    double each = weight(filter, args->peaks[filter->row].value, filter->prefix);
    uint64_t left = ties_needed(filter, count, each, args->by_mass);

    if (args->by_mass && filter->top_k > 0) {
        if (filter->prefix < filter->floor_key) {
            return; /* by rounding alone: the top_k set has that mass */
        }
        if (filter->prefix == filter->floor_key && left > (uint64_t)filter->ties) {
            left = (uint64_t)filter->ties;
        }
    }
    filter->floor_key = filter->prefix;
    filter->ties = (int32_t)left;
    filter->cuts_ties = left < count;
    filter->total = filter->above_mass + (double)left * each;
    for (int r = 0; r <= args->rank; r++) {
        uint64_t here = bins_of(args, r, row)[filter->prefix & 0xff].count;

        filter->ties_here = (int32_t)(left < here ? left : here);
        left -= (uint64_t)filter->ties_here;
    }
}

static __global__ void __launch_bounds__(BLOCK) narrow_kernel(struct narrow args)
{
    static_assert(BLOCK == BINS, "a thread for each bin");
    auto *shared = gpu_shared<struct narrow_shared>();
    int row = (int)blockIdx.x;
    struct logit_filter filter = args.filters[row];
    struct logit_bin sum = {0, 0.0};

    if (args.by_mass ? !(filter.top_p < 1.0f) : filter.top_k == 0) {
        return;
    }
    for (int r = 0; r < args.ranks; r++) {
        const struct logit_bin *bin = &bins_of(&args, r, row)[threadIdx.x];

        sum.count += bin->count;
        sum.mass += bin->mass;
    }
    shared->sum[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x > 0) {
        return;
    }
    if (args.shift == 24) {
        begin(&filter, shared->sum, args.by_mass);
    }
    int bin = find_bin(&filter, shared->sum, args.by_mass);

    filter.prefix = filter.prefix << 8 | (uint32_t)bin;
    if (args.shift == 0) {
        take_ties(&filter, &args, row, shared->sum[bin].count);
    }
    args.filters[row] = filter;
}

status cuda_narrow(struct device *dev, const struct narrow *args)
{
    if (args->rows == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(narrow_kernel, (unsigned)args->rows, BLOCK, sizeof(struct narrow_shared),
               cuda_stream(dev), *args);
    return cuda_launched("narrow");
}

/* The lowest key whose weight is at least min_p; 0 without one. */
static __device__ uint32_t min_p_floor(const struct logit_filter *filter, float peak)
{
    uint32_t low = KEY_MINUS_INFINITY, high = gpu_key(peak);

    if (filter->min_p <= 0) {
        return 0;
    }
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (weight(filter, peak, middle) >= (double)filter->min_p) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

struct tie_shared {
    bool cuts_ties;
    int32_t count[BLOCK];
};

/* What one thread can say; returns whether the last tie that stays must be looked for. */
static __device__ bool set_floor(struct draw *draw, const struct logit_filter *filter, float peak)
{
    uint32_t floor = min_p_floor(filter, peak);
    bool cuts_ties = isfinite(peak) && floor <= filter->floor_key && filter->cuts_ties;

    draw->tie_id = cuts_ties ? -1 : OP_ANY_ID;
    draw->floor_key = floor > filter->floor_key ? floor : filter->floor_key;
    if (!isfinite(peak)) {
        draw->floor_key = UINT32_MAX; /* no key is above it */
    }
    return cuts_ties;
}

/* Sets *tie_id to the id of the last of this rank's logits with the floor's key that stays: each
 * thread counts them in a part of the row, and the one in whose part it is looks again. */
static __device__ void find_tie(int32_t *tie_id, const struct filtered_draws *args,
                                const struct logit_filter *filter)
{
    auto *shared = gpu_shared<struct tie_shared>();
    const float *logits = args->logits + (size_t)filter->row * (size_t)args->n;
    int part = (args->n + BLOCK - 1) / BLOCK, begin = (int)threadIdx.x * part;
    int end = min(begin + part, args->n), left = filter->ties_here, count = 0;

    for (int i = begin; i < end; i++) {
        count += gpu_key(logits[i]) == filter->floor_key;
    }
    shared->count[threadIdx.x] = count;
    __syncthreads();
    for (int t = 0; t < (int)threadIdx.x; t++) {
        left -= shared->count[t];
    }
    if (left <= 0 || left > count) {
        return;
    }
    for (int i = begin; i < end; i++) {
        if (gpu_key(logits[i]) == filter->floor_key && --left == 0) {
            *tie_id = args->first_id + i;
        }
    }
}

static __global__ void __launch_bounds__(BLOCK) filter_draws_kernel(struct filtered_draws args)
{
    auto *shared = gpu_shared<struct tie_shared>();
    const struct logit_filter *filter = &args.filters[blockIdx.x];
    struct draw *draw = &args.draws[filter->row];

    if (threadIdx.x == 0) {
        shared->cuts_ties = set_floor(draw, filter, args.peaks[filter->row].value);
    }
    __syncthreads();
    if (shared->cuts_ties) {
        find_tie(&draw->tie_id, &args, filter);
    }
}

status cuda_filter_draws(struct device *dev, const struct filtered_draws *args)
{
    if (args->rows == 0) {
        return STATUS_OK;
    }
    GPU_LAUNCH(filter_draws_kernel, (unsigned)args->rows, BLOCK, sizeof(struct tie_shared),
               cuda_stream(dev), *args);
    return cuda_launched("filter_draws");
}
