/* select.h - pooling, group reduction, top-k and draws as plain definitions, in double. */
#ifndef TESTS_DEFINITIONS_SELECT_H
#define TESTS_DEFINITIONS_SELECT_H

#include "kernels/op.h"

void define_group_reduce(double *out, const float *in, int groups, int group, int n,
                         enum group_reduce how);
void define_pool(double *out, const float *in, int rows, int n, int kernel, enum pooling how);

/* By sorting. */
void define_top_k(int32_t *index, const float *score, int n, int k);

void define_key_counts(const struct key_counts *args);

/* The Gumbel noise of one token, straight from its description in kernels/cpu/philox.h. */
double define_gumbel(uint64_t seed, uint32_t sample, uint32_t step, uint32_t id);
/* One row; `seen` is not changed, so the token must have joined it. */
void define_penalize(float *out, const float *logits, int n, const struct penalty *penalty,
                     const uint32_t *seen);
struct drawn define_draw(const float *logits, int n, int first_id, const struct draw *draw);
void define_logit_histogram(const struct logit_histogram *args);
/* stays (n): the ids of one row of a whole vocabulary that a filter leaves, by sorting. */
void define_filter(bool *stays, const float *logits, int n, const struct logit_filter *filter);
/* The row that goes, or -1; notes (rows), in the order of the rows, are as op_evict() leaves
 * them where no attention joins. */
int define_evict(const struct evict_rule *rule, struct kv_note *notes);

#endif
