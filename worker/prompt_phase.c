#include "worker/prompt_phase.h"

#include "worker/evict.h"

#include <stdlib.h>
#include <string.h>

/* Of one prompt: (row, query head) pairs of its window. */
static size_t window_pairs(const struct model *model)
{
    return (size_t)SLICE_WINDOW_ROWS * (size_t)model->split.query_heads;
}

void prefill_bytes(const struct model *model, enum dtype dtype, int prompt_rows, uint64_t *hidden,
                   uint64_t *layer_kv, uint64_t *rest)
{
    size_t rows = (size_t)prompt_rows;

    *hidden = rows * (size_t)model->config.hidden * sizeof(float);
    *layer_kv = 2 * rows * phase_key_elements(model) * dtype_bytes(dtype);
    *rest = 5 * rows * sizeof(int32_t);
    *rest += PLAN_MAX_PROMPTS * window_pairs(model) *
             ((size_t)model->config.head_dim * dtype_bytes(dtype) + sizeof(float));
    *rest += columns_bytes(model, prompt_rows);
    *rest += flight_bytes(model);
}

static size_t window_bytes(const struct member *member)
{
    return window_pairs(member->model) * (size_t)member->model->config.head_dim *
           phase_act_bytes(member);
}

static status allocate(struct prompt_memory *memory, struct member *member)
{
    size_t rows = (size_t)member->prompt_rows;
    size_t keys = rows * phase_key_elements(member->model) * phase_act_bytes(member);
    size_t list = rows * sizeof(int32_t);
    const struct {
        void *field;
        size_t bytes;
        const char *what;
    } buffers[] = {
        {&memory->residual, rows * (size_t)member->model->config.hidden * sizeof(float),
         "residual stream"},
        {&memory->k, keys, "keys of a layer"},
        {&memory->v, keys, "values of a layer"},
        {&memory->sums, list, "sums of scores"},
        {&memory->ids, list, "prompt"},
        {&memory->positions, list, "positions"},
        {&memory->next_positions, list, "next positions"},
        {&memory->chosen, list, "chosen rows"},
        {&memory->window_q, PLAN_MAX_PROMPTS * window_bytes(member), "window queries"},
        {&memory->window_lse, PLAN_MAX_PROMPTS * window_pairs(member->model) * sizeof(float),
         "normalisers of the window"},
    };

    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++) {
        void *data;
        status st = device_alloc(member->dev, &data, buffers[i].bytes, buffers[i].what);
        if (st) {
            return st;
        }
        memcpy(buffers[i].field, &data, sizeof(data));
    }
    memory->host_positions = calloc(rows, sizeof(int32_t));
    memory->host_list = calloc(rows, sizeof(int32_t));
    memory->host_marks = calloc(rows, sizeof(*memory->host_marks));
    if (!memory->host_marks || !memory->host_positions || !memory->host_list) {
        return status_fail(STATUS_EXHAUSTED, "prompt memory: out of memory");
    }
    return columns_create(&memory->columns, member);
}

status prefill_create(struct prompt_phases **out, struct member *member, struct kvcache *cache)
{
    struct prompt_phases *all = calloc(1, sizeof(*all));

    if (!all) {
        return status_fail(STATUS_EXHAUSTED, "prompt memory: out of memory");
    }
    all->member = member;
    status st = allocate(&all->memory, member);
    if (!st) {
        st = flight_create(&all->flight, member);
    }
    if (st) {
        prefill_destroy(all);
        return st;
    }
    for (size_t i = 0; i < PLAN_MAX_PROMPTS; i++) {
        all->phases[i] = (struct prompt_phase){
            .member = member,
            .cache = cache,
            .flight = &all->flight,
            .window_q = (char *)all->memory.window_q + i * window_bytes(member),
            .window_lse = all->memory.window_lse + i * window_pairs(member->model),
        };
    }
    *out = all;
    return STATUS_OK;
}

void prefill_destroy(struct prompt_phases *all)
{
    if (!all) {
        return;
    }
    struct prompt_memory *memory = &all->memory;
    struct device *dev = all->member->dev;
    for (int i = 0; i < PLAN_MAX_PROMPTS; i++) {
        if (all->phases[i].sequence) {
            comm_abort(all->member->comm); /* the group is over: the others' parts may never come */
            prefill_end(&all->phases[i]);
        }
    }
    flight_destroy(&all->flight, all->member);
    device_free(dev, memory->residual);
    device_free(dev, memory->k);
    device_free(dev, memory->v);
    device_free(dev, memory->sums);
    device_free(dev, memory->ids);
    device_free(dev, memory->positions);
    device_free(dev, memory->next_positions);
    device_free(dev, memory->chosen);
    device_free(dev, memory->window_q);
    device_free(dev, memory->window_lse);
    columns_destroy(&memory->columns, dev);
    free(memory->host_positions);
    free(memory->host_list);
    free(memory->host_marks);
    free(all);
}

