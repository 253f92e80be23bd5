/*
 * split.h - which part of the model a tensor-parallel rank owns.
 *
 * KV heads go with their query groups, dealt out in order, as evenly as possible.  With more
 * ranks than KV heads each rank has one KV head and a part of its query group: the head is
 * then replicated on `replicas` neighbouring ranks.  MLP columns and vocabulary rows are
 * dealt out evenly up to one.  The coordinator plans with it, the worker loads with it.
 */
#ifndef COMMON_SPLIT_H
#define COMMON_SPLIT_H

#include "common/model_config.h"

struct split {
    int ranks;
    int query_first, query_heads; /* query_heads = kv_heads * local group, always exactly */
    int kv_first, kv_heads;
    int replicas; /* ranks that hold this rank's KV head; 1 unless ranks > KV heads */
    int replica;  /* 0 for the first of them, which speaks for the head in byte figures */
    int mlp_first, mlp_columns;
    int vocab_first, vocab_rows;
};

/* 1 <= ranks <= query_heads, else STATUS_INVALID with the numbers. */
status split_for_rank(struct split *out, const struct model_config *config, int rank, int ranks);

#endif
