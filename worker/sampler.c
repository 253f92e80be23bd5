#include "worker/sampler.h"

#include "common/plan.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_ROWS = OP_MAX_DECODE_ROWS,
    BINS = OP_HISTOGRAM_BINS,
    KEY_MINUS_INFINITY = 0x007fffff, /* op_key(-INFINITY) */
    ANY_ID = INT32_MAX,
};

/*
 * One row's set of ids, narrowed filter by filter: every id whose key is above `floor_key`, and
 * the lowest `ties` ids of those that have it.  Counts and masses go over all ranks.
 */
struct filter {
    int row;
    const struct sampling *sampling;
    float peak; /* the largest logit */
    uint32_t floor_key;
    uint64_t ties;
    bool cuts_ties; /* some ids with the key stay out */
    int32_t tie_id; /* the highest id of those that stay in */
    bool limited;   /* floor_key and ties are those of a top_k set, whose mass is `total` */
    double total;

    /* The radix select in progress: what lies above the bins of this round. */
    bool active;
    bool by_mass;
    double want; /* the set ends where the count or mass above reaches it */
    uint64_t above_count;
    double above_mass;
    uint32_t prefix;
};

struct sampler {
    struct member *member;
    int ranks;
    void *device_memory;
    /* Device memory: of this rank, then of all. */
    struct drawn *drawn;
    struct drawn *drawn_of_all;
    struct draw *draws;
    struct logit_bin *bins;
    struct logit_bin *bins_of_all;
    uint32_t *prefix;
    float *peak;
    float *temperature;
    int32_t *ties;
    int32_t *ties_of_all;
    /* Mirrors on the host. */
    struct drawn *host_drawn;    /* (ranks, MAX_ROWS) */
    struct logit_bin *host_bins; /* (ranks, MAX_ROWS, BINS) */
    int32_t *host_ties;          /* (ranks, MAX_ROWS) */
    float *host_logits;          /* (vocabulary rows) */
    struct filter filters[MAX_ROWS];
    int n_filters;
};

/* Memory. */

/* Lays the tensors out one behind the other; `base` NULL only counts. */
static size_t lay_out(struct sampler *s, char *base, int ranks)
{
    size_t all = (size_t)ranks * MAX_ROWS;
    size_t at = 0;

    /* 64-byte steps keep every tensor aligned. */
    const struct {
        void *field;
        size_t bytes;
    } tensors[] = {
        {&s->drawn, MAX_ROWS * sizeof(struct drawn)},
        {&s->drawn_of_all, all * sizeof(struct drawn)},
        {&s->draws, MAX_ROWS * sizeof(struct draw)},
        {&s->bins, (size_t)MAX_ROWS * BINS * sizeof(struct logit_bin)},
        {&s->bins_of_all, all * BINS * sizeof(struct logit_bin)},
        {&s->prefix, MAX_ROWS * sizeof(uint32_t)},
        {&s->peak, MAX_ROWS * sizeof(float)},
        {&s->temperature, MAX_ROWS * sizeof(float)},
        {&s->ties, MAX_ROWS * sizeof(int32_t)},
        {&s->ties_of_all, all * sizeof(int32_t)},
    };
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        void *tensor = base ? base + at : NULL;
        memcpy(tensors[i].field, &tensor, sizeof(tensor));
        at += (tensors[i].bytes + 63) / 64 * 64;
    }
    return at;
}

uint64_t sampler_bytes(int ranks)
{
    struct sampler unused;

    return lay_out(&unused, NULL, ranks);
}

