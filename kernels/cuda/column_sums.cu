/* column_sums.cu - how much attention each key gets from a chunk of rows. */
#include "kernels/cuda/columns.h"

status cuda_column_sums(struct device *dev, const struct column_sums *args)
{
    struct columns columns = {
        .out = args->out,
        .local = args->local,
        .stride = args->stride,
        .q = args->q,
        .k = args->k,
        .kv_stride = args->kv_stride,
        .positions = args->positions,
        .weights = nullptr,
        .lse = args->lse,
        .n_out = args->n_keys,
        .first_row = args->first_row,
        .rows = args->rows,
        .n_keys = args->n_keys,
        .open_rows = args->open_rows,
        .fresh = args->fresh,
        .n_local = args->n_local,
        .q_heads = args->q_heads,
        .kv_heads = args->kv_heads,
        .head_dim = args->head_dim,
        .sliding_window = args->sliding_window,
    };
    return columns_sum(dev, &columns);
}