/* One prompt. */

struct prompt_phase *prefill_find(struct prompt_phases *all, const struct sequence *sequence)
{
    for (int i = 0; i < PLAN_MAX_PROMPTS; i++) {
        if (all->phases[i].sequence == sequence) {
            return &all->phases[i];
        }
    }
    return NULL;
}

/* Its rows lie in the memory and are no other prompt's. */
static status check_rows(const struct prompt_phases *all, const struct sequence *sequence)
{
    int64_t first = sequence->first_row;
    int64_t end = first + sequence->n_prompt;

    if (first % PLAN_ROW_STEP || end > all->member->prompt_rows) {
        return status_fail(STATUS_INTERNAL, "slot %d: rows %lld to %lld of %d", sequence->slot,
                           (long long)first, (long long)end, all->member->prompt_rows);
    }
    for (int i = 0; i < PLAN_MAX_PROMPTS; i++) {
        const struct sequence *other = all->phases[i].sequence;
        if (other && first < (int64_t)other->first_row + other->n_prompt &&
            other->first_row < end) {
            return status_fail(STATUS_INTERNAL, "slot %d: its rows are slot %d's", sequence->slot,
                               other->slot);
        }
    }
    return STATUS_OK;
}

/* The prompt's rows of the memory. */
static void take_rows(struct prompt_phase *phase, const struct prompt_memory *memory,
                      struct sequence *sequence)
{
    const struct member *member = phase->member;
    size_t first = (size_t)sequence->first_row;
    size_t keys = first * (size_t)member->model->config.head_dim * phase_act_bytes(member);

    phase->sequence = sequence;
    phase->residual = memory->residual + first * (size_t)member->model->config.hidden;
    phase->k = (char *)memory->k + keys;
    phase->v = (char *)memory->v + keys;
    phase->sums = memory->sums + first;
    phase->ids = memory->ids + first;
    phase->positions = memory->positions + first;
    phase->next_positions = memory->next_positions + first;
    phase->chosen = memory->chosen + first;
    phase->host_positions = memory->host_positions + first;
    phase->host_list = memory->host_list + first;
    phase->host_marks = memory->host_marks + first;
    columns_begin(&phase->columns, &memory->columns, member, sequence);
}

static status begin(struct prompt_phase *phase)
{
    struct member *member = phase->member;
    struct sequence *sequence = phase->sequence;
    const struct model_config *config = &member->model->config;
    size_t list = (size_t)sequence->n_prompt * sizeof(int32_t);
    status st;

    phase->policy = policy_for(sequence->params.method);
    for (int i = 0; method_evicts(&sequence->params) && i < sequence->n_prompt; i++) {
        phase->host_marks[i] = evict_mark(&sequence->params, sequence->prompt[i]);
    }
    slices_begin(&phase->cursor, &sequence->params, config, sequence->n_prompt);
    for (int i = 0; i < sequence->n_prompt; i++) {
        phase->host_positions[i] = i;
    }
    st = device_upload(member->dev, phase->ids, sequence->prompt, list);
    if (!st) {
        st = device_upload(member->dev, phase->positions, phase->host_positions, list);
    }
    phase->trace = sequence->selected;
    sequence->selected = NULL;
    return st;
}

status prefill_begin(struct prompt_phases *all, struct sequence *sequence,
                     struct prompt_phase **out)
{
    struct prompt_phase *phase = prefill_find(all, NULL);

    if (!phase) {
        return status_fail(STATUS_INTERNAL, "slot %d: %d prompts are in their prompt phase",
                           sequence->slot, PLAN_MAX_PROMPTS);
    }
    status st = check_rows(all, sequence);
    if (st) {
        return st;
    }
    take_rows(phase, &all->memory, sequence);
    *out = phase;
    return begin(phase);
}

void prefill_end(struct prompt_phase *phase)
{
    flight_forget(phase);
    trace_destroy(phase->trace);
    phase->trace = NULL;
    phase->sequence = NULL;
}

struct trace *prefill_take_trace(struct prompt_phase *phase)
{
    struct trace *trace = phase->trace;

    phase->trace = NULL;
    return trace;
}