status sampler_create(struct sampler **out, struct member *member)
{
    struct sampler *s = calloc(1, sizeof(*s));
    status st;

    if (!s) {
        return status_fail(STATUS_EXHAUSTED, "sampler: out of memory");
    }
    s->member = member;
    s->ranks = comm_size(member->comm);
    st = device_alloc(member->dev, &s->device_memory, sampler_bytes(s->ranks), "sampler");
    if (st) {
        goto fail;
    }
    lay_out(s, s->device_memory, s->ranks);
    size_t all = (size_t)s->ranks * MAX_ROWS;
    s->host_drawn = calloc(all, sizeof(*s->host_drawn));
    s->host_bins = calloc(all * BINS, sizeof(*s->host_bins));
    s->host_ties = calloc(all, sizeof(*s->host_ties));
    s->host_logits = calloc((size_t)member->model->split.vocab_rows, sizeof(*s->host_logits));
    if (!s->host_drawn || !s->host_bins || !s->host_ties || !s->host_logits) {
        st = status_fail(STATUS_EXHAUSTED, "sampler: out of memory");
        goto fail;
    }
    *out = s;
    return STATUS_OK;
fail:
    sampler_destroy(s);
    return st;
}

void sampler_destroy(struct sampler *sampler)
{
    if (!sampler) {
        return;
    }
    device_free(sampler->member->dev, sampler->device_memory);
    free(sampler->host_drawn);
    free(sampler->host_bins);
    free(sampler->host_ties);
    free(sampler->host_logits);
    free(sampler);
}

/* Drawing. */

static const float *row_of(const struct sampler *s, const float *logits, int row)
{
    return logits + (size_t)row * (size_t)s->member->model->split.vocab_rows;
}

/* drawn (n) = the largest perturbed value of each row over all ranks; ties to the lowest id. */
static status draw_all(struct sampler *s, struct drawn *drawn, const float *logits,
                       const struct draw *draws, int n)
{
    struct device *dev = s->member->dev;
    const struct split *split = &s->member->model->split;
    size_t bytes = (size_t)n * sizeof(*drawn);
    status st = device_upload(dev, s->draws, draws, (size_t)n * sizeof(*draws));

    if (!st) {
        st = op_draw(dev, s->drawn, logits, n, split->vocab_rows, split->vocab_first, s->draws);
    }
    if (!st) {
        st = comm_all_gather(s->member->comm, s->drawn_of_all, s->drawn, bytes);
    }
    if (!st) {
        st = device_download(dev, s->host_drawn, s->drawn_of_all, (size_t)s->ranks * bytes);
    }
    if (st) {
        return st;
    }
    for (int i = 0; i < n; i++) {
        drawn[i] = (struct drawn){.value = -INFINITY, .id = -1};
        for (int r = 0; r < s->ranks; r++) {
            const struct drawn *other = &s->host_drawn[r * n + i];
            if (other->id >= 0 && (drawn[i].id < 0 || other->value > drawn[i].value)) {
                drawn[i] = *other;
            }
        }
        if (drawn[i].id < 0 || isnan(drawn[i].value)) {
            return status_fail(STATUS_INTERNAL, "sampler: the logits are not numbers");
        }
    }
    return STATUS_OK;
}

/* Filters. */

static float key_value(uint32_t key)
{
    union {
        uint32_t u;
        float f;
    } bits = {.u = key & 0x80000000u ? key & 0x7fffffffu : ~key};

    return bits.f;
}

/* A logit's probability relative to that of the largest. */
static double weight(const struct filter *filter, uint32_t key)
{
    return exp(((double)key_value(key) - filter->peak) / filter->sampling->temperature);
}

/* *sum = the bins of one row over all ranks, in rank order. */
static void sum_bins(const struct sampler *s, int index, struct logit_bin *sum)
{
    memset(sum, 0, BINS * sizeof(*sum));
    for (int r = 0; r < s->ranks; r++) {
        const struct logit_bin *bins =
            s->host_bins + ((size_t)r * (size_t)s->n_filters + (size_t)index) * BINS;
        for (int b = 0; b < BINS; b++) {
            sum[b].count += bins[b].count;
            sum[b].mass += bins[b].mass;
        }
    }
}

