#include "tests/coordinator/helpers_simulation.h"

#include "common/slices.h"
#include "common/split.h"
#include "coordinator/heap.h"
#include "coordinator/list.h"
#include "tests/check.h"
#include "tests/coordinator/helpers_traffic.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RANKS = 2, PAGE_ROWS = 32, VOCAB = 1024, EOS = 7 };

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

enum request_state { QUEUED, RUNNING };

struct sim_request {
    struct request request;
    uint32_t prompt[1];
    enum request_state state;
    struct heap_node waits; /* in simulation.waiting: who may go first is first */
    uint32_t reruns;
    uint32_t got[TRAFFIC_MAX_SAMPLES];
    bool stopped[TRAFFIC_MAX_SAMPLES];
    bool done[TRAFFIC_MAX_SAMPLES];
};

/* Nobody is at the head of the queue for longer, in virtual time, while a group is ready. */
#define MOST_HEAD_MS 20000.0

enum event_kind { ARRIVE, STEP_DONE, DIE, REVIVE, CANCEL, TICK };

struct event {
    struct heap_node at; /* microseconds */
    enum event_kind kind;
    uint32_t index;
    uint64_t epoch;
};

struct sim_slot {
    bool used, decoding;
    uint64_t handle;
    uint32_t sample, produced, limit;
    uint32_t first_row, n_prompt;
    uint32_t n_samples;    /* of its request */
    uint32_t pages[RANKS]; /* in use at most */
    uint32_t rest[RANKS];  /* likewise, once the choice is made */
    uint32_t own[RANKS];   /* of either, what no other sample holds */
    struct slices walk;
    struct method_params params;
};

/* A prompt ended: its slot needs so many pages from now on. */
struct sim_choice {
    uint32_t slot, rest[RANKS], shared[RANKS];
};

struct sim_step {
    uint64_t number;
    uint32_t n_tokens, room;
    struct result_token *tokens; /* kept from step to step */
    double ms, decode_ms;
    struct sim_choice choices[PLAN_MAX_PROMPTS];
    uint32_t n_choices;
};

struct sim_group {
    bool alive;
    uint64_t epoch, expected;
    struct sim_slot *slots;
    uint32_t used[RANKS];
    struct sim_step steps[SCHEDULER_MAX_LOOK_AHEAD];
    uint32_t n_steps;
};

struct simulation {
    struct simulation_config config;
    struct scheduler *scheduler;
    struct sim_request **requests; /* by handle - 1; NULL: not there yet, or ended */
    struct sim_group *groups;
    struct heap events;
    uint64_t n_events;
    struct traffic traffic;
    uint32_t n_ended;
    struct heap waiting;
    uint64_t head; /* its handle; 0: none */
    double head_ms;
    uint32_t n_alive;
    double lost_ms; /* when a group was lost last */
    uint32_t pages[RANKS];
    double now;
    struct simulation_outcome outcome;
};

/* ---- chance ---- */

/* What the simulated model says: a function of the request, the sample and the step. */
static uint32_t token_of(uint64_t handle, uint32_t sample, uint32_t step)
{
    return (
        uint32_t)(traffic_mix(handle * 1000003 + (uint64_t)sample * 101 + (uint64_t)step * 7919) %
                  VOCAB);
}

static void remember(struct simulation *sim, uint64_t what, uint64_t handle, uint64_t value)
{
    sim->outcome.history =
        traffic_mix(sim->outcome.history ^ traffic_mix(what * 31 + handle * 7 + value));
}

static void schedule(struct simulation *sim, double delay_ms, enum event_kind kind, uint32_t index,
                     uint64_t epoch)
{
    struct event *event = calloc(1, sizeof(*event));

    CHECK(event);
    event->at.key = (int64_t)((sim->now + delay_ms) * 1000);
    event->at.tie = sim->n_events++;
    event->kind = kind;
    event->index = index;
    event->epoch = epoch;
    CHECK_OK(heap_reserve(&sim->events, sim->events.n + 1));
    heap_insert(&sim->events, &event->at);
}

/* ---- what the scheduler reports ---- */

/* Places in the queue: see SCHEDULER_PRIORITY_MS. */
static void start_waiting(struct simulation *sim, struct sim_request *r)
{
    double place = r->request.arrived_ms - (double)r->request.priority * SCHEDULER_PRIORITY_MS;

    r->state = QUEUED;
    r->waits.key = (int64_t)llround(place * 1000);
    r->waits.tie = r->request.handle;
    CHECK_OK(heap_reserve(&sim->waiting, sim->waiting.n + 1));
    heap_insert(&sim->waiting, &r->waits);
}

