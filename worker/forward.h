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

/* They are there after comm_finish() of *ticket. */
status forward_begin_embed(const struct member *member, float *residual, const int32_t *ids, int n,
                           uint64_t *ticket);

/* How products are formed: of a chunk of a prompt, or of rows of different sequences. */
struct forward_products {
    forward_linear *linear;
    status (*each)(struct device *dev, const struct weight_product *products, int n, const void *x,
                   int rows);
    status (*add)(struct device *dev, float *sum, float *scratch, const void *x,
                  const struct matrix *w, int rows);
};
extern const struct forward_products forward_chunk, forward_rows;

/* residual += attended wo^T, then residual += MLP(residual), rows of scratch->attended. */
status forward_output(const struct member *member, const struct layer_weights *layer,
                      const struct forward_products *products, float *residual, int rows);

/* The same in parts for chunks of a prompt, for sums over ranks that are on their way while other
 * rows are computed. */

/* Rows whose summands are summed up over the ranks. */
struct forward_sum {
    float *partial; /* (rows, hidden): the summands, then the sums; whose memory it is in between */
    float *residual; /* (rows, hidden): what they are added to */
    int rows;
    uint64_t ticket; /* of comm_begin_all_reduce() */
};

/* scratch->attended wo^T is on its way to the residual. */
status forward_begin_output(const struct member *member, const struct layer_weights *layer,
                            struct forward_sum *sum);

/* The MLP of sum->residual, which is complete, is on its way to it. */
status forward_begin_mlp(const struct member *member, const struct layer_weights *layer,
                         struct forward_sum *sum);

/* The sum arrives. */
status forward_finish(const struct member *member, const struct forward_sum *sum);

/* scratch->logits (rows, vocabulary rows of this rank) from residual (rows, hidden). */
status forward_logits(const struct member *member, const float *residual, int rows);

#endif
