#include "worker/columns.h"

static size_t floats(const struct model *model, int max_context)
{
    return (size_t)model->split.query_heads * (size_t)max_context;
}

uint64_t columns_bytes(const struct model *model, int max_context)
{
    return 2 * floats(model, max_context) * sizeof(float);
}

status columns_create(struct columns *columns, const struct member *member)
{
    size_t bytes = floats(member->model, member->max_context) * sizeof(float);
    void *memory;
    status st = device_alloc(member->dev, &memory, bytes, "column sums");

    if (st) {
        return st;
    }
    columns->all = memory;
    st = device_alloc(member->dev, &memory, bytes, "local column sums");
    if (!st) {
        columns->near = memory;
    }
    return st;
}

void columns_destroy(struct columns *columns, struct device *dev)
{
    device_free(dev, columns->all);
    device_free(dev, columns->near);
}

void columns_begin(struct columns *columns, const struct method_params *params, int n_prompt)
{
    columns->wanted = method_sums_columns(params, n_prompt);
    columns->n_near = params->method == METHOD_FASTGEN ? method_fastgen_local(params, n_prompt) : 0;
}

status columns_add(const struct columns *columns, const struct member *member,
                   const struct columns_chunk *chunk)
{
    const struct model *model = member->model;

    return op_column_sums(member->dev, &(struct column_sums){
                                           .out = columns->all,
                                           .local = columns->n_near ? columns->near : NULL,
                                           .stride = (size_t)chunk->rows_in_layer,
                                           .q = member->scratch->q,
                                           .k = chunk->k,
                                           .kv_stride = chunk->kv_stride,
                                           .positions = chunk->positions,
                                           .lse = chunk->lse,
                                           .first_row = chunk->first_row,
                                           .rows = chunk->rows,
                                           .n_keys = chunk->first_row + chunk->rows,
                                           .fresh = chunk->first_row,
                                           .n_local = columns->n_near,
                                           .q_heads = model->split.query_heads,
                                           .kv_heads = model->split.kv_heads,
                                           .head_dim = model->config.head_dim,
                                           .sliding_window = model->config.sliding_window,
                                       });
}
