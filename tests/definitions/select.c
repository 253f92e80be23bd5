#include "tests/definitions/select.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void define_group_reduce(double *out, const float *in, int groups, int group, int n,
                         enum group_reduce how)
{
    for (int i = 0; i < groups; i++) {
        for (int j = 0; j < n; j++) {
            double value = how == GROUP_MAX ? -INFINITY : 0.0;

            for (int h = 0; h < group; h++) {
                double x = in[((size_t)i * (size_t)group + (size_t)h) * (size_t)n + (size_t)j];

                value = how == GROUP_MAX ? fmax(value, x) : value + x;
            }
            out[(size_t)i * (size_t)n + (size_t)j] = how == GROUP_MEAN ? value / group : value;
        }
    }
}

static double pool_at(const float *row, int n, int j, int kernel, enum pooling how)
{
    double value = how == POOLING_MAX ? -INFINITY : 0.0;

    for (int i = j - kernel / 2; i <= j + kernel / 2; i++) {
        if (i >= 0 && i < n) {
            value = how == POOLING_MAX ? fmax(value, (double)row[i]) : value + (double)row[i];
        }
    }
    return how == POOLING_AVG ? value / kernel : value;
}

void define_pool(double *out, const float *in, int rows, int n, int kernel, enum pooling how)
{
    for (int r = 0; r < rows; r++) {
        size_t row = (size_t)r * (size_t)n;

        for (int j = 0; j < n; j++) {
            out[row + (size_t)j] = pool_at(in + row, n, j, kernel, how);
        }
    }
}

struct ranked {
    float score;
    int32_t index;
};

static int best_first(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    bool x_nan = isnan(x->score), y_nan = isnan(y->score);

    if (x_nan != y_nan) {
        return x_nan ? 1 : -1;
    }
    if (!x_nan && x->score != y->score) {
        return x->score > y->score ? -1 : 1;
    }
    return x->index < y->index ? -1 : 1;
}

static int ascending(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

    return (x > y) - (x < y);
}

void define_top_k(int32_t *index, const float *score, int n, int k)
{
    struct ranked *all = calloc((size_t)n + 1, sizeof(*all));

    assert(all);
    for (int i = 0; i < n; i++) {
        all[i] = (struct ranked){.score = score[i], .index = i};
    }
    qsort(all, (size_t)n, sizeof(*all), best_first);
    for (int i = 0; i < k; i++) {
        index[i] = all[i].index;
    }
    qsort(index, (size_t)k, sizeof(*index), ascending);
    free(all);
}

double define_gumbel(uint64_t seed, uint32_t sample, uint32_t step, uint32_t id)
{
    uint32_t x[4] = {id / 2, step, sample, 0};
    uint32_t key[2] = {(uint32_t)(seed & 0xffffffffu), (uint32_t)(seed >> 32)};

    for (int round = 0; round < 10; round++) {
        uint64_t first = 3528531795u * (uint64_t)x[0];
        uint64_t second = 3449720151u * (uint64_t)x[2];
        uint32_t next[4] = {
            (uint32_t)(second >> 32) ^ x[1] ^ key[0],
            (uint32_t)second,
            (uint32_t)(first >> 32) ^ x[3] ^ key[1],
            (uint32_t)first,
        };

        memcpy(x, next, sizeof(x));
        key[0] += 2654435769u;
        key[1] += 3144134277u;
    }
    uint64_t word = (uint64_t)x[id % 2 * 2 + 1] << 32 | x[id % 2 * 2];
    double u = ((double)(word >> 12) + 0.5) / 4503599627370496.0;

    return -log(-log(u));
}

void define_penalize(float *out, const float *logits, int n, const struct penalty *penalty,
                     const uint32_t *seen)
{
    for (int i = 0; i < n; i++) {
        int generated = (int)(seen[i] & 0x7fffffffu);
        double x = logits[i];

        if (seen[i] != 0 && x > 0) {
            x /= (double)penalty->repetition;
        } else if (seen[i] != 0) {
            x *= (double)penalty->repetition;
        }
        x -= (double)penalty->frequency * generated;
        x -= generated > 0 ? (double)penalty->presence : 0.0;
        out[i] = (float)x;
    }
}

struct drawn define_draw(const float *logits, int n, int first_id, const struct draw *draw)
{
    struct drawn best = {.value = -INFINITY, .id = -1};

