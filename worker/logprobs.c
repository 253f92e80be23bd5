#include "worker/logprobs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_ROWS = OP_MAX_DECODE_ROWS,
    BINS = OP_HISTOGRAM_BINS,
    PLACES = PLAN_MAX_LOGPROBS + 1, /* the largest logits of a row, then the chosen token's */
    CHOSEN = PLAN_MAX_LOGPROBS,
};

/* What a rank says of a row: its vocabulary rows and their logits. */
struct places {
    int32_t index[MAX_ROWS][PLACES];
    float value[MAX_ROWS][PLACES];
};

struct logprobs {
    struct member *member;
    int ranks;
    void *device_memory;
    /* Device memory: of this rank, then of all. */
    struct places *places;
    struct places *places_of_all;
    struct logit_bin *bins; /* (MAX_ROWS, BINS) */
    struct logit_bin *bins_of_all;
    float *peak;        /* (MAX_ROWS) */
    float *temperature; /* (MAX_ROWS): 1 */
    /* Mirrors on the host. */
    struct places *host_places;  /* (ranks) */
    struct logit_bin *host_bins; /* (ranks, MAX_ROWS, BINS) */
};

/* Lays the tensors out one behind the other; `base` NULL only counts. */
static size_t lay_out(struct logprobs *logprobs, char *base, int ranks)
{
    size_t bins = (size_t)MAX_ROWS * BINS * sizeof(struct logit_bin);
    size_t at = 0;
    const struct {
        void *field;
        size_t bytes;
    } tensors[] = {
        {&logprobs->places, sizeof(struct places)},
        {&logprobs->places_of_all, (size_t)ranks * sizeof(struct places)},
        {&logprobs->bins, bins},
        {&logprobs->bins_of_all, (size_t)ranks * bins},
        {&logprobs->peak, MAX_ROWS * sizeof(float)},
        {&logprobs->temperature, MAX_ROWS * sizeof(float)},
    };

    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        void *tensor = base ? base + at : NULL;
        memcpy(tensors[i].field, &tensor, sizeof(tensor));
        at += (tensors[i].bytes + 63) / 64 * 64;
    }
    return at;
}

uint64_t logprobs_bytes(int ranks)
{
    struct logprobs unused;

    return lay_out(&unused, NULL, ranks);
}

status logprobs_create(struct logprobs **out, struct member *member)
{
    struct logprobs *logprobs = calloc(1, sizeof(*logprobs));
    float ones[MAX_ROWS];

    if (!logprobs) {
        return status_fail(STATUS_EXHAUSTED, "logprobs: out of memory");
    }
    logprobs->member = member;
    logprobs->ranks = comm_size(member->comm);
    logprobs->host_places = calloc((size_t)logprobs->ranks, sizeof(*logprobs->host_places));
    logprobs->host_bins =
        calloc((size_t)logprobs->ranks * MAX_ROWS * BINS, sizeof(*logprobs->host_bins));
    status st = logprobs->host_places && logprobs->host_bins
                    ? STATUS_OK
                    : status_fail(STATUS_EXHAUSTED, "logprobs: out of memory");
    if (!st) {
        st = device_alloc(member->dev, &logprobs->device_memory, logprobs_bytes(logprobs->ranks),
                          "logprobs");
    }
    if (!st) {
        lay_out(logprobs, logprobs->device_memory, logprobs->ranks);
        for (int i = 0; i < MAX_ROWS; i++) {
            ones[i] = 1.0F;
        }
        st = device_upload(member->dev, logprobs->temperature, ones, sizeof(ones));
    }
    if (st) {
        logprobs_destroy(logprobs);
        return st;
    }
    *out = logprobs;
    return STATUS_OK;
}

void logprobs_destroy(struct logprobs *logprobs)
{
    if (logprobs) {
        device_free(logprobs->member->dev, logprobs->device_memory);
        free(logprobs->host_places);
        free(logprobs->host_bins);
        free(logprobs);
    }
}

/* How many places of this rank a row fills: at least one, which the peak needs. */
static int n_here(int n_top, int vocab_rows)
{
    int n = n_top > 0 ? n_top : 1;

    return n < vocab_rows ? n : vocab_rows;
}

