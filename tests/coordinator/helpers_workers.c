#include "tests/coordinator/helpers_workers.h"

#include "common/split.h"
#include "tests/check.h"
#include "tests/coordinator/helpers_traffic.h"

#include <stdlib.h>
#include <string.h>

const struct model_config simulation_model = {
    .name = "simulated",
    .layers = 4,
    .hidden = 64,
    .intermediate = 128,
    .query_heads = 6,
    .kv_heads = 3, /* 2 on rank 0, 1 on rank 1 */
    .head_dim = 8,
    .vocab = VOCAB,
    .max_positions = 1 << 20,
    .eos_ids = {EOS},
    .n_eos_ids = 1,
};

uint32_t workers_token(uint64_t handle, uint32_t sample, uint32_t step)
{
    return (
        uint32_t)(traffic_mix(handle * 1000003 + (uint64_t)sample * 101 + (uint64_t)step * 7919) %
                  VOCAB);
}

/* Another sample of the slot's request is there, and holds the pages that they share. */
static bool is_shared(const struct sim_rules *rules, const struct sim_group *group, uint32_t slot)
{
    const struct sim_slot *own = &group->slots[slot];

    for (uint32_t i = 0; own->n_samples > 1 && i < rules->slots; i++) {
        if (i != slot && group->slots[i].used && group->slots[i].handle == own->handle) {
            return true;
        }
    }
    return false;
}

static void fake_release(const struct sim_rules *rules, struct sim_group *group, uint32_t slot)
{
    const struct sim_slot *own = &group->slots[slot];
    bool shared = is_shared(rules, group, slot);

    CHECK(own->used);
    for (int rank = 0; rank < RANKS; rank++) {
        group->used[rank] -= shared ? own->own[rank] : own->pages[rank];
    }
    group->slots[slot] = (struct sim_slot){0};
}

/* The prompt's rows are in the memory, and no other prompt's. */
static void check_rows(const struct sim_rules *rules, const struct sim_group *group,
                       const struct plan_begin *begin)
{
    int prompts = 1;

    CHECK(begin->first_row % PLAN_ROW_STEP == 0);
    CHECK(begin->first_row + begin->n_prompt <= plan_prompt_rows(rules->max_context));
    for (uint32_t i = 0; i < rules->slots; i++) {
        const struct sim_slot *other = &group->slots[i];
        if (other->used && !other->decoding) {
            prompts++;
            CHECK(begin->first_row >= other->first_row + other->n_prompt ||
                  other->first_row >= begin->first_row + begin->n_prompt);
        }
    }
    CHECK(prompts <= PLAN_MAX_PROMPTS);
}

/* What a sequence may need on each rank, and what of it `full` other samples would not copy. */
static void count_pages(const struct plan_begin *begin, uint64_t *pages, uint64_t *full)
{
    struct layer_load load = {
        .n_prompt = (int)begin->n_prompt,
        .rows = method_first_rows(&begin->params, (int)begin->n_prompt),
        .appended = (int)begin->max_rows,
        .page_rows = PAGE_ROWS,
    };
    struct head_range ranges[RANKS];

    memset(pages, 0, RANKS * sizeof(*pages));
    memset(full, 0, RANKS * sizeof(*full));
    for (int rank = 0; rank < RANKS; rank++) {
        struct split split;
        CHECK_OK(split_for_rank(&split, &simulation_model, rank, RANKS));
        ranges[rank] = (struct head_range){split.kv_first, split.kv_heads};
    }
    for (; load.layer < simulation_model.layers; load.layer++) {
        method_add_pages(&begin->params, &simulation_model, &load, ranges, RANKS, pages);
        struct layer_rows after = method_layer_rows(&begin->params, &simulation_model,
                                                    load.n_prompt, load.layer, load.rows);
        for (int rank = 0; rank < RANKS; rank++) {
            full[rank] += (uint64_t)(after.kept / PAGE_ROWS * ranges[rank].n);
        }
        load.rows = after.propagated;
    }
    for (int rank = 0; rank < RANKS; rank++) {
        uint64_t tables = (uint64_t)(simulation_model.layers * ranges[rank].n);
        uint64_t own = tables * ((begin->max_rows + 2 * PAGE_ROWS - 2) / PAGE_ROWS);
        if (method_evicts(&begin->params)) {
            full[rank] = 0;
        } else if (begin->max_rows == 0) {
            full[rank] = pages[rank];
        } else if (method_heads_differ(&begin->params)) {
            full[rank] = pages[rank] > own ? pages[rank] - own : 0;
        }
    }
}

static void fake_begin(const struct sim_rules *rules, struct sim_group *group,
                       const struct plan_begin *begin)
{
    struct sim_slot *slot = &group->slots[begin->slot];
    uint32_t use = 50 + (uint32_t)(traffic_mix(begin->sampling.seed) % 50);
    bool bound = begin->params.method == METHOD_ADAKV || begin->params.method == METHOD_FASTGEN;
    uint64_t pages[RANKS];
    uint64_t full[RANKS];

    CHECK(!slot->used);
    check_rows(rules, group, begin);
    *slot = (struct sim_slot){.used = true, .sample = begin->sampling.sample};
    slot->first_row = begin->first_row;
    slot->n_prompt = begin->n_prompt;
    slot->handle = begin->sampling.seed;
    slot->n_samples = rules->n_samples[slot->handle - 1];
    slot->limit = begin->max_rows + 1;
    slot->params = begin->params;
    slices_begin(&slot->walk, &slot->params, &simulation_model, (int)begin->n_prompt);
    count_pages(begin, pages, full);
    for (int rank = 0; rank < RANKS; rank++) {
        slot->pages[rank] = (uint32_t)pages[rank];
        slot->rest[rank] = bound ? slot->pages[rank] * use / 100 : slot->pages[rank];
        slot->own[rank] = slot->pages[rank] - (slot->n_samples > 1 ? (uint32_t)full[rank] : 0);
        group->used[rank] += slot->pages[rank];
        CHECK(group->used[rank] <= rules->pages[rank]);
    }
}