/* Nobody who may go first still waits, but for one whose rows of the prompt memory are not free:
 * short prompts may pass it in the rows that the longest prompt leaves over. */
static void stop_waiting(struct simulation *sim, struct sim_request *r)
{
    uint32_t extra = plan_prompt_rows(sim->config.kind.max_context) - sim->config.kind.max_context;
    struct heap_node *first;

    heap_remove(&sim->waiting, &r->waits);
    r->state = RUNNING;
    first = heap_first(&sim->waiting);
    if (first &&
        (first->key < r->waits.key || (first->key == r->waits.key && first->tie < r->waits.tie))) {
        CHECK(r->request.n_prompt <= extra);
        sim->outcome.passed++;
    }
}

/* After every event: who is first in the queue gets its turn in bounded time. */
static void check_head(struct simulation *sim)
{
    struct heap_node *first = heap_first(&sim->waiting);
    uint64_t head = first ? HOLDER_OF(first, struct sim_request, waits)->request.handle : 0;

    if (head != sim->head || sim->n_alive == 0) {
        sim->head = head;
        sim->head_ms = sim->now;
    }
    double waited = head ? sim->now - sim->head_ms : 0;
    sim->outcome.head_ms = waited > sim->outcome.head_ms ? waited : sim->outcome.head_ms;
    CHECK(waited <= MOST_HEAD_MS);
}

static bool has_token(const struct sim_request *r)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < r->request.n_samples; i++) {
        n += r->got[i];
    }
    return n > 0;
}

static void on_progress(void *context, void *user, const struct request_progress *progress)
{
    struct simulation *sim = context;
    struct sim_request *r = user;

    CHECK(progress->fraction >= 0 && progress->fraction <= 1.0001F);
    CHECK((progress->phase == PHASE_QUEUED) == (progress->queue_position > 0));
    if (progress->phase != PHASE_PREFILL || r->state == RUNNING) {
        return;
    }
    stop_waiting(sim, r);
    remember(sim, 1, r->request.handle, 0);
}

static bool on_token(void *context, void *user, uint32_t sample, const struct result_token *token,
                     bool stop)
{
    uint32_t id = token->id;
    struct simulation *sim = context;
    struct sim_request *r = user;

    CHECK(r->state == RUNNING && sample < r->request.n_samples);
    CHECK(!r->done[sample] && !r->stopped[sample]);
    CHECK(id == token_of(r->request.handle, sample, r->got[sample]));
    r->got[sample]++;
    CHECK(r->got[sample] <= r->request.sampling.max_tokens);
    CHECK(stop ==
          (id == EOS && !r->request.ignore_eos && r->got[sample] > r->request.sampling.min_tokens));
    sim->outcome.tokens++;
    remember(sim, 2, r->request.handle, id);
    r->stopped[sample] = stop || id == EOS + 1; /* EOS + 1 plays the stop string */
    return id == EOS + 1;
}

static void on_done(void *context, void *user, const struct request_done *done)
{
    struct simulation *sim = context;
    struct sim_request *r = user;
    uint32_t sample = done->sample;
    uint32_t max_tokens = r->request.sampling.max_tokens;

    CHECK(sample < r->request.n_samples);
    CHECK(!r->done[sample]);
    CHECK(done->usage.completion_tokens == r->got[sample]);
    CHECK(done->usage.prompt_tokens == r->request.n_prompt);
    CHECK((done->reason == FINISH_ABORTED) == (!r->stopped[sample] && r->got[sample] < max_tokens));
    CHECK(r->stopped[sample] ==
          (done->reason == FINISH_STOP_TOKEN || done->reason == FINISH_STOP_STRING));
    CHECK(done->timing.queue_ms >= 0 && done->timing.prefill_ms >= 0);
    CHECK(done->timing.decode_ms >= 0 && done->timing.total_ms >= 0);
    r->done[sample] = true;
    remember(sim, 3, r->request.handle, done->reason);
}