/* Walks down the bins to the one in which the wanted count or mass is reached. */
static int find_bin(struct filter *filter, const struct logit_bin *bins)
{
    int last = -1;

    for (int b = BINS - 1; b >= 0; b--) {
        if (bins[b].count == 0) {
            continue;
        }
        double reached = filter->by_mass ? filter->above_mass + bins[b].mass
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

/* The histograms of one round, of all rows and ranks, to the host. */
static status gather_bins(struct sampler *s, const float *logits, int shift)
{
    struct member *member = s->member;
    size_t bytes = (size_t)s->n_filters * BINS * sizeof(*s->bins);
    uint32_t prefix[MAX_ROWS];
    status st;

    for (int i = 0; i < s->n_filters; i++) {
        prefix[i] = s->filters[i].prefix;
    }
    st = device_upload(member->dev, s->prefix, prefix, (size_t)s->n_filters * sizeof(*prefix));
    for (int i = 0; !st && i < s->n_filters; i++) {
        st = op_logit_histogram(member->dev, &(struct logit_histogram){
                                                 .out = s->bins + (size_t)i * BINS,
                                                 .logits = row_of(s, logits, s->filters[i].row),
                                                 .prefix = s->prefix + i,
                                                 .peak = s->peak + i,
                                                 .temperature = s->temperature + i,
                                                 .rows = 1,
                                                 .n = member->model->split.vocab_rows,
                                                 .shift = shift,
                                             });
    }
    if (!st) {
        st = comm_all_gather(member->comm, s->bins_of_all, s->bins, bytes);
    }
    return st ? st
              : device_download(member->dev, s->host_bins, s->bins_of_all,
                                (size_t)s->ranks * bytes);
}

/* Ids with one key: how many of them the set needs. */
static uint64_t ties_needed(const struct filter *filter, uint64_t count)
{
    double needed = filter->want - (double)filter->above_count;

    if (filter->by_mass) {
        double each = weight(filter, filter->prefix);
        needed = each > 0 ? ceil((filter->want - filter->above_mass) / each) : (double)count;
    }
    if (needed < 1) {
        return 1;
    }
    return needed < (double)count ? (uint64_t)needed : count;
}

/* Which of the ids with the floor's key stay, by the last round's counts of each rank: they are
 * the lowest ids, and ranks hold the vocabulary in order. */
static void take_ties(struct sampler *s, int index, uint64_t count)
{
    struct filter *filter = &s->filters[index];
    uint64_t left = ties_needed(filter, count);

    if (filter->by_mass && filter->limited) {
        if (filter->prefix < filter->floor_key) {
            return; /* by rounding alone: the top_k set has that mass */
        }
        if (filter->prefix == filter->floor_key && left > filter->ties) {
            left = filter->ties;
        }
    }
    filter->floor_key = filter->prefix;
    filter->ties = left;
    filter->cuts_ties = left < count;
    filter->total = filter->above_mass + (double)left * weight(filter, filter->prefix);
    for (int r = 0; r < s->ranks; r++) {
        const struct logit_bin *bins =
            s->host_bins + ((size_t)r * (size_t)s->n_filters + (size_t)index) * BINS;
        uint64_t here = bins[filter->prefix & 0xff].count;
        uint64_t taken = left < here ? left : here;
        s->host_ties[r * MAX_ROWS + index] = (int32_t)taken;
        left -= taken;
    }
}

/* What a mass has to reach: top_p of the top_k set, or of everything, which the first round sums.
 */
static void set_mass(struct filter *filter, const struct logit_bin *bins)
{
    if (!filter->limited) {
        filter->total = 0;
        for (int b = BINS - 1; b >= 0; b--) {
            filter->total += bins[b].mass;
        }
    }
    filter->want = (double)filter->sampling->top_p * filter->total;
}

/* One row's part of a round. */
static void narrow(struct sampler *s, int index, int shift)
{
    struct filter *filter = &s->filters[index];
    struct logit_bin sum[BINS];

    if (!filter->active) {
        return;
    }
    sum_bins(s, index, sum);
    if (shift == 24 && filter->by_mass) {
        set_mass(filter, sum);
    }
    int bin = find_bin(filter, sum);
    filter->prefix = filter->prefix << 8 | (uint32_t)bin;
    if (shift == 0) {
        take_ties(s, index, sum[bin].count);
    }
}

/* Radix select from the top byte of the key down, for every active row at once. */
static status select_floor(struct sampler *s, const float *logits)
{
    for (int i = 0; i < s->n_filters; i++) {
        s->filters[i].above_count = 0;
        s->filters[i].above_mass = 0;
        s->filters[i].prefix = 0;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        status st = gather_bins(s, logits, shift);
        if (st) {
            return st;
        }
        for (int i = 0; i < s->n_filters; i++) {
            narrow(s, i, shift);
        }
    }
    return STATUS_OK;
}

static bool any_active(const struct sampler *s)
{
    for (int i = 0; i < s->n_filters; i++) {
        if (s->filters[i].active) {
            return true;
        }
    }
    return false;
}

static status apply_top_k(struct sampler *s, const float *logits)
{
    for (int i = 0; i < s->n_filters; i++) {
        struct filter *filter = &s->filters[i];
        uint32_t top_k = filter->sampling->top_k;

        filter->limited = top_k > 0 && top_k < (uint32_t)s->member->model->config.vocab;
        filter->active = filter->limited;
        filter->by_mass = false;
        filter->want = top_k;
    }
    return any_active(s) ? select_floor(s, logits) : STATUS_OK;
}

static status apply_top_p(struct sampler *s, const float *logits)
{
    for (int i = 0; i < s->n_filters; i++) {
        s->filters[i].active = s->filters[i].sampling->top_p < 1.0f;
        s->filters[i].by_mass = true;
    }
    return any_active(s) ? select_floor(s, logits) : STATUS_OK;
}

/* The lowest key whose weight is at least min_p becomes the floor, if it is above it. */
static void apply_min_p(struct filter *filter)
{
    uint32_t low = KEY_MINUS_INFINITY;
    uint32_t high = op_key(filter->peak);

    if (filter->sampling->min_p <= 0) {
        return;
    }
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (weight(filter, middle) >= filter->sampling->min_p) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    if (low > filter->floor_key) {
        filter->floor_key = low;
        filter->cuts_ties = false;
    }
}

/* The id of the `n`th of this rank's logits with the key. */
static status find_tie(struct sampler *s, const float *logits, const struct filter *filter, int n,
                       int32_t *id)
{
    const struct split *split = &s->member->model->split;
    status st = device_download(s->member->dev, s->host_logits, row_of(s, logits, filter->row),
                                (size_t)split->vocab_rows * sizeof(*s->host_logits));

    for (int i = 0; !st && i < split->vocab_rows; i++) {
        if (op_key(s->host_logits[i]) == filter->floor_key && --n == 0) {
            *id = split->vocab_first + i;
            return STATUS_OK;
        }
    }
    assert(st);
    return st;
}

/* tie_id of the rows whose set ends among equal logits: rare, and every rank knows that it does. */
static status find_tie_ids(struct sampler *s, const float *logits)
{
    struct member *member = s->member;
    int32_t mine[MAX_ROWS];
    bool any = false;
    size_t bytes = (size_t)s->n_filters * sizeof(*mine);
    status st = STATUS_OK;

    for (int i = 0; !st && i < s->n_filters; i++) {
        int n = s->host_ties[comm_rank(member->comm) * MAX_ROWS + i];
        any = any || s->filters[i].cuts_ties;
        mine[i] = -1;
        if (s->filters[i].cuts_ties && n > 0) {
            st = find_tie(s, logits, &s->filters[i], n, &mine[i]);
        }
    }
    if (st || !any) {
        return st;
    }
    st = device_upload(member->dev, s->ties, mine, bytes);
    if (!st) {
        st = comm_all_gather(member->comm, s->ties_of_all, s->ties, bytes);
    }
    if (!st) {
        st = device_download(member->dev, s->host_ties, s->ties_of_all, (size_t)s->ranks * bytes);
    }
    for (int i = 0; !st && i < s->n_filters; i++) {
        struct filter *filter = &s->filters[i];
        for (int r = 0; filter->cuts_ties && r < s->ranks; r++) {
            int32_t id = s->host_ties[r * s->n_filters + i];
            filter->tie_id = id > filter->tie_id || filter->tie_id == ANY_ID ? id : filter->tie_id;
        }
    }
    return st;
}

static bool has_filter(const struct sampling *sampling)
{
    return sampling->temperature > 0 &&
           (sampling->top_k > 0 || sampling->top_p < 1.0f || sampling->min_p > 0);
}

/* The largest logit of every filtered row of n, for weights that cannot overflow. */
static status find_peaks(struct sampler *s, const float *logits, int n)
{
    struct device *dev = s->member->dev;
    struct draw draws[MAX_ROWS];
    struct drawn drawn[MAX_ROWS] = {{0}};
    float peak[MAX_ROWS];
    float temperature[MAX_ROWS];
    size_t bytes = (size_t)s->n_filters * sizeof(float);

    for (int i = 0; i < n; i++) {
        draws[i] = (struct draw){.tie_id = ANY_ID};
    }
    status st = draw_all(s, drawn, logits, draws, n);
    for (int i = 0; !st && i < s->n_filters; i++) {
        struct filter *filter = &s->filters[i];
        filter->peak = peak[i] = drawn[filter->row].value;
        temperature[i] = filter->sampling->temperature;
        if (isinf(filter->peak)) {
            st = status_fail(STATUS_INTERNAL, "sampler: the logits are not finite");
        }
    }
    if (!st) {
        st = device_upload(dev, s->peak, peak, bytes);
    }
    return st ? st : device_upload(dev, s->temperature, temperature, bytes);
}

/* Narrows the draws of the rows that have a filter. */
static status filter_draws(struct sampler *s, const float *logits, struct draw *draws, int n)
{
    status st = find_peaks(s, logits, n);

    if (!st) {
        st = apply_top_k(s, logits);
    }
    if (!st) {
        st = apply_top_p(s, logits);
    }
    for (int i = 0; !st && i < s->n_filters; i++) {
        apply_min_p(&s->filters[i]);
    }
    if (!st) {
        st = find_tie_ids(s, logits);
    }
    for (int i = 0; i < s->n_filters; i++) {
        draws[s->filters[i].row].floor_key = s->filters[i].floor_key;
        draws[s->filters[i].row].tie_id = s->filters[i].tie_id;
    }
    return st;
}

status sampler_choose(struct sampler *sampler, int32_t *ids, const float *logits,
                      const struct sampler_row *rows, int n)
{
    struct draw draws[MAX_ROWS];
    struct drawn drawn[MAX_ROWS] = {{0}};
    status st = STATUS_OK;

    assert(n > 0 && n <= MAX_ROWS);
    sampler->n_filters = 0;
    for (int i = 0; i < n; i++) {
        const struct sampling *sampling = rows[i].sampling;
        draws[i] = (struct draw){
            .temperature = sampling->temperature,
            .seed = sampling->seed,
            .sample = sampling->sample,
            .step = rows[i].step,
            .tie_id = ANY_ID,
        };
        if (has_filter(sampling)) {
            sampler->filters[sampler->n_filters++] =
                (struct filter){.row = i, .sampling = sampling, .tie_id = ANY_ID};
        }
    }
    if (sampler->n_filters > 0) {
        st = filter_draws(sampler, logits, draws, n);
    }
    if (!st) {
        st = draw_all(sampler, drawn, logits, draws, n);
    }
    for (int i = 0; !st && i < n; i++) {
        ids[i] = drawn[i].id;
    }
    return st;
}
