/*
 * trace.h - what a prompt phase selected, collected for a request that asked for it.
 */
#ifndef WORKER_TRACE_H
#define WORKER_TRACE_H

#include "common/plan.h"

struct trace {
    int max_heads;
    uint32_t *tokens_in; /* (n_tokens_in): a layer each */
    uint32_t n_tokens_in;
    struct result_head *heads; /* each `kept` is owned */
    uint32_t n_heads;
    uint32_t *propagated;
    uint32_t n_propagated;
};

status trace_create(struct trace **out, int layers, int heads);
void trace_destroy(struct trace *trace); /* NULL is fine */

void trace_layer(struct trace *trace, int tokens_in);
status trace_head(struct trace *trace, int layer, int head, const int32_t *positions, int n);
void trace_policy(struct trace *trace, uint8_t policy); /* of the head that came last */
status trace_propagated(struct trace *trace, const int32_t *positions, int n);

#endif