static void count_end(struct simulation *sim, const struct sim_request *r,
                      const struct failure *failure)
{
    struct simulation_outcome *outcome = &sim->outcome;

    if (!failure) {
        outcome->completed++;
    } else if (failure->code == STATUS_CANCELLED) {
        outcome->cancelled++;
    } else if (failure->code == STATUS_DEADLINE) {
        CHECK(sim->now >= (double)r->request.deadline_ms);
        CHECK(sim->now <= (double)r->request.deadline_ms + 51);
        outcome->late++;
    } else {
        bool waited = r->state == QUEUED && sim->n_alive == 0 &&
                      sim->now - sim->lost_ms >= sim->config.reform_ms;
        bool often = r->state == RUNNING && r->reruns == SCHEDULER_MAX_RERUNS;
        CHECK(failure->code == STATUS_UNAVAILABLE && strstr(failure->text, "rank 1 died"));
        CHECK(has_token(r) || waited || often);
        outcome->lost++;
        outcome->lost_waiting += waited;
        outcome->lost_often += often && !has_token(r);
    }
}

/* Only what nobody has seen is computed again. */
static void on_rerun(void *context, void *user, const struct failure *failure)
{
    struct simulation *sim = context;
    struct sim_request *r = user;

    CHECK(r->state == RUNNING && !has_token(r) && strstr(failure->text, "rank 1 died"));
    r->reruns++;
    CHECK(r->reruns <= SCHEDULER_MAX_RERUNS);
    start_waiting(sim, r);
    sim->outcome.reruns++;
    remember(sim, 6, r->request.handle, r->reruns);
}

static void on_ended(void *context, void *user, const struct failure *failure)
{
    struct simulation *sim = context;
    struct sim_request *r = user;

    for (uint32_t i = 0; i < r->request.n_samples && !failure; i++) {
        CHECK(r->done[i]);
    }
    count_end(sim, r, failure);
    sim->n_ended++;
    remember(sim, 4, r->request.handle, failure ? (uint64_t)failure->code : 0);
    heap_remove(&sim->waiting, &r->waits);
    CHECK(sim->requests[r->request.handle - 1] == r);
    sim->requests[r->request.handle - 1] = NULL;
    free(r);
}

/* ---- simulated workers ---- */

static uint32_t n_slots(const struct simulation *sim)
{
    return sim->config.max_sequences ? sim->config.max_sequences : PLAN_MAX_SLOTS;
}

/* Another sample of the slot's request is there, and holds the pages that they share. */
static bool is_shared(const struct simulation *sim, const struct sim_group *group, uint32_t slot)
{
    const struct sim_slot *own = &group->slots[slot];

    for (uint32_t i = 0; own->n_samples > 1 && i < n_slots(sim); i++) {
        if (i != slot && group->slots[i].used && group->slots[i].handle == own->handle) {
            return true;
        }
    }
    return false;
}

static void fake_release(const struct simulation *sim, struct sim_group *group, uint32_t slot)
{
    const struct sim_slot *own = &group->slots[slot];
    bool shared = is_shared(sim, group, slot);

    CHECK(own->used);
    for (int rank = 0; rank < RANKS; rank++) {
        group->used[rank] -= shared ? own->own[rank] : own->pages[rank];
    }
    group->slots[slot] = (struct sim_slot){0};
}

