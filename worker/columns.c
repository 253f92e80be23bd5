#include "worker/columns.h"

static size_t floats(const struct model *model, int prompt_rows)
{
    return (size_t)model->split.query_heads * (size_t)prompt_rows;
}

uint64_t columns_bytes(const struct model *model, int prompt_rows)
{
    return 2 * floats(model, prompt_rows) * sizeof(float);
}

status columns_create(struct columns *memory, const struct member *member)
{
    size_t bytes = floats(member->model, member->prompt_rows) * sizeof(float);
    void *sums;
    status st = device_alloc(member->dev, &sums, bytes, "column sums");

    if (st) {
        return st;
    }
    memory->all = sums;
    st = device_alloc(member->dev, &sums, bytes, "local column sums");
    if (!st) {
        memory->near = sums;
    }
    return st;
}

void columns_destroy(struct columns *memory, struct device *dev)
{
    device_free(dev, memory->all);
    device_free(dev, memory->near);
}

void columns_begin(struct columns *columns, const struct columns *memory,
                   const struct member *member, const struct sequence *sequence)
{
    const struct method_params *params = &sequence->params;
    size_t offset = (size_t)sequence->first_row * (size_t)member->model->split.query_heads;

    *columns = (struct columns){
        .all = memory->all + offset,
        .near = memory->near + offset,
        .wanted = method_sums_columns(params, sequence->n_prompt),
        .n_near =
            params->method == METHOD_FASTGEN ? method_fastgen_local(params, sequence->n_prompt) : 0,
    };
}

/* The sums of a chunk, with all of the operation that is not the caller's choice. */
static struct column_sums sums_of(const struct member *member, const struct columns_chunk *chunk)
{
    const struct model *model = member->model;

    return (struct column_sums){
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
        .q_heads = model->split.query_heads,
        .kv_heads = model->split.kv_heads,
        .head_dim = model->config.head_dim,
        .sliding_window = model->config.sliding_window,
    };
}

status columns_add(const struct columns *columns, const struct member *member,
                   const struct columns_chunk *chunk)
{
    struct column_sums args = sums_of(member, chunk);

    args.out = columns->all;
    args.local = columns->n_near ? columns->near : NULL;
    args.n_local = columns->n_near;
    return op_column_sums(member->dev, &args);
}

status columns_score(const struct columns *columns, const struct member *member,
                     const struct columns_chunk *chunk, bool first, int open_rows)
{
    struct column_sums args = sums_of(member, chunk);

    args.out = columns->near;
    if (open_rows > 0) {
        args.n_keys = chunk->rows_in_layer;
        args.fresh = chunk->rows_in_layer;
        args.open_rows = open_rows;
        args.sliding_window = 0;
    }
    if (first) {
        args.fresh = 0;
    }
    return op_column_sums(member->dev, &args);
}
