/* workspace.c - the memory that one operation at a time works in, and how large it can get. */
#include "kernels/cpu/cpu.h"

void cpu_drop_workspace(struct device *dev)
{
    struct cpu_device *cpu = cpu_device(dev);

    if (cpu->workspace) {
        cpu_free(dev, cpu->workspace);
    }
    cpu->workspace = NULL;
    cpu->workspace_bytes = 0;
}

static status make_workspace(struct device *dev, size_t bytes)
{
    struct cpu_device *cpu = cpu_device(dev);

    cpu_drop_workspace(dev);
    status st = cpu_alloc(dev, &cpu->workspace, bytes, "the workspace of operations");
    if (!st) {
        cpu->workspace_bytes = bytes;
    }
    return st;
}

status cpu_workspace(struct device *dev, void **out, size_t bytes)
{
    struct cpu_device *cpu = cpu_device(dev);
    status st = STATUS_OK;

    if (bytes > cpu->workspace_bytes) {
        if (cpu->reserved) {
            return status_fail(STATUS_INTERNAL,
                               "cpu: an operation needs a workspace of %zu bytes, reserved are %zu",
                               bytes, cpu->workspace_bytes);
        }
        /* a quarter more: lengths that creep up do not allocate each time */
        st = make_workspace(dev, bytes + bytes / 4);
    }
    *out = cpu->workspace;
    return st;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t prompt_bytes(const struct device *dev, const struct op_limits *limits)
{
    const struct window_scores window = {.window = limits->chunk_rows,
                                         .n_keys = limits->keys,
                                         .q_heads = limits->q_heads,
                                         .kv_heads = limits->kv_heads,
                                         .head_dim = limits->head_dim};
    const struct column_sums columns = {.rows = limits->chunk_rows,
                                        .n_keys = limits->keys,
                                        .q_heads = limits->q_heads,
                                        .kv_heads = limits->kv_heads,
                                        .head_dim = limits->head_dim};
    size_t most = cpu_attention_workspace(dev, limits->head_dim);

    most = larger(most, cpu_window_scores_workspace(dev, &window));
    most = larger(most, cpu_column_sums_workspace(dev, &columns));
    return larger(most, cpu_dot_scores_workspace(limits->kv_heads, limits->head_dim));
}

static size_t decode_bytes(const struct device *dev, const struct op_limits *limits)
{
    static const int32_t sinks = 0; /* they take more */
    struct decode_attention attention = {.rows = OP_MAX_DECODE_ROWS,
                                         .sinks = &sinks,
                                         .q_heads = limits->q_heads,
                                         .cache_heads = limits->kv_heads,
                                         .head_dim = limits->head_dim};
    size_t most = cpu_decode_attention_workspace(dev, &attention, limits->keys);

    attention.cache_heads = limits->q_heads; /* methods that choose by query head */
    most = larger(most, cpu_decode_attention_workspace(dev, &attention, limits->keys));
    most =
        larger(most, cpu_decode_mass_workspace(dev, limits->group, limits->head_dim, limits->keys));
    most = larger(most, cpu_draw_workspace(OP_MAX_DECODE_ROWS, limits->vocab_rows));
    return larger(most, cpu_logit_histogram_workspace(OP_MAX_DECODE_ROWS, limits->vocab_rows));
}

status cpu_reserve(struct device *dev, const struct op_limits *limits)
{
    struct cpu_device *cpu = cpu_device(dev);
    size_t most = larger(prompt_bytes(dev, limits), decode_bytes(dev, limits));

    for (int i = 0; i < limits->n_weights; i++) {
        const struct matrix *w = limits->weights[i];

        most = larger(most, cpu_linear_workspace(dev, w, limits->chunk_rows));
        most = larger(most, cpu_linear_rows_workspace(dev, w, OP_MAX_DECODE_ROWS));
    }
    status st = most > cpu->workspace_bytes ? make_workspace(dev, most) : STATUS_OK;
    cpu->reserved = !st;
    return st;
}