/* The prompt's rows are in the memory, and no other prompt's. */
static void check_rows(const struct simulation *sim, const struct sim_group *group,
                       const struct plan_begin *begin)
{
    int prompts = 1;

    CHECK(begin->first_row % PLAN_ROW_STEP == 0);
    CHECK(begin->first_row + begin->n_prompt <= plan_prompt_rows(sim->config.kind.max_context));
    for (uint32_t i = 0; i < n_slots(sim); i++) {
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

static void fake_begin(struct simulation *sim, struct sim_group *group,
                       const struct plan_begin *begin)
{
    struct sim_slot *slot = &group->slots[begin->slot];
    uint32_t use = 50 + (uint32_t)(traffic_mix(begin->sampling.seed) % 50);
    bool bound = begin->params.method == METHOD_ADAKV || begin->params.method == METHOD_FASTGEN;
    uint64_t pages[RANKS];
    uint64_t full[RANKS];

    CHECK(!slot->used);
    check_rows(sim, group, begin);
    *slot = (struct sim_slot){.used = true, .sample = begin->sampling.sample};
    slot->first_row = begin->first_row;
    slot->n_prompt = begin->n_prompt;
    slot->handle = begin->sampling.seed;
    slot->limit = begin->max_rows + 1;
    slot->params = begin->params;
    slices_begin(&slot->walk, &slot->params, &simulation_model, (int)begin->n_prompt);
    slot->n_samples = sim->requests[slot->handle - 1]->request.n_samples;
    count_pages(begin, pages, full);
    for (int rank = 0; rank < RANKS; rank++) {
        slot->pages[rank] = (uint32_t)pages[rank];
        slot->rest[rank] = bound ? slot->pages[rank] * use / 100 : slot->pages[rank];
        slot->own[rank] = slot->pages[rank] - (slot->n_samples > 1 ? (uint32_t)full[rank] : 0);
        group->used[rank] += slot->pages[rank];
        CHECK(group->used[rank] <= sim->pages[rank]);
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
        .slot = index, .id = token_of(slot->handle, slot->sample, slot->produced)};
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

static void fake_fork(const struct simulation *sim, struct sim_group *group, struct sim_step *step,
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
        CHECK(group->used[rank] <= sim->pages[rank]);
    }
    fake_token(group, step, begin->slot);
}

static void fake_advance(const struct simulation *sim, struct sim_group *group,
                         struct sim_step *step, const struct plan_advance *advance)
{
    struct sim_slot *slot = &group->slots[advance->slot];
    struct slice slice;

    CHECK(slot->used && !slot->decoding && advance->slices > 0);
    slot->walk.params = &slot->params;
    for (uint32_t i = 0; i < advance->slices; i++) {
        CHECK(slices_next(&slot->walk, &slice));
        step->ms += slice_work(&simulation_model, &slice) / sim->config.work_per_ms;
    }
    if (slot->walk.next.end == 0) {
        fake_choice(group, step, advance->slot);
    }
}

static void fake_prompts(struct simulation *sim, struct sim_group *group, struct sim_step *step,
                         const struct plan *plan)
{
    for (uint32_t i = 0; i < plan->n_begin; i++) {
        if (!plan->begin[i].forks) {
            fake_begin(sim, group, &plan->begin[i]);
        }
    }
    for (uint32_t i = 0; i < plan->n_advance; i++) {
        fake_advance(sim, group, step, &plan->advance[i]);
    }
    for (uint32_t i = 0; i < plan->n_begin; i++) {
        if (plan->begin[i].forks) {
            fake_fork(sim, group, step, &plan->begin[i]);
        }
    }
}

static void execute(struct simulation *sim, uint32_t index, const struct plan *plan)
{
    struct sim_group *group = &sim->groups[index];
    struct sim_step *step = &group->steps[group->n_steps++];

    CHECK(group->alive && plan->epoch == group->epoch && plan->number == group->expected);
    CHECK(group->n_steps <= (sim->config.look_ahead ? sim->config.look_ahead : 2));
    CHECK(plan->n_begin <= PLAN_MAX_PROMPTS * TRAFFIC_MAX_SAMPLES);
    CHECK(plan->n_advance <= PLAN_MAX_PROMPTS);
    CHECK(plan->n_release + plan->n_begin + plan->n_advance + plan->n_decode > 0);
    group->expected++;
    *step = (struct sim_step){
        .number = plan->number, .ms = 0.2, .tokens = step->tokens, .room = step->room};
    for (uint32_t i = 0; i < plan->n_release; i++) {
        fake_release(sim, group, plan->release[i]);
    }
    fake_prompts(sim, group, step, plan);
    for (uint32_t i = 0; i < plan->n_decode; i++) {
        CHECK(group->slots[plan->decode[i]].decoding);
        fake_token(group, step, plan->decode[i]);
    }
    step->decode_ms = plan->n_decode ? 1 + 0.05 * plan->n_decode : 0;
    step->ms += step->decode_ms;
    sim->outcome.plans++;
    remember(sim, 5, index, plan->number * 1000 + plan->n_decode);
    if (group->n_steps == 1) {
        schedule(sim, step->ms, STEP_DONE, index, group->epoch);
    }
}

static void send_plans(struct simulation *sim)
{
    struct plan plan;
    uint32_t index;

    while (scheduler_next_plan(sim->scheduler, &index, &plan)) {
        execute(sim, index, &plan);
    }
}

static void revive(struct simulation *sim, uint32_t index)
{
    struct sim_group *group = &sim->groups[index];
    uint32_t n = sim->config.max_sequences ? sim->config.max_sequences : PLAN_MAX_SLOTS;
    struct group_capacity capacity = {
        .epoch = ++group->epoch, .page_rows = PAGE_ROWS, .pages = sim->pages, .page_bytes = 1024};

    group->alive = true;
    sim->n_alive++;
    group->expected = 1;
    group->n_steps = 0;
    memset(group->used, 0, sizeof(group->used));
    memset(group->slots, 0, n * sizeof(struct sim_slot));
    CHECK_OK(scheduler_group_ready(sim->scheduler, index, &capacity, sim->now));
    if (sim->config.deaths_per_s > 0) {
        schedule(sim, traffic_wait_ms(&sim->traffic, sim->config.deaths_per_s / 1000), DIE, index,
                 group->epoch);
    }
}

static void die(struct simulation *sim, uint32_t index)
{
    struct failure failure = {.code = STATUS_UNAVAILABLE, .text = "rank 1 died"};

    sim->groups[index].alive = false;
    sim->n_alive--;
    sim->lost_ms = sim->now;
    scheduler_group_lost(sim->scheduler, index, &failure, sim->now);
    CHECK(scheduler_group_running(sim->scheduler, index) == 0);
    schedule(sim, 100 + 1000 * traffic_chance(&sim->traffic), REVIVE, index, 0);
}

static void step_done(struct simulation *sim, uint32_t index)
{
    struct sim_group *group = &sim->groups[index];
    struct sim_step step = group->steps[0];
    struct step_result result = {
        .epoch = group->epoch,
        .number = step.number,
        .n_tokens = step.n_tokens,
        .tokens = step.tokens,
        .compute_ms = step.ms,
        .collective_ms = step.ms / 10,
        .decode_ms = step.decode_ms,
    };

    group->n_steps--;
    memmove(&group->steps[0], &group->steps[1], group->n_steps * sizeof(struct sim_step));
    group->steps[group->n_steps] = step; /* its memory is used again */
    for (uint32_t i = 0; i < step.n_choices * RANKS; i++) {
        const struct sim_choice *choice = &step.choices[i / RANKS];
        int rank = (int)(i % RANKS);
        CHECK_OK(scheduler_keep_pages(sim->scheduler, index, choice->slot, step.number, rank,
                                      choice->rest[rank], choice->shared[rank]));
    }
    if (group->n_steps) {
        schedule(sim, group->steps[0].ms, STEP_DONE, index, group->epoch);
    }
    CHECK_OK(scheduler_result(sim->scheduler, index, &result, sim->now));
}

/* ---- simulated clients ---- */

static void arrive(struct simulation *sim, uint32_t index)
{
    const struct simulation_config *config = &sim->config;
    struct sim_request *r = calloc(1, sizeof(*r));
    bool retry = false;

    CHECK(r);
    traffic_make_request(&sim->traffic, &config->kind, &simulation_model, sim->now, &r->request);
    r->request.handle = r->request.sampling.seed = index + 1;
    r->request.prompt = r->prompt;
    sim->requests[index] = r;
    start_waiting(sim, r);
    if (scheduler_submit(sim->scheduler, &r->request, r, sim->now, &retry)) {
        heap_remove(&sim->waiting, &r->waits);
        sim->requests[index] = NULL;
        free(r);
        sim->n_ended++;
        sim->outcome.refused++;
    } else if (traffic_chance(&sim->traffic) < config->cancel_share) {
        schedule(sim, traffic_wait_ms(&sim->traffic, 1.0 / 200), CANCEL, index, 0);
    }
    if (index + 1 < config->requests) {
        schedule(sim, traffic_wait_ms(&sim->traffic, config->arrivals_per_ms), ARRIVE, index + 1,
                 0);
    }
}

static void cancel(struct simulation *sim, uint32_t index)
{
    struct failure failure = {.code = STATUS_CANCELLED, .text = "the client went away"};
    bool alive = sim->requests[index] != NULL;
    bool abort = alive && traffic_chance(&sim->traffic) < 0.5;

    sim->outcome.aborted += abort;
    CHECK(scheduler_cancel(sim->scheduler, index + 1, abort ? NULL : &failure, sim->now) == alive);
    CHECK(!sim->requests[index]);
}

/* ---- the loop ---- */

static void handle(struct simulation *sim, const struct event *event)
{
    bool current = event->index < sim->config.groups && sim->groups[event->index].alive &&
                   sim->groups[event->index].epoch == event->epoch;

    if (event->kind == ARRIVE) {
        arrive(sim, event->index);
    } else if (event->kind == CANCEL) {
        cancel(sim, event->index);
    } else if (event->kind == STEP_DONE && current) {
        step_done(sim, event->index);
    } else if (event->kind == DIE && current) {
        die(sim, event->index);
    } else if (event->kind == REVIVE) {
        revive(sim, event->index);
    } else if (event->kind == TICK) {
        scheduler_tick(sim->scheduler, sim->now);
        schedule(sim, 50, TICK, 0, 0);
    }
}

static void sim_open(struct simulation *sim, const struct simulation_config *config)
{
    uint32_t n = config->max_sequences ? config->max_sequences : PLAN_MAX_SLOTS;
    uint32_t context = config->kind.max_context ? config->kind.max_context : 1 << 20;
    struct scheduler_config scheduler = {
        .model = &simulation_model,
        .ranks = RANKS,
        .n_groups = config->groups,
        .max_context = context,
        .queue_requests = config->queue_requests,
        .look_ahead = config->look_ahead,
        .max_sequences = config->max_sequences,
        .reform_ms = config->reform_ms,
        .sink = {on_progress, on_token, on_done, on_ended, on_rerun, sim},
    };

    *sim = (struct simulation){.config = *config, .traffic.random = config->seed, .now = 1};
    sim->config.kind.max_context = context;
    sim->config.work_per_ms = config->work_per_ms > 0 ? config->work_per_ms : 1e7;
    sim->pages[0] = config->pages;
    sim->pages[1] = config->pages / 2 + 1; /* it has half the KV heads */
    sim->requests = calloc(config->requests, sizeof(struct sim_request *));
    sim->groups = calloc(config->groups, sizeof(struct sim_group));
    CHECK(sim->requests && sim->groups);
    for (uint32_t i = 0; i < config->groups; i++) {
        sim->groups[i].slots = calloc(n, sizeof(struct sim_slot));
        CHECK(sim->groups[i].slots);
    }
    CHECK_OK(scheduler_open(&sim->scheduler, &scheduler));
}

static void sim_close(struct simulation *sim)
{
    struct heap_node *node;

    while ((node = heap_first(&sim->events))) {
        heap_remove(&sim->events, node);
        free(HOLDER_OF(node, struct event, at));
    }
    heap_fini(&sim->events);
    heap_fini(&sim->waiting);
    scheduler_close(sim->scheduler);
    for (uint32_t i = 0; i < sim->config.groups; i++) {
        free(sim->groups[i].slots);
        for (int step = 0; step < SCHEDULER_MAX_LOOK_AHEAD; step++) {
            free(sim->groups[i].steps[step].tokens);
        }
    }
    free(sim->groups);
    free(sim->requests);
}

static void check_all_is_free(struct simulation *sim)
{
    struct scheduler_counts counts = scheduler_counts(sim->scheduler);

    CHECK(counts.queued == 0 && counts.running == 0 && counts.queued_tokens == 0);
    for (uint32_t i = 0; i < sim->config.groups; i++) {
        for (int rank = 0; sim->groups[i].alive && rank < RANKS; rank++) {
            CHECK(scheduler_pages_free(sim->scheduler, i, rank) == sim->pages[rank]);
        }
    }
}

struct simulation_outcome simulate(const struct simulation_config *config)
{
    struct simulation sim;

    sim_open(&sim, config);
    for (uint32_t i = 0; i < config->groups; i++) {
        revive(&sim, i);
    }
    schedule(&sim, 0, ARRIVE, 0, 0);
    schedule(&sim, 50, TICK, 0, 0);
    while (sim.n_ended < config->requests) {
        struct heap_node *node = heap_first(&sim.events);
        struct event *event = HOLDER_OF(node, struct event, at);
        heap_remove(&sim.events, node);
        sim.now = (double)node->key / 1000;
        sim.outcome.events++;
        CHECK(sim.now < 1e9); /* virtual: nobody waits for ever */
        handle(&sim, event);
        send_plans(&sim);
        check_head(&sim);
        free(event);
    }
    check_all_is_free(&sim);
    sim.outcome.ended_ms = sim.now;
    sim_close(&sim);
    return sim.outcome;
}
