#include "worker/penalties.h"

#include <stdlib.h>
#include <string.h>

struct penalties {
    struct member *member;
    float *logits;          /* (OP_MAX_DECODE_ROWS, vocabulary rows): penalized */
    struct penalty *device; /* (OP_MAX_DECODE_ROWS) */
    uint32_t *seen;         /* (PLAN_MAX_SLOTS, vocabulary rows): each slot's own */
    uint32_t *host_seen;    /* (vocabulary rows) */
};

static size_t logits_bytes(const struct model *model)
{
    return (size_t)OP_MAX_DECODE_ROWS * (size_t)model->split.vocab_rows * sizeof(float);
}

static size_t seen_bytes(const struct model *model)
{
    return (size_t)model->split.vocab_rows * sizeof(uint32_t);
}

uint64_t penalties_bytes(const struct model *model)
{
    return logits_bytes(model) + PLAN_MAX_SLOTS * seen_bytes(model) +
           OP_MAX_DECODE_ROWS * sizeof(struct penalty);
}

status penalties_create(struct penalties **out, struct member *member)
{
    struct penalties *penalties = calloc(1, sizeof(*penalties));
    void *logits = NULL;
    void *device = NULL;
    void *seen = NULL;

    if (!penalties) {
        return status_fail(STATUS_EXHAUSTED, "penalties: out of memory");
    }
    penalties->member = member;
    penalties->host_seen =
        calloc((size_t)member->model->split.vocab_rows, sizeof(*penalties->host_seen));
    status st = penalties->host_seen ? STATUS_OK
                                     : status_fail(STATUS_EXHAUSTED, "penalties: out of memory");
    if (!st) {
        st = device_alloc(member->dev, &logits, logits_bytes(member->model), "penalized logits");
    }
    if (!st) {
        st = device_alloc(member->dev, &device, OP_MAX_DECODE_ROWS * sizeof(*penalties->device),
                          "penalties");
    }
    if (!st) {
        st = device_alloc(member->dev, &seen, PLAN_MAX_SLOTS * seen_bytes(member->model),
                          "tokens that sequences have seen");
    }
    penalties->seen = seen;
    penalties->logits = logits;
    penalties->device = device;
    if (st) {
        penalties_destroy(penalties);
        return st;
    }
    *out = penalties;
    return STATUS_OK;
}

void penalties_destroy(struct penalties *penalties)
{
    if (penalties) {
        device_free(penalties->member->dev, penalties->logits);
        device_free(penalties->member->dev, penalties->seen);
        device_free(penalties->member->dev, penalties->device);
        free(penalties->host_seen);
        free(penalties);
    }
}

static bool has_penalties(const struct sampling *sampling)
{
    return sampling->repetition_penalty != 1.0F || sampling->frequency_penalty != 0.0F ||
           sampling->presence_penalty != 0.0F;
}

status penalties_begin(struct penalties *penalties, struct sequence *sequence,
                       const int32_t *prompt, int n)
{
    const struct split *split = &penalties->member->model->split;
    size_t bytes = seen_bytes(penalties->member->model);
    uint32_t *seen = penalties->seen + (size_t)sequence->slot * (size_t)split->vocab_rows;

    if (!has_penalties(&sequence->sampling)) {
        return STATUS_OK;
    }
    sequence->seen = seen;
    memset(penalties->host_seen, 0, bytes);
    for (int i = 0; i < n; i++) {
        int32_t id = prompt[i] - split->vocab_first;
        if (id >= 0 && id < split->vocab_rows) {
            penalties->host_seen[id] = ~(uint32_t)OP_SEEN_GENERATED;
        }
    }
    return device_upload(penalties->member->dev, seen, penalties->host_seen, bytes);
}

status penalties_apply(struct penalties *penalties, const float **out, const float *logits,
                       struct sequence *const *rows, int n)
{
    const struct split *split = &penalties->member->model->split;
    struct penalty list[OP_MAX_DECODE_ROWS];
    bool any = false;

    for (int i = 0; i < n; i++) {
        const struct sampling *sampling = &rows[i]->sampling;
        list[i] = (struct penalty){
            .repetition = sampling->repetition_penalty,
            .frequency = sampling->frequency_penalty,
            .presence = sampling->presence_penalty,
            .token = rows[i]->n_chosen > 0 ? rows[i]->token : -1,
            .seen = rows[i]->seen,
        };
        any = any || rows[i]->seen;
    }
    *out = any ? penalties->logits : logits;
    if (!any) {
        return STATUS_OK;
    }
    status st =
        device_upload(penalties->member->dev, penalties->device, list, (size_t)n * sizeof(*list));
    return st ? st
              : op_penalize(penalties->member->dev, penalties->logits, logits, n, split->vocab_rows,
                            split->vocab_first, penalties->device);
}
