#include "worker/group_queries.h"

/* It was valid for this rank, so it is for all. */
static struct split split_of(const struct model *model, int rank)
{
    struct split split = {0};

    (void)split_for_rank(&split, &model->config, rank, model->split.ranks);
    return split;
}

int group_queries_most(const struct model *model)
{
    int most = 0;

    for (int rank = 0; rank < model->split.ranks; rank++) {
        int heads = split_of(model, rank).query_heads;
        most = heads > most ? heads : most;
    }
    return most;
}

void group_queries_list(int32_t *list, const struct member *member, int n)
{
    const struct model *model = member->model;
    int first = comm_rank(member->comm) - model->split.replica;
    int of_rank = n * group_queries_most(model);
    int group = group_queries_heads(model), at = 0;

    for (int rank = first; rank < first + model->split.replicas; rank++) {
        int heads = split_of(model, rank).query_heads;
        for (int row = 0; row < n; row++) {
            for (int h = 0; h < heads; h++) {
                list[row * group + at + h] = rank * of_rank + row * heads + h;
            }
        }
        at += heads;
    }
}

status group_queries_gather(struct member *member, const void *q, const int32_t *list, int n)
{
    const struct model *model = member->model;
    struct scratch *s = member->scratch;
    size_t head = (size_t)model->config.head_dim * dtype_bytes(device_dtype(member->dev));
    size_t bytes = (size_t)n * (size_t)group_queries_most(model) * head;
    status st = comm_all_gather(member->comm, s->q_of_ranks, q, bytes);

    return st ? st
              : op_gather_rows(member->dev, s->group_q, s->q_of_ranks, list,
                               n * group_queries_heads(model), head);
}