static void fake_token(struct sim_group *group, struct sim_step *step, uint32_t index)
{
    struct sim_slot *slot = &group->slots[index];

    CHECK(slot->used && slot->produced < slot->limit);
    if (step->n_tokens == step->room) {
        step->room = step->room ? 2 * step->room : 16;
        step->tokens = realloc(step->tokens, step->room * sizeof(*step->tokens));
        CHECK(step->tokens);
    }
    step->tokens[step->n_tokens++] = (struct result_token){
        .slot = index, .id = workers_token(slot->handle, slot->sample, slot->produced)};
    slot->produced++;
}

/* The prompt is read: what its choice left over is free. */
static void fake_choice(struct sim_group *group, struct sim_step *step, uint32_t index)
{
    struct sim_slot *slot = &group->slots[index];
    struct sim_choice *choice = &step->choices[step->n_choices++];

    slot->decoding = true;
    choice->slot = index;
    for (int rank = 0; rank < RANKS; rank++) {
        group->used[rank] -= slot->pages[rank] - slot->rest[rank];
        slot->pages[rank] = choice->rest[rank] = slot->rest[rank];
        slot->own[rank] = slot->own[rank] < slot->rest[rank] ? slot->own[rank] : slot->rest[rank];
        choice->shared[rank] = slot->rest[rank] - slot->own[rank];
    }
    fake_token(group, step, index);
}

static void fake_fork(const struct sim_rules *rules, struct sim_group *group, struct sim_step *step,
                      const struct plan_begin *begin)
{
    const struct sim_slot *source = &group->slots[begin->source];
    struct sim_slot *slot = &group->slots[begin->slot];

    CHECK(!slot->used && source->used && source->decoding && source->sample == 0);
    CHECK(begin->sampling.sample > 0 && begin->sampling.sample < source->n_samples);
    *slot = *source;
    slot->sample = begin->sampling.sample;
    slot->produced = 0;
    for (int rank = 0; rank < RANKS; rank++) {
        group->used[rank] += slot->own[rank];
        CHECK(group->used[rank] <= rules->pages[rank]);
    }
    fake_token(group, step, begin->slot);
}

static void fake_advance(const struct sim_rules *rules, struct sim_group *group,
                         struct sim_step *step, const struct plan_advance *advance)
{
    struct sim_slot *slot = &group->slots[advance->slot];
    struct slice slice;

    CHECK(slot->used && !slot->decoding && advance->slices > 0);
    slot->walk.params = &slot->params;
    for (uint32_t i = 0; i < advance->slices; i++) {
        CHECK(slices_next(&slot->walk, &slice));
        step->ms += slice_work(&simulation_model, &slice) / rules->work_per_ms;
    }
    if (slot->walk.next.end == 0) {
        fake_choice(group, step, advance->slot);
    }
}

static void fake_prompts(const struct sim_rules *rules, struct sim_group *group,
                         struct sim_step *step, const struct plan *plan)
{
    for (uint32_t i = 0; i < plan->n_begin; i++) {
        if (!plan->begin[i].forks) {
            fake_begin(rules, group, &plan->begin[i]);
        }
    }
    for (uint32_t i = 0; i < plan->n_advance; i++) {
        fake_advance(rules, group, step, &plan->advance[i]);
    }
    for (uint32_t i = 0; i < plan->n_begin; i++) {
        if (plan->begin[i].forks) {
            fake_fork(rules, group, step, &plan->begin[i]);
        }
    }
}

struct sim_step *workers_execute(const struct sim_rules *rules, struct sim_group *group,
                                 const struct plan *plan)
{
    struct sim_step *step = &group->steps[group->n_steps++];

    CHECK(group->alive && plan->epoch == group->epoch && plan->number == group->expected);
    CHECK(group->n_steps <= rules->look_ahead);
    CHECK(plan->n_begin <= PLAN_MAX_PROMPTS * TRAFFIC_MAX_SAMPLES);
    CHECK(plan->n_advance <= PLAN_MAX_PROMPTS);
    CHECK(plan->n_release + plan->n_begin + plan->n_advance + plan->n_decode > 0);
    group->expected++;
    *step = (struct sim_step){
        .number = plan->number, .ms = 0.2, .tokens = step->tokens, .room = step->room};
    for (uint32_t i = 0; i < plan->n_release; i++) {
        fake_release(rules, group, plan->release[i]);
    }
    fake_prompts(rules, group, step, plan);
    for (uint32_t i = 0; i < plan->n_decode; i++) {
        CHECK(group->slots[plan->decode[i]].decoding);
        fake_token(group, step, plan->decode[i]);
    }
    step->decode_ms = plan->n_decode ? 1 + 0.05 * plan->n_decode : 0;
    step->ms += step->decode_ms;
    return step;
}

struct sim_step workers_answer(struct sim_group *group)
{
    struct sim_step step = group->steps[0];

    group->n_steps--;
    memmove(&group->steps[0], &group->steps[1], group->n_steps * sizeof(struct sim_step));
    group->steps[group->n_steps] = step; /* its memory is used again */
    return step;
}
