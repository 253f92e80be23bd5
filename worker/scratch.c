#include "worker/scratch.h"

#include "worker/group_queries.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* One tensor: where its address goes, and how large it is. */
struct buffer {
    void *field; /* a pointer in struct scratch */
    size_t count;
    size_t bytes; /* of one element */
    const char *what;
};

/* Query heads of a step's row in struct step_lists.group_rows. */
static size_t group_heads(const struct model *model)
{
    return group_queries_lie_apart(model) ? (size_t)group_queries_heads(model) : 0;
}

size_t step_lists_lay_out(struct step_lists *lists, char *base, const struct model *model,
                          size_t rows, size_t cells)
{
    size_t pointers = cells * sizeof(*lists->tables);
    size_t numbers = cells * sizeof(*lists->first);

    lists->tables = (const int32_t **)(void *)base;
    lists->first = (int32_t *)(void *)(base + pointers);
    lists->length = lists->first + cells;
    lists->slot = lists->length + cells;
    lists->ids = lists->slot + cells;
    lists->positions = lists->ids + rows;
    lists->sinks = lists->positions + rows;
    lists->sink_positions = lists->sinks + rows;
    lists->order = lists->sink_positions + rows;
    lists->group_rows = lists->order + rows;
    return pointers + 3 * numbers + (5 + group_heads(model)) * rows * sizeof(*lists->ids);
}

static size_t most_cells(const struct model *model)
{
    return (size_t)model->config.layers * SCRATCH_DECODE_ROWS * (size_t)model->split.query_heads;
}

static size_t step_bytes(const struct model *model)
{
    static char nothing[1];
    struct step_lists unused;

    return step_lists_lay_out(&unused, nothing, model, SCRATCH_DECODE_ROWS, most_cells(model));
}

static int list_buffers(struct buffer *list, struct scratch *s, const struct model *model,
                        enum dtype dtype, int max_context, int ranks)
{
    const struct split *split = &model->split;
    size_t act = dtype_bytes(dtype);
    size_t hidden = (size_t)model->config.hidden;
    size_t query = (size_t)split->query_heads * (size_t)model->config.head_dim;
    size_t key = (size_t)split->kv_heads * (size_t)model->config.head_dim;
    size_t mlp = (size_t)split->mlp_columns;
    size_t context = (size_t)max_context;
    bool apart = group_queries_lie_apart(model);
    size_t head_rows = SCRATCH_DECODE_ROWS * (size_t)model->config.head_dim;
    size_t group = apart ? head_rows * group_heads(model) : 1;
    size_t of_ranks = apart ? head_rows * (size_t)(ranks * group_queries_most(model)) : 1;
    const struct buffer all[] = {
        {&s->normed, SLICE_ROWS * hidden, act, "normed rows"},
        {&s->q, SLICE_ROWS * query, act, "query rows"},
        {&s->k, SLICE_ROWS * key, act, "key rows"},
        {&s->v, SLICE_ROWS * key, act, "value rows"},
        {&s->attended, SLICE_ROWS * query, act, "attention rows"},
        {&s->lse, SLICE_ROWS * (size_t)split->query_heads, sizeof(float), "normalisers"},
        {&s->gate, SLICE_ROWS * mlp, act, "MLP gate rows"},
        {&s->up, SLICE_ROWS * mlp, act, "MLP rows"},
        {&s->partial, SLICE_ROWS * hidden, sizeof(float), "partial sums"},
        {&s->residual, SLICE_ROWS * hidden, sizeof(float), "residual rows"},
        {&s->logits, SCRATCH_DECODE_ROWS * (size_t)split->vocab_rows, sizeof(float), "logits"},
        {&s->q_sinks, SCRATCH_DECODE_ROWS * query, act, "queries for sinks"},
        {&s->group_q, group, act, "queries of a group"},
        {&s->q_of_ranks, of_ranks, act, "queries of all ranks"},
        {&s->scores, (size_t)split->query_heads * context, sizeof(float), "scores"},
        {&s->pooled, (size_t)split->query_heads * context, sizeof(float), "pooled scores"},
        {&s->total, context, sizeof(float), "total scores"},
        {&s->kept, (size_t)split->query_heads * context, sizeof(int32_t), "kept rows"},
        {&s->chosen, context, sizeof(int32_t), "chosen rows"},
        {&s->in_order, SLICE_ROWS, sizeof(int32_t), "row numbers"},
        {&s->row_weights, SLICE_ROWS, sizeof(float), "row weights"},
        {&s->step, step_bytes(model), 1, "lists of a step"},
        {&s->rules, most_cells(model), sizeof(*s->rules), "rules of a step"},
        {&s->notes, context, sizeof(*s->notes), "notes of a head"},
        {&s->evicted, most_cells(model), sizeof(*s->evicted), "rows that leave"},
        {&s->key_counts, (size_t)split->query_heads * OP_KEY_BINS, sizeof(int32_t),
         "counts of scores"},
        {&s->key_sums, OP_KEY_BINS, sizeof(int64_t), "sums of counts"},
        {&s->key_sums_of_all, OP_KEY_BINS * (size_t)ranks, sizeof(int64_t),
         "sums of counts of all ranks"},
        {&s->hashes, 2, sizeof(uint64_t), "hashes"},
        {&s->hashes_of_all, 2 * (size_t)ranks, sizeof(uint64_t), "hashes of all ranks"},
    };
    int n = (int)(sizeof(all) / sizeof(all[0]));

