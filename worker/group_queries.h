/*
 * group_queries.h - the queries of a KV head that lies on several ranks, brought together.
 *
 * With more ranks than KV heads a rank has a part of its head's query group only.  What every row
 * of the head's cache gets of the whole group's attention is found by each of them from the queries
 * of all: as many bytes for a cache of any length, and the same bits on all ranks.
 */
#ifndef WORKER_GROUP_QUERIES_H
#define WORKER_GROUP_QUERIES_H

#include "worker/member.h"

/* Of a decode step, for all ranks of the model or for none. */
static inline bool group_queries_lie_apart(const struct model *model)
{
    return model->split.ranks > model->config.kv_heads;
}

/* Query heads of the whole group. */
static inline int group_queries_heads(const struct model *model)
{
    return model->config.query_heads / model->config.kv_heads;
}

/* The most query heads that any rank has. */
int group_queries_most(const struct model *model);

/* list (n, group heads) = where each row's queries lie in what group_queries_gather() brings. */
void group_queries_list(int32_t *list, const struct member *member, int n);

/* scratch->group_q (n, group heads, head_dim) = the queries of all ranks of this rank's KV head,
 * whose own are q (n, query heads, head_dim), with room for `most` heads in each row; `list` is
 * that of group_queries_list() on the device.  Every rank of the model calls it. */
status group_queries_gather(struct member *member, const void *q, const int32_t *list, int n);

#endif
