#include "coordinator/record.h"

#include <stdlib.h>
#include <string.h>

struct head {
    uint32_t layer;
    struct trace_head trace; /* kept and live are owned */
};

struct record {
    const struct model_config *model;
    uint64_t kv_rows, kv_heads, kv_bytes, kv_bytes_full;
    uint64_t bytes; /* of the trace */
    uint32_t *tokens_in;
    uint32_t n_tokens_in;
    struct head *heads;
    size_t n_heads;
    uint32_t *propagated;
    uint32_t n_propagated;
    float *prompt_logits;
    float **steps; /* rows of logits, each owned */
    uint32_t n_steps;
    struct trace_layer *layers; /* made by record_finish() */
    struct trace_head *sorted;
};

status record_create(struct record **out, const struct model_config *model)
{
    struct record *record = calloc(1, sizeof(*record));

    if (!record) {
        return status_fail(STATUS_EXHAUSTED, "no memory for a record");
    }
    record->model = model;
    *out = record;
    return STATUS_OK;
}

void record_destroy(struct record *record)
{
    if (!record) {
        return;
    }
    for (size_t i = 0; i < record->n_heads; i++) {
        free((void *)record->heads[i].trace.kept);
        free((void *)record->heads[i].trace.live);
    }
    for (uint32_t i = 0; i < record->n_steps; i++) {
        free(record->steps[i]);
    }
    free(record->tokens_in);
    free(record->heads);
    free(record->propagated);
    free(record->prompt_logits);
    free(record->steps);
    free(record->layers);
    free(record->sorted);
    free(record);
}

/* Zeroed memory of the trace, counted.  NULL: EXHAUSTED, with the sentence said. */
static void *take(struct record *record, size_t n, size_t size)
{
    void *memory = NULL;
    status st = STATUS_OK;

    if (record->bytes + n * size > RECORD_MAX_BYTES) {
        st = status_fail(STATUS_EXHAUSTED, "the trace would exceed %d MiB: ask for fewer tokens",
                         RECORD_MAX_BYTES >> 20);
    } else {
        memory = calloc(n + 1, size);
        if (!memory) {
            st = status_fail(STATUS_EXHAUSTED, "no memory for a trace of %zu bytes", n * size);
        }
    }
    record->bytes += st ? 0 : n * size;
    return memory;
}

static uint32_t *copy_ids(struct record *record, const uint32_t *ids, uint32_t n)
{
    uint32_t *copy = take(record, n, sizeof(uint32_t));

    if (copy && n) {
        memcpy(copy, ids, n * sizeof(uint32_t));
    }
    return copy;
}

static status add_heads(struct record *record, const struct result_prompt *prompt)
{
    const struct model_config *model = record->model;
    size_t most = (size_t)model->layers * (size_t)model->query_heads;
    struct head *heads;

    if (prompt->n_heads == 0) {
        return STATUS_OK;
    }
    if (record->n_heads + prompt->n_heads > most) {
        return status_fail(STATUS_INVALID, "%u heads are more than the model has", prompt->n_heads);
    }
    heads = realloc(record->heads, (record->n_heads + prompt->n_heads) * sizeof(struct head));
    if (!heads) {
        return status_fail(STATUS_EXHAUSTED, "no memory for a trace");
    }
    record->heads = heads;
    for (uint32_t i = 0; i < prompt->n_heads; i++) {
        const struct result_head *in = &prompt->heads[i];
        struct head *head = &heads[record->n_heads];
        uint32_t *kept;
        if (in->layer >= (uint32_t)model->layers || in->head >= (uint32_t)model->query_heads) {
            return status_fail(STATUS_INVALID, "head %u of layer %u: the model has none", in->head,
                               in->layer);
        }
        kept = copy_ids(record, in->kept, in->n_kept);
        if (!kept) {
            return STATUS_EXHAUSTED;
        }
        *head = (struct head){in->layer, {.head = in->head, .n_kept = in->n_kept, .kept = kept}};
        head->trace.policy = in->policy ? fastgen_policy_name(in->policy - 1) : NULL;
        record->n_heads++;
    }
    return STATUS_OK;
}

static struct trace_head *find_head(struct record *record, const struct result_head *head)
{
    for (size_t i = 0; i < record->n_heads; i++) {
        if (record->heads[i].layer == head->layer && record->heads[i].trace.head == head->head) {
            return &record->heads[i].trace;
        }
    }
    return NULL;
}

/* What is live at the end joins the heads that the prompt phase reported. */
static status add_live(struct record *record, const struct result_prompt *prompt)
{
    for (uint32_t i = 0; i < prompt->n_heads; i++) {
        const struct result_head *in = &prompt->heads[i];
        struct trace_head *head = find_head(record, in);

        if (!head || head->live) {
            return status_fail(STATUS_INVALID, "head %u of layer %u: live, but not kept once",
                               in->head, in->layer);
        }
        head->live = copy_ids(record, in->kept, in->n_kept);
        if (!head->live) {
            return STATUS_EXHAUSTED;
        }
        head->n_live = in->n_kept;
    }
    return STATUS_OK;
}