    assert(n <= SCRATCH_BUFFERS);
    for (int i = 0; i < n; i++) {
        list[i] = all[i];
    }
    return n;
}

uint64_t scratch_bytes(const struct model *model, enum dtype dtype, int max_context, int ranks)
{
    struct buffer list[SCRATCH_BUFFERS];
    struct scratch unused;
    int n = list_buffers(list, &unused, model, dtype, max_context, ranks);
    uint64_t total = 0;

    for (int i = 0; i < n; i++) {
        total += (uint64_t)list[i].count * list[i].bytes;
    }
    return total;
}

static status allocate_host(struct scratch *s, const struct model *model, int max_context,
                            int ranks)
{
    size_t lists = (size_t)model->split.query_heads * (size_t)max_context;

    s->host_rows = calloc(lists, sizeof(*s->host_rows));
    s->host_mass = calloc(lists, sizeof(*s->host_mass));
    s->host_other = calloc((size_t)max_context, sizeof(*s->host_other));
    s->host_marks = calloc((size_t)max_context, sizeof(*s->host_marks));
    s->host_near = calloc((size_t)max_context, sizeof(*s->host_near));
    s->host_zeros = calloc((size_t)max_context, sizeof(*s->host_zeros));
    s->host_step = calloc(step_bytes(model), 1);
    s->host_rules = calloc(most_cells(model), sizeof(*s->host_rules));
    s->host_evicted = calloc(most_cells(model), sizeof(*s->host_evicted));
    s->host_notes = calloc((size_t)max_context, sizeof(*s->host_notes));
    s->host_key_counts =
        calloc((size_t)model->split.query_heads * OP_KEY_BINS, sizeof(*s->host_key_counts));
    s->host_key_sums = calloc(OP_KEY_BINS * (size_t)ranks, sizeof(*s->host_key_sums));
    s->host_hashes = calloc(2 * (size_t)ranks, sizeof(*s->host_hashes));
    if (!s->host_rows || !s->host_mass || !s->host_near || !s->host_other || !s->host_marks ||
        !s->host_zeros || !s->host_step || !s->host_rules || !s->host_evicted || !s->host_notes ||
        !s->host_key_counts || !s->host_key_sums || !s->host_hashes) {
        return status_fail(STATUS_EXHAUSTED, "scratch: out of memory");
    }
    return STATUS_OK;
}

/* to[i] = i. */
static status upload_numbers(struct scratch *s, int32_t *to, int n)
{
    int32_t *numbers = malloc((size_t)n * sizeof(*numbers));

    if (!numbers) {
        return status_fail(STATUS_EXHAUSTED, "scratch: out of memory");
    }
    for (int i = 0; i < n; i++) {
        numbers[i] = i;
    }
    status st = device_upload(s->dev, to, numbers, (size_t)n * sizeof(*numbers));
    free(numbers);
    return st;
}

status scratch_create(struct scratch **out, struct device *dev, const struct model *model,
                      int max_context, int ranks)
{
    struct buffer list[SCRATCH_BUFFERS];
    struct scratch *s = calloc(1, sizeof(*s));
    status st;

    if (!s) {
        return status_fail(STATUS_EXHAUSTED, "scratch: out of memory");
    }
    s->dev = dev;
    int n = list_buffers(list, s, model, device_dtype(dev), max_context, ranks);
    for (int i = 0; i < n; i++) {
        void *memory;
        st = device_alloc(dev, &memory, list[i].count * list[i].bytes, list[i].what);
        if (st) {
            goto fail;
        }
        s->device_memory[s->n_device_memory++] = memory;
        memcpy(list[i].field, &memory, sizeof(memory));
    }
    st = allocate_host(s, model, max_context, ranks);
    if (!st) {
        st = upload_numbers(s, s->in_order, SLICE_ROWS);
    }
    if (st) {
        goto fail;
    }
    *out = s;
    return STATUS_OK;
fail:
    scratch_destroy(s);
    return st;
}

void scratch_destroy(struct scratch *scratch)
{
    if (!scratch) {
        return;
    }
    for (int i = 0; i < scratch->n_device_memory; i++) {
        device_free(scratch->dev, scratch->device_memory[i]);
    }
    free(scratch->host_rows);
    free(scratch->host_mass);
    free(scratch->host_near);
    free(scratch->host_other);
    free(scratch->host_marks);
    free(scratch->host_zeros);
    free(scratch->host_step);
    free(scratch->host_rules);
    free(scratch->host_evicted);
    free(scratch->host_notes);
    free(scratch->host_key_counts);
    free(scratch->host_key_sums);
    free(scratch->host_hashes);
    free(scratch);
}