    for (int i = 0; i < n; i++) {
        uint32_t key = op_key(logits[i]);
        int32_t id = first_id + i;
        float z = logits[i];

        if (isnan(z) || key < draw->floor_key || (key == draw->floor_key && id > draw->tie_id)) {
            continue;
        }
        if (draw->temperature > 0) {
            z = (float)((double)z / draw->temperature +
                        define_gumbel(draw->seed, draw->sample, draw->step, (uint32_t)id));
        }
        if (best.id < 0 || z > best.value) {
            best = (struct drawn){.value = z, .id = id};
        }
    }
    return best;
}

void define_key_counts(const struct key_counts *args)
{
    for (int r = 0; r < args->rows; r++) {
        int32_t *out = args->out + (size_t)r * OP_KEY_BINS;

        memset(out, 0, OP_KEY_BINS * sizeof(*out));
        for (int i = 0; i < args->n; i++) {
            float score = args->scores[(size_t)r * (size_t)args->n + (size_t)i];
            uint64_t key = op_key(score == 0.0F ? 0.0F : score);

            if (args->shift == 24 || key >> (args->shift + 8) == args->prefix) {
                out[(key >> args->shift) % OP_KEY_BINS]++;
            }
        }
    }
}

void define_logit_histogram(const struct logit_histogram *args)
{
    for (int r = 0; r < args->rows; r++) {
        const struct logit_filter *filter = &args->filters[r];
        struct logit_bin *out = args->out + (size_t)r * OP_HISTOGRAM_BINS;
        const float *row = args->logits + (size_t)filter->row * (size_t)args->n;

        memset(out, 0, OP_HISTOGRAM_BINS * sizeof(*out));
        for (int i = 0; i < args->n; i++) {
            double logit = row[i];
            uint64_t key = op_key(row[i]);

            if (isnan(logit) || (args->shift < 24 && key >> (args->shift + 8) != filter->prefix)) {
                continue;
            }
            out[(key >> args->shift) % 256].count++;
            out[(key >> args->shift) % 256].mass +=
                exp((logit - args->peaks[filter->row].value) / filter->temperature);
        }
    }
}

static const float *likely;

static int likeliest_first(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    uint32_t key_x = op_key(likely[x]), key_y = op_key(likely[y]);

    return key_x != key_y ? (key_x > key_y ? -1 : 1) : x - y;
}

void define_filter(bool *stays, const float *logits, int n, const struct logit_filter *filter)
{
    int *order = malloc((size_t)n * sizeof(*order));
    double *weight = malloc((size_t)n * sizeof(*weight)), total = 0, mass = 0;
    int kept = 0, left = 0;

    for (int i = 0; i < n; i++) {
        stays[i] = false;
        if (!isnan(logits[i])) {
            order[left++] = i;
        }
    }
    likely = logits;
    qsort(order, (size_t)left, sizeof(*order), likeliest_first);
    left = filter->top_k > 0 && filter->top_k < (uint32_t)left ? (int)filter->top_k : left;
    for (int i = 0; i < left; i++) {
        weight[i] = exp(((double)logits[order[i]] - logits[order[0]]) / filter->temperature);
        total += weight[i];
    }
    while (filter->top_p < 1.0f && kept < left && (kept == 0 || mass < filter->top_p * total)) {
        mass += weight[kept++];
    }
    left = filter->top_p < 1.0f ? kept : left;
    for (int i = 0; i < left && weight[i] >= filter->min_p; i++) {
        stays[order[i]] = true;
    }
    free(order);
    free(weight);
}

static bool may_go(const struct evict_rule *rule, const struct kv_note *note)
{
    bool fixed = note->position < rule->first || note->position > rule->recent;

    return !fixed && (note->marks & rule->marks) == 0;
}

int define_evict(const struct evict_rule *rule, struct kv_note *notes)
{
    int others = 0, heavier_than_worst = -1, worst = -1;

    notes[rule->rows - 1] = (struct kv_note){.position = rule->position, .marks = rule->new_marks};
    /* The one that all others beat. */
    for (int i = 0; i < rule->rows; i++) {
        int beaten_by = 0;

        others += may_go(rule, &notes[i]);
        for (int j = 0; may_go(rule, &notes[i]) && j < rule->rows; j++) {
            beaten_by += may_go(rule, &notes[j]) &&
                         (notes[j].mass > notes[i].mass || (notes[j].mass == notes[i].mass &&
                                                            notes[j].position < notes[i].position));
        }
        if (may_go(rule, &notes[i]) && beaten_by > heavier_than_worst) {
            heavier_than_worst = beaten_by;
            worst = i;
        }
    }
    return others > rule->n_others ? worst : -1;
}
