/* filter.c - which ids top_k, top_p and min_p leave: rounds of a radix select over the histograms
 * of all ranks. */
#include "kernels/cpu/cpu.h"

#include <math.h>

enum { BINS = OP_HISTOGRAM_BINS, KEY_MINUS_INFINITY = 0x007fffff /* op_key(-INFINITY) */ };

static float key_value(uint32_t key)
{
    union {
        uint32_t u;
        float f;
    } bits = {.u = key & 0x80000000u ? key & 0x7fffffffu : ~key};

    return bits.f;
}

/* A logit's probability relative to that of the largest. */
static double weight(const struct logit_filter *filter, float peak, uint32_t key)
{
    return exp(((double)key_value(key) - peak) / filter->temperature);
}

static const struct logit_bin *bins_of(const struct narrow *args, int rank, int row)
{
    return args->bins + ((size_t)rank * (size_t)args->rows + (size_t)row) * BINS;
}

/* sum (BINS) over all ranks, in rank order. */
static void sum_bins(struct logit_bin *sum, const struct narrow *args, int row)
{
    memset(sum, 0, BINS * sizeof(*sum));
    for (int r = 0; r < args->ranks; r++) {
        const struct logit_bin *bins = bins_of(args, r, row);

        for (int b = 0; b < BINS; b++) {
            sum[b].count += bins[b].count;
            sum[b].mass += bins[b].mass;
        }
    }
}

/* What the select starts with: for a mass, top_p of the top_k set, or of everything, which the
 * first round sums. */
static void begin(struct logit_filter *filter, const struct logit_bin *bins, bool by_mass)
{
    filter->prefix = 0;
    filter->above_count = 0;
    filter->above_mass = 0;
    filter->want = filter->top_k;
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
static int find_bin(struct logit_filter *filter, const struct logit_bin *bins, bool by_mass)
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
static uint64_t ties_needed(const struct logit_filter *filter, uint64_t count, double each,
                            bool by_mass)
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
static void take_ties(struct logit_filter *filter, const struct narrow *args, int row,
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

status cpu_narrow(struct device *dev, const struct narrow *args)
{
    (void)dev;
    for (int i = 0; i < args->rows; i++) {
        struct logit_filter *filter = &args->filters[i];
        struct logit_bin sum[BINS];

        if (args->by_mass ? !(filter->top_p < 1.0f) : filter->top_k == 0) {
            continue;
        }
        sum_bins(sum, args, i);
        if (args->shift == 24) {
            begin(filter, sum, args->by_mass);
        }
        int bin = find_bin(filter, sum, args->by_mass);

        filter->prefix = filter->prefix << 8 | (uint32_t)bin;
        if (args->shift == 0) {
            take_ties(filter, args, i, sum[bin].count);
        }
    }
    return STATUS_OK;
}

/* The lowest key whose weight is at least min_p; 0 without one. */
static uint32_t min_p_floor(const struct logit_filter *filter, float peak)
{
    uint32_t low = KEY_MINUS_INFINITY, high = op_key(peak);

    if (filter->min_p <= 0) {
        return 0;
    }
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (weight(filter, peak, middle) >= filter->min_p) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* The id of the last of this rank's logits with the floor's key that stays; -1: none does. */
static int32_t find_tie(const struct filtered_draws *args, const struct logit_filter *filter)
{
    const float *logits = args->logits + (size_t)filter->row * (size_t)args->n;
    int left = filter->ties_here;

    for (int i = 0; left > 0 && i < args->n; i++) {
        if (op_key(logits[i]) == filter->floor_key && --left == 0) {
            return args->first_id + i;
        }
    }
    return -1;
}

status cpu_filter_draws(struct device *dev, const struct filtered_draws *args)
{
    (void)dev;
    for (int i = 0; i < args->rows; i++) {
        const struct logit_filter *filter = &args->filters[i];
        struct draw *draw = &args->draws[filter->row];
        float peak = args->peaks[filter->row].value;
        uint32_t floor = min_p_floor(filter, peak);

        draw->tie_id = OP_ANY_ID;
        draw->floor_key = floor > filter->floor_key ? floor : filter->floor_key;
        if (!isfinite(peak)) {
            draw->floor_key = UINT32_MAX; /* no key is above it */
        } else if (floor <= filter->floor_key && filter->cuts_ties) {
            draw->tie_id = find_tie(args, filter);
        }
    }
    return STATUS_OK;
}
