/* window_scores.cu - how much the last rows of a prompt look at each earlier key. */
#include "kernels/cuda/columns.h"

status cuda_window_scores(struct device *dev, const struct window_scores *args)
{
    int earlier = args->n_keys - args->window;
    struct columns columns = {
        .out = args->out,
        .local = nullptr,
        .stride = (size_t)earlier,
        .q = args->q,
        .k = args->k,
        .kv_stride = args->kv_stride,
        .positions = args->positions,
        .weights = args->weights,
        .lse = args->lse,
        .n_out = earlier,
        .first_row = earlier,
        .rows = args->window,
        .n_keys = args->n_keys,
        .open_rows = 0,
        .fresh = 0,
        .n_local = 0,
        .q_heads = args->q_heads,
        .kv_heads = args->kv_heads,
        .head_dim = args->head_dim,
        .sliding_window = args->sliding_window,
    };
    return columns_sum(dev, &columns);
}
