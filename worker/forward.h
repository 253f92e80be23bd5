/*
 * forward.h - the parts of a layer that prompt chunks and decode steps share.
 *
 * They differ in the linear operation: a chunk belongs to one prompt and may use the library's
 * GEMM, a decode step needs rows whose bits do not depend on their neighbours.
 */
#ifndef WORKER_FORWARD_H
#define WORKER_FORWARD_H

#include "worker/member.h"

typedef status forward_linear(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                              const struct matrix *w, int rows);

/* residual (n, hidden) = embeddings of ids (n): each rank has a part of the vocabulary. */
status forward_embed(const struct member *member, float *residual, const int32_t *ids, int n);

/* residual += attended wo^T, then residual += MLP(residual), rows of scratch->attended. */
status forward_output(const struct member *member, const struct layer_weights *layer,
                      forward_linear *linear, float *residual, int rows);

/* scratch->logits (rows, vocabulary rows of this rank) from residual (rows, hidden). */
status forward_logits(const struct member *member, const float *residual, int rows);

#endif
