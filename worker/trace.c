#include "worker/trace.h"

#include <assert.h>
#include <stdlib.h>

status trace_create(struct trace **out, int layers, int heads)
{
    struct trace *trace = calloc(1, sizeof(*trace));

    if (!trace) {
        return status_fail(STATUS_EXHAUSTED, "trace: out of memory");
    }
    trace->max_heads = layers * heads;
    trace->tokens_in = calloc((size_t)layers, sizeof(*trace->tokens_in));
    trace->heads = calloc((size_t)trace->max_heads + 1, sizeof(*trace->heads));
    if (!trace->tokens_in || !trace->heads) {
        trace_destroy(trace);
        return status_fail(STATUS_EXHAUSTED, "trace: out of memory");
    }
    *out = trace;
    return STATUS_OK;
}

void trace_destroy(struct trace *trace)
{
    if (!trace) {
        return;
    }
    for (uint32_t i = 0; i < trace->n_heads; i++) {
        free((void *)trace->heads[i].kept);
    }
    free(trace->heads);
    free(trace->tokens_in);
    free(trace->propagated);
    free(trace);
}

void trace_layer(struct trace *trace, int tokens_in)
{
    trace->tokens_in[trace->n_tokens_in++] = (uint32_t)tokens_in;
}

static status copy(uint32_t **out, const int32_t *positions, int n)
{
    uint32_t *list = malloc((size_t)n * sizeof(*list) + 1);

    if (!list) {
        return status_fail(STATUS_EXHAUSTED, "trace: out of memory");
    }
    for (int i = 0; i < n; i++) {
        list[i] = (uint32_t)positions[i];
    }
    *out = list;
    return STATUS_OK;
}

status trace_head(struct trace *trace, int layer, int head, const int32_t *positions, int n)
{
    uint32_t *list = NULL;
    status st = copy(&list, positions, n);

    assert(trace->n_heads < (uint32_t)trace->max_heads);
    if (st) {
        return st;
    }
    trace->heads[trace->n_heads++] = (struct result_head){
        .layer = (uint32_t)layer,
        .head = (uint32_t)head,
        .n_kept = (uint32_t)n,
        .kept = list,
    };
    return STATUS_OK;
}

void trace_policy(struct trace *trace, uint8_t policy)
{
    trace->heads[trace->n_heads - 1].policy = 1 + (uint32_t)policy;
}

status trace_propagated(struct trace *trace, const int32_t *positions, int n)
{
    assert(!trace->propagated);
    trace->n_propagated = (uint32_t)n;
    return copy(&trace->propagated, positions, n);
}