/* The places of every row, of all ranks, to the host. */
static status gather_places(struct logprobs *logprobs, const float *logits,
                            const struct logprobs_row *rows, int n)
{
    struct device *dev = logprobs->member->dev;
    const struct split *split = &logprobs->member->model->split;
    status st = STATUS_OK;

    for (int i = 0; !st && i < n; i++) {
        const float *row = logits + (size_t)rows[i].row * (size_t)split->vocab_rows;
        int32_t chosen = rows[i].token - split->vocab_first;
        bool mine = chosen >= 0 && chosen < split->vocab_rows;
        int here = n_here(rows[i].n_top, split->vocab_rows);

        chosen = mine ? chosen : 0; /* another rank's word counts */
        st = op_top_k(dev, logprobs->places->index[i], row, split->vocab_rows, here);
        if (!st) {
            st = op_gather_rows(dev, logprobs->places->value[i], row, logprobs->places->index[i],
                                here, sizeof(float));
        }
        if (!st) {
            st = device_upload(dev, &logprobs->places->index[i][CHOSEN], &chosen, sizeof(chosen));
        }
        if (!st) {
            st = op_gather_rows(dev, &logprobs->places->value[i][CHOSEN], row,
                                &logprobs->places->index[i][CHOSEN], 1, sizeof(float));
        }
    }
    if (!st) {
        st = comm_all_gather(logprobs->member->comm, logprobs->places_of_all, logprobs->places,
                             sizeof(*logprobs->places));
    }
    return st ? st
              : device_download(dev, logprobs->host_places, logprobs->places_of_all,
                                (size_t)logprobs->ranks * sizeof(*logprobs->places));
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
 * of equal ones the first met has the lowest id.  Returns the logit of the chosen token. */
static status merge(struct logprobs *logprobs, struct logprobs_found *out,
                    const struct logprobs_row *row, int i, float *chosen)
{
    int want = row->n_top > 0 ? row->n_top : 1;

    out->n_top = 0;
    for (int rank = 0; rank < logprobs->ranks; rank++) {
        struct split split;
        status st = split_for_rank(&split, &logprobs->member->model->config, rank, logprobs->ranks);
        if (st) {
            return st;
        }
        for (int j = 0; j < n_here(row->n_top, split.vocab_rows); j++) {
            insert(out, want, logprobs->host_places[rank].value[i][j],
                   split.vocab_first + logprobs->host_places[rank].index[i][j]);
        }
        if (row->token >= split.vocab_first && row->token < split.vocab_first + split.vocab_rows) {
            *chosen = logprobs->host_places[rank].value[i][CHOSEN];
        }
    }
    return STATUS_OK;
}

/* Masses of all logits relative to the peaks of their rows, of all ranks, to the host. */
static status gather_masses(struct logprobs *logprobs, const float *logits, const float *peak,
                            const struct logprobs_row *rows, int n)
{
    struct device *dev = logprobs->member->dev;
    int vocab_rows = logprobs->member->model->split.vocab_rows;
    size_t bytes = (size_t)n * BINS * sizeof(*logprobs->bins);
    status st = device_upload(dev, logprobs->peak, peak, (size_t)n * sizeof(*peak));

    for (int i = 0; !st && i < n; i++) {
        st =
            op_logit_histogram(dev, &(struct logit_histogram){
                                        .out = logprobs->bins + (size_t)i * BINS,
                                        .logits = logits + (size_t)rows[i].row * (size_t)vocab_rows,
                                        .peak = logprobs->peak + i,
                                        .temperature = logprobs->temperature + i,
                                        .rows = 1,
                                        .n = vocab_rows,
                                        .shift = 24,
                                    });
    }
    if (!st) {
        st = comm_all_gather(logprobs->member->comm, logprobs->bins_of_all, logprobs->bins, bytes);
    }
    return st ? st
              : device_download(dev, logprobs->host_bins, logprobs->bins_of_all,
                                (size_t)logprobs->ranks * bytes);
}

/* The logarithm of the sum of a row's exponentials. */
static double log_sum(const struct logprobs *logprobs, int i, int n, double peak)
{
    double sum = 0;

    for (int b = BINS - 1; b >= 0; b--) {
        for (int rank = 0; rank < logprobs->ranks; rank++) {
            sum +=
                logprobs->host_bins[((size_t)rank * (size_t)n + (size_t)i) * BINS + (size_t)b].mass;
        }
    }
    return peak + log(sum);
}

status logprobs_find(struct logprobs *logprobs, struct logprobs_found *const *out,
                     const float *logits, const struct logprobs_row *rows, int n)
{
    float peak[MAX_ROWS];
    float chosen[MAX_ROWS] = {0};
    status st = gather_places(logprobs, logits, rows, n);

    for (int i = 0; !st && i < n; i++) {
        st = merge(logprobs, out[i], &rows[i], i, &chosen[i]);
        peak[i] = out[i]->top_logprobs[0];
    }
    if (!st) {
        st = gather_masses(logprobs, logits, peak, rows, n);
    }
    for (int i = 0; !st && i < n; i++) {
        double total = log_sum(logprobs, i, n, peak[i]);
        out[i]->logprob = (float)(chosen[i] - total);
        for (uint32_t j = 0; j < out[i]->n_top; j++) {
            out[i]->top_logprobs[j] = (float)(out[i]->top_logprobs[j] - total);
        }
        if (rows[i].n_top == 0) {
            out[i]->n_top = 0;
        }
    }
    return st;
}
