/* score.h - what the policies choose by: window scores, reduced over query groups and pooled. */
#ifndef WORKER_POLICY_SCORE_H
#define WORKER_POLICY_SCORE_H

#include "worker/policy.h"

/* *out = scores (cache heads, rows - window) of the layer by its last `window` queries; it lies
 * in scratch.  A query head's is its own; a KV head's covers its whole query group, on however
 * many ranks that lies.
 * GROUP_MEAN is summed, not divided: it ranks alike, and a split group needs no rescaling. */
status score_window(struct member *member, const struct policy_layer *layer, const float **out);

/* *out = column sums (cache heads, rows) reduced over query groups, by the maximum or summed, in
 * `to` (query heads, rows) or where they were. */
status score_sums(struct member *member, const struct policy_layer *layer, const float *sums,
                  float *to, bool max, const float **out);

/* index (n_kept) = the n_kept - window best of score (rows - window), equal scores by the lower
 * row, then the last `window` rows: ascending, on the device. */
status score_keep(struct member *member, int32_t *index, const float *score, int rows, int window,
                  int n_kept);

/* score (n), on the device: entries [first, first + count) become better than every other. */
status score_pin(struct member *member, float *score, int first, int count);

/* Rows of a layer that score the rows before them as their own keys come, chunk by chunk. */
struct score_rows {
    const void *q;     /* (end - first, query heads, head_dim): the rows' queries, rotated */
    int first, end;    /* of the layer's rows; keys 0..end are there */
    int scored;        /* rows 0..scored are scored; scored <= first */
    float weight;      /* of row first, */
    float weight_step; /* and how much more each later row counts */
};

/* layer->sums (scored) += the weighted probabilities of the rows, over this rank's query heads.
 * The first rows to score, where rows->first == rows->scored, start from zero. */
status score_add_rows(struct member *member, const struct policy_layer *layer,
                      const struct score_rows *rows);

/* score_keep() for every cache head of this rank, as many rows as out->n_kept says. */
status score_keep_heads(struct member *member, const struct policy_layer *layer,
                        const float *scores, struct policy_choice *out);

/* The same with the layer's own count for every cache head. */
status score_keep_uniform(struct member *member, const struct policy_layer *layer,
                          const float *scores, struct policy_choice *out);

/* A whole choice by window scores, the same number of rows for every cache head. */
status score_choose_uniform(struct member *member, const struct policy_layer *layer,
                            struct policy_choice *out);

#endif
