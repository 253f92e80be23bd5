#include "worker/logprobs.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_ROWS = SHARDS_MAX_ROWS, MAX_TOP = PLAN_MAX_LOGPROBS };

/* What a rank says: vocabulary rows of the largest logits of each row that is wanted, these logits,
 * and, of every row, the logit of the chosen token if it is this rank's. */
struct places {
    int32_t index[MAX_ROWS][MAX_TOP];
    float value[MAX_ROWS][MAX_TOP];
    float chosen[MAX_ROWS];
};

/* On the device. */
struct logprobs_memory {
    struct logit_filter filters[MAX_ROWS];
    struct drawn peaks[MAX_ROWS];
    struct places here;
    struct places of_all[]; /* (ranks) */
};

struct logprobs {
    struct member *member;
    struct shards *shards;
    struct logprobs_memory *memory;
    struct logit_filter filters[MAX_ROWS];
    struct places *of_all; /* (ranks) */
};

uint64_t logprobs_bytes(int ranks)
{
    return sizeof(struct logprobs_memory) + (uint64_t)ranks * sizeof(struct places);
}

status logprobs_create(struct logprobs **out, struct member *member, struct shards *shards)
{
    int ranks = comm_size(member->comm);
    struct logprobs *logprobs = calloc(1, sizeof(*logprobs));
    void *memory = NULL;

    if (!logprobs) {
        return status_fail(STATUS_EXHAUSTED, "logprobs: out of memory");
    }
    logprobs->member = member;
    logprobs->shards = shards;
    logprobs->of_all = calloc((size_t)ranks, sizeof(*logprobs->of_all));
    status st =
        logprobs->of_all ? STATUS_OK : status_fail(STATUS_EXHAUSTED, "logprobs: out of memory");
    if (!st) {
        st = device_alloc(member->dev, &memory, logprobs_bytes(ranks), "logprobs");
    }
    if (st) {
        logprobs_destroy(logprobs);
        return st;
    }
    logprobs->memory = memory;
    *out = logprobs;
    return STATUS_OK;
}

void logprobs_destroy(struct logprobs *logprobs)
{
    if (logprobs) {
        device_free(logprobs->member->dev, logprobs->memory);
        free(logprobs->of_all);
        free(logprobs);
    }
}

/* How many places of this rank a row fills: at least one, which the peak needs. */
static int n_here(int n_top, int vocab_rows)
{
    int n = n_top > 0 ? n_top : 1;

    return n < vocab_rows ? n : vocab_rows;
}

/* The places of every row, of all ranks, on their way to the host. */
static status gather_places(struct logprobs *logprobs, const struct logprobs_step *step)
{
    const struct member *member = logprobs->member;
    const struct split *split = &member->model->split;
    struct places *here = &logprobs->memory->here;
    size_t ranks = (size_t)comm_size(member->comm);
    status st = op_logits_of(member->dev, here->chosen, step->logits, step->rows, split->vocab_rows,
                             split->vocab_first, step->chosen);

    for (int i = 0; !st && i < step->n; i++) {
        const float *row = step->logits + (size_t)step->wanted[i].row * (size_t)split->vocab_rows;
        int n = n_here(step->wanted[i].n_top, split->vocab_rows);

        st = op_top_k(member->dev, here->index[i], row, split->vocab_rows, n);
        if (!st) {
            st = op_gather_rows(member->dev, here->value[i], row, here->index[i], n, sizeof(float));
        }
    }
    if (!st) {
        st = comm_all_gather(member->comm, logprobs->memory->of_all, here, sizeof(*here));
    }
    return st ? st
              : device_fetch(member->dev, logprobs->of_all, logprobs->memory->of_all,
                             ranks * sizeof(*here));
}

/* Of a top_p filter the first round alone, which sums the mass of everything. */
static status sum_masses(struct logprobs *logprobs, const struct logprobs_step *step)
{
    struct device *dev = logprobs->member->dev;
    struct logprobs_memory *memory = logprobs->memory;
    size_t bytes = (size_t)step->n * sizeof(*logprobs->filters);
    status st = shards_draw(logprobs->shards, memory->peaks, step->logits, NULL, step->rows);

    for (int i = 0; i < step->n; i++) {
        logprobs->filters[i] =
            (struct logit_filter){.row = step->wanted[i].row, .temperature = 1.0F};
    }
    if (!st) {
        st = device_upload(dev, memory->filters, logprobs->filters, bytes);
    }
    if (!st) {
        st = shards_narrow(logprobs->shards, &(struct shards_round){
                                                 .filters = memory->filters,
                                                 .peaks = memory->peaks,
                                                 .logits = step->logits,
                                                 .n = step->n,
                                                 .shift = 24,
                                                 .by_mass = true,
                                             });
    }
    return st ? st : device_fetch(dev, logprobs->filters, memory->filters, bytes);
}

status logprobs_begin(struct logprobs *logprobs, const struct logprobs_step *step)
{
    status st = gather_places(logprobs, step);

    return st ? st : sum_masses(logprobs, step);
}

/* Puts a logit behind those that are not less, and forgets what is then beyond `want`. */
static void insert(struct logprobs_found *out, int want, float value, int id)
{
    int at = (int)out->n_top;

    for (; at > 0 && value > out->top_logprobs[at - 1]; at--) {
        if (at < want) {
            out->top_logprobs[at] = out->top_logprobs[at - 1];
            out->top_ids[at] = out->top_ids[at - 1];
        }
    }
    if (at < want) {
        out->top_logprobs[at] = value;
        out->top_ids[at] = (uint32_t)id;
        out->n_top += (int)out->n_top < want;
    }
}

/* The largest logits of all ranks in order; those of a rank ascend by id, and so do the ranks, so
 * of equal ones the first met has the lowest id.  These are logits still, the token's too. */
static status merge(const struct logprobs *logprobs, struct logprobs_found *out,
                    const struct logprobs_row *row, int i, int32_t token)
{
    int want = row->n_top > 0 ? row->n_top : 1;
    int ranks = comm_size(logprobs->member->comm);

    out->n_top = 0;
    for (int rank = 0; rank < ranks; rank++) {
        const struct places *places = &logprobs->of_all[rank];
        struct split split;
        status st = split_for_rank(&split, &logprobs->member->model->config, rank, ranks);
        if (st) {
            return st;
        }
        for (int j = 0; j < n_here(row->n_top, split.vocab_rows); j++) {
            insert(out, want, places->value[i][j], split.vocab_first + places->index[i][j]);
        }
        if (token >= split.vocab_first && token < split.vocab_first + split.vocab_rows) {
            out->logprob = places->chosen[row->row];
        }
    }
    return STATUS_OK;
}

status logprobs_end(const struct logprobs *logprobs, struct logprobs_found *const *out,
                    const struct logprobs_step *step, const int32_t *ids)
{
    status st = STATUS_OK;

    for (int i = 0; !st && i < step->n; i++) {
        const struct logprobs_row *row = &step->wanted[i];
        st = merge(logprobs, out[i], row, i, ids[row->row]);
        /* the logarithm of the sum of the row's exponentials */
        double total = out[i]->top_logprobs[0] + log(logprobs->filters[i].total);
        out[i]->logprob = (float)(out[i]->logprob - total);
        for (uint32_t j = 0; j < out[i]->n_top; j++) {
            out[i]->top_logprobs[j] = (float)(out[i]->top_logprobs[j] - total);
        }
        if (row->n_top == 0) {
            out[i]->n_top = 0;
        }
    }
    return st;
}
