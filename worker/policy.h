/*
 * policy.h - a compression method: which rows of a layer each cache head keeps, and which rows
 * go on to the next layer.
 *
 * A policy is asked once a layer, when all keys of the layer are there.  It is one file in
 * policy/ and one line of the table in policy.c, built from the primitives of policy/score.h
 * and tsp.h.  How many rows survive is decided in common/method.h, which the coordinator
 * plans memory with: a policy decides which.
 */
#ifndef WORKER_POLICY_H
#define WORKER_POLICY_H

#include "worker/member.h"

/* A layer of one prompt. */
struct policy_layer {
    const struct method_params *params;
    int layer;
    int n_prompt;
    int rows;                 /* that entered the layer */
    struct layer_rows counts; /* what the method leaves of them */
    const void *k, *v;        /* (kv heads, rows, head_dim), heads kv_stride elements apart */
    size_t kv_stride;
    const void *window_q;     /* (window, query heads, head_dim): the last rows' queries, rotated */
    const float *window_lse;  /* (window, query heads) their attention's, or NULL: it did not run */
    float *sums;              /* what score_add_rows() added up; NULL: the layer drops no rows */
    const float *scores;      /* (query heads, rows) of SLICE_SCORES; NULL: there were none */
    const int32_t *positions; /* (rows) original positions */
    const float *columns;     /* (query heads, rows) column sums, where the method has them */
    const float *near_columns; /* likewise, of near pairs alone; FASTGEN */
    const uint8_t *marks;      /* (n_prompt) evict_mark() of the tokens, on the host; FASTGEN */
    int32_t *propagated;       /* (rows) where a list of propagated rows goes */
};

/* Lists of rows of the layer, ascending, in device memory; NULL: all rows. */
struct policy_choice {
    const int32_t *kept; /* list of cache head h at h * kept_stride */
    size_t kept_stride;
    int n_kept[MODEL_MAX_HEADS]; /* by each cache head of this rank */
    const int32_t *propagated;   /* == policy_layer.propagated or NULL */
    int n_propagated;
    const float *mass; /* (cache heads, rows) attention that rows got, where the method goes on
                        * adding it up; else NULL */
    uint8_t policies[MODEL_MAX_HEADS]; /* of enum fastgen_policy; FASTGEN */
};

struct policy {
    bool window_queries; /* choose() reads window_q, or scores, where a selection takes place */
    bool sums_rows;      /* choose() reads sums where rows are dropped, which may be everywhere */
    status (*choose)(struct member *member, const struct policy_layer *layer,
                     struct policy_choice *out);
};

extern const struct policy policy_full, policy_fastkv, policy_snapkv, policy_adakv, policy_headkv,
    policy_streamingllm, policy_pyramidkv, policy_gemfilter, policy_pyramidinfer, policy_h2o,
    policy_fastgen;

/* The policy of a supported method. */
const struct policy *policy_for(enum method method);

#endif