status record_prompt(struct record *record, const struct result_prompt *prompt)
{
    if (prompt->after_decode) {
        return add_live(record, prompt);
    }
    record->kv_rows += prompt->kv_rows;
    record->kv_heads += prompt->kv_heads;
    record->kv_bytes += prompt->kv_bytes;
    record->kv_bytes_full += prompt->kv_bytes_full;
    if (prompt->n_tokens_in == (uint32_t)record->model->layers && !record->tokens_in) {
        record->tokens_in = copy_ids(record, prompt->tokens_in, prompt->n_tokens_in);
        if (!record->tokens_in) {
            return STATUS_EXHAUSTED;
        }
        record->n_tokens_in = prompt->n_tokens_in;
    }
    if (prompt->n_propagated && !record->propagated) {
        record->propagated = copy_ids(record, prompt->propagated, prompt->n_propagated);
        if (!record->propagated) {
            return STATUS_EXHAUSTED;
        }
        record->n_propagated = prompt->n_propagated;
    }
    return add_heads(record, prompt);
}

/* A row for one more step.  NULL: EXHAUSTED, with the sentence said. */
static float *new_step(struct record *record)
{
    float *row = take(record, (size_t)record->model->vocab, sizeof(float));
    float **steps = NULL;
    status st = STATUS_OK;

    if (row) {
        steps = realloc(record->steps, (record->n_steps + 1) * sizeof(float *));
    }
    if (row && !steps) {
        st = status_fail(STATUS_EXHAUSTED, "no memory for the trace of %u steps", record->n_steps);
    }
    if (!steps || st) {
        free(row);
        return NULL;
    }
    steps[record->n_steps++] = row;
    record->steps = steps;
    return row;
}

status record_logits(struct record *record, const struct split *split,
                     const struct result_logits *logits)
{
    float *row;

    if (logits->n_values != (uint32_t)split->vocab_rows) {
        return status_fail(STATUS_INVALID, "%u logits of a rank that has %d", logits->n_values,
                           split->vocab_rows);
    }
    if (!logits->prompt && split->vocab_first != 0 && record->n_steps == 0) {
        return status_fail(STATUS_INVALID, "logits of a step without rank 0");
    }
    if (logits->prompt) {
        if (!record->prompt_logits) {
            record->prompt_logits = take(record, (size_t)record->model->vocab, sizeof(float));
        }
        row = record->prompt_logits;
    } else {
        row = split->vocab_first == 0 ? new_step(record) : record->steps[record->n_steps - 1];
    }
    if (!row) {
        return STATUS_EXHAUSTED;
    }
    memcpy(row + split->vocab_first, logits->values, logits->n_values * sizeof(float));
    return STATUS_OK;
}

static int compare_heads(const void *left, const void *right)
{
    const struct head *a = left;
    const struct head *b = right;

    if (a->layer != b->layer) {
        return a->layer < b->layer ? -1 : 1;
    }
    return (a->trace.head > b->trace.head) - (a->trace.head < b->trace.head);
}

/* Heads of all ranks by layer and number. */
static status make_layers(struct record *record)
{
    uint32_t n = record->n_tokens_in;

    free(record->layers);
    free(record->sorted);
    record->sorted = NULL;
    record->layers = calloc((size_t)n + 1, sizeof(struct trace_layer));
    if (record->layers) {
        record->sorted = calloc(record->n_heads + 1, sizeof(struct trace_head));
    }
    if (!record->sorted) {
        return status_fail(STATUS_EXHAUSTED, "no memory for a trace");
    }
    if (record->n_heads) {
        qsort(record->heads, record->n_heads, sizeof(struct head), compare_heads);
    }
    size_t at = 0;
    for (uint32_t layer = 0; layer < n; layer++) {
        struct trace_layer *out = &record->layers[layer];
        *out = (struct trace_layer){.layer = layer, .tokens_in = record->tokens_in[layer]};
        out->heads = &record->sorted[at];
        for (; at < record->n_heads && record->heads[at].layer == layer; at++) {
            record->sorted[at] = record->heads[at].trace;
            out->n_heads++;
        }
    }
    return STATUS_OK;
}

status record_finish(struct record *record, struct request_done *done)
{
    status st = STATUS_OK;

    if (record->kv_heads) {
        done->usage.kv_tokens_kept = (double)record->kv_rows / (double)record->kv_heads;
    }
    done->usage.kv_bytes = record->kv_bytes;
    done->usage.kv_bytes_full = record->kv_bytes_full;
    if (record->n_tokens_in) {
        st = make_layers(record);
    }
    done->trace = (struct request_trace){
        .n_layers = st ? 0 : record->n_tokens_in,
        .layers = record->layers,
        .n_propagated = record->n_propagated,
        .propagated = record->propagated,
        .vocab = (uint32_t)record->model->vocab,
        .prompt_logits = record->prompt_logits,
        .n_steps = record->n_steps,
        .step_logits = (const float *const *)record->steps,
    };
    return st;
}
