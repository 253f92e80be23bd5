/* workspace.cu - the memory that one operation at a time works in, and how large it can get. */
#include "kernels/cuda/columns.h"
#include "kernels/cuda/cuda.h"

static status make_workspace(struct device *dev, size_t bytes)
{
    struct cuda_device *cuda = cuda_device(dev);
    status st =
        cuda_check(cudaStreamSynchronize(cuda->stream), "workspace"); /* who still uses it */

    if (st) {
        return st;
    }
    cudaFree(cuda->workspace);
    cuda->workspace = nullptr;
    cuda->workspace_bytes = 0;
    st = dev->backend->alloc(dev, &cuda->workspace, bytes, "the workspace of operations");
    if (!st) {
        cuda->workspace_bytes = bytes;
    }
    return st;
}

status cuda_workspace(struct device *dev, void **out, size_t bytes)
{
    struct cuda_device *cuda = cuda_device(dev);
    status st = STATUS_OK;

    if (bytes > cuda->workspace_bytes) {
        if (cuda->reserved || dev->recording) {
            return status_fail(
                STATUS_INTERNAL,
                "cuda: an operation needs a workspace of %zu bytes, reserved are %zu", bytes,
                cuda->workspace_bytes);
        }
        /* a quarter more: lengths that creep up do not allocate each time */
        st = make_workspace(dev, bytes + bytes / 4);
    }
    *out = cuda->workspace;
    return st;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

status cuda_reserve(struct device *dev, const struct op_limits *limits)
{
    struct cuda_device *cuda = cuda_device(dev);
    /* window scores are column sums of the window's rows */
    size_t most = columns_workspace(limits->q_heads, limits->chunk_rows, limits->keys);

    most = larger(most, cuda_dot_scores_workspace(limits->kv_heads, limits->head_dim));
    most = larger(most, cuda_decode_attention_workspace(OP_MAX_DECODE_ROWS, limits->q_heads,
                                                        limits->head_dim));
    most = larger(most,
                  cuda_decode_mass_workspace(OP_MAX_DECODE_ROWS, limits->kv_heads * limits->group));
    most = larger(most, cuda_draw_workspace(OP_MAX_DECODE_ROWS, limits->vocab_rows));
    most = larger(most, cuda_logit_histogram_workspace(OP_MAX_DECODE_ROWS, limits->vocab_rows));
    status st = most > cuda->workspace_bytes ? make_workspace(dev, most) : STATUS_OK;
    if (!st) { /* a step may be asked for all of its logits */
        st = cuda_hold_results(dev, (size_t)OP_MAX_DECODE_ROWS * (size_t)limits->vocab_rows *
                                        sizeof(float));
    }
    cuda->reserved = !st;
    return st;
}
