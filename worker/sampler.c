#include "worker/sampler.h"

#include "common/plan.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

enum { MAX_ROWS = SHARDS_MAX_ROWS };

/* What a step brings. */
struct lists {
    struct draw draws[MAX_ROWS];
    struct logit_filter filters[MAX_ROWS]; /* of the rows that have one */
};

/* On the device. */
struct sampler_memory {
    struct lists lists;
    struct drawn peaks[MAX_ROWS];
    struct drawn chosen[MAX_ROWS];
};

struct sampler {
    struct member *member;
    struct shards *shards;
    struct sampler_memory *memory;
    struct lists lists;
    struct drawn chosen[MAX_ROWS];
};

uint64_t sampler_bytes(void)
{
    return sizeof(struct sampler_memory);
}

status sampler_create(struct sampler **out, struct member *member, struct shards *shards)
{
    struct sampler *s = calloc(1, sizeof(*s));
    void *memory;

    if (!s) {
        return status_fail(STATUS_EXHAUSTED, "sampler: out of memory");
    }
    s->member = member;
    s->shards = shards;
    status st = device_alloc(member->dev, &memory, sampler_bytes(), "sampler");
    if (st) {
        free(s);
        return st;
    }
    s->memory = memory;
    *out = s;
    return STATUS_OK;
}

void sampler_destroy(struct sampler *sampler)
{
    if (sampler) {
        device_free(sampler->member->dev, sampler->memory);
        free(sampler);
    }
}

static bool has_filter(const struct sampling *sampling)
{
    return sampling->temperature > 0 &&
           (sampling->top_k > 0 || sampling->top_p < 1.0F || sampling->min_p > 0);
}

/* All four rounds of one kind. */
static status run_rounds(const struct sampler *s, const float *logits, int n, bool by_mass)
{
    status st = STATUS_OK;

    for (int shift = 24; !st && shift >= 0; shift -= 8) {
        st = shards_narrow(s->shards, &(struct shards_round){
                                          .filters = s->memory->lists.filters,
                                          .peaks = s->memory->peaks,
                                          .logits = logits,
                                          .n = n,
                                          .shift = shift,
                                          .by_mass = by_mass,
                                      });
    }
    return st;
}

/* Narrows the draws of the rows that one of the n filters is for, of `rows` in all. */
static status filter_draws(const struct sampler *s, const float *logits, int rows, int n)
{
    const struct split *split = &s->member->model->split;
    bool any_k = false;
    bool any_p = false;

    for (int i = 0; i < n; i++) {
        any_k |= s->lists.filters[i].top_k > 0;
        any_p |= s->lists.filters[i].top_p < 1.0F;
    }
    /* The largest logits, for weights that cannot overflow. */
    status st = shards_draw(s->shards, s->memory->peaks, logits, NULL, rows);
    if (!st && any_k) {
        st = run_rounds(s, logits, n, false);
    }
    if (!st && any_p) {
        st = run_rounds(s, logits, n, true);
    }
    return st ? st
              : op_filter_draws(s->member->dev, &(struct filtered_draws){
                                                    .draws = s->memory->lists.draws,
                                                    .filters = s->memory->lists.filters,
                                                    .peaks = s->memory->peaks,
                                                    .logits = logits,
                                                    .rows = n,
                                                    .n = split->vocab_rows,
                                                    .first_id = split->vocab_first,
                                                });
}

/* Returns the number of filters. */
static int list_rows(struct sampler *s, const struct sampler_row *rows, int n)
{
    uint32_t vocab = (uint32_t)s->member->model->config.vocab;
    int n_filters = 0;

    for (int i = 0; i < n; i++) {
        const struct sampling *sampling = rows[i].sampling;
        s->lists.draws[i] = (struct draw){
            .temperature = sampling->temperature,
            .seed = sampling->seed,
            .sample = sampling->sample,
            .step = rows[i].step,
            .tie_id = OP_ANY_ID,
        };
        if (has_filter(sampling)) {
            s->lists.filters[n_filters++] = (struct logit_filter){
                .row = i,
                .temperature = sampling->temperature,
                .top_k = sampling->top_k < vocab ? sampling->top_k : 0,
                .top_p = sampling->top_p,
                .min_p = sampling->min_p,
            };
        }
    }
    return n_filters;
}

status sampler_begin(struct sampler *sampler, const float *logits, const struct sampler_row *rows,
                     int n)
{
    struct device *dev = sampler->member->dev;
    struct sampler_memory *memory = sampler->memory;

    assert(n > 0 && n <= MAX_ROWS);
    int n_filters = list_rows(sampler, rows, n);
    status st = device_upload(dev, &memory->lists, &sampler->lists, sizeof(sampler->lists));
    if (!st && n_filters > 0) {
        st = filter_draws(sampler, logits, n, n_filters);
    }
    if (!st) {
        st = shards_draw(sampler->shards, memory->chosen, logits, memory->lists.draws, n);
    }
    return st ? st
              : device_fetch(dev, sampler->chosen, memory->chosen,
                             (size_t)n * sizeof(*sampler->chosen));
}

const struct drawn *sampler_chosen(const struct sampler *sampler)
{
    return sampler->memory->chosen;
}

status sampler_end(const struct sampler *sampler, int32_t *ids, int n)
{
    for (int i = 0; i < n; i++) {
        if (sampler->chosen[i].id < 0 || isnan(sampler->chosen[i].value)) {
            return status_fail(STATUS_INTERNAL, "sampler: the logits are not finite numbers");
        }
        ids[i] = sampler->chosen[i].id;
    }
    return STATUS_OK;
}
