#include "tests/coordinator/helpers_simulation.h"

#include "coordinator/heap.h"
#include "coordinator/list.h"
#include "tests/check.h"
#include "tests/coordinator/helpers_traffic.h"
#include "tests/coordinator/helpers_workers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    struct sim_rules rules;
    double now;
    struct simulation_outcome outcome;
};

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
    CHECK(id == workers_token(r->request.handle, sample, r->got[sample]));
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

static void execute(struct simulation *sim, uint32_t index, const struct plan *plan)
{
    struct sim_group *group = &sim->groups[index];
    const struct sim_step *step = workers_execute(&sim->rules, group, plan);

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
    struct group_capacity capacity = {.epoch = ++group->epoch,
                                      .page_rows = PAGE_ROWS,
                                      .pages = sim->rules.pages,
                                      .page_bytes = 1024};

    group->alive = true;
    sim->n_alive++;
    group->expected = 1;
    group->n_steps = 0;
    memset(group->used, 0, sizeof(group->used));
    memset(group->slots, 0, sim->rules.slots * sizeof(struct sim_slot));
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
    const struct sim_step step = workers_answer(group);
    struct step_result result = {
        .epoch = group->epoch,
        .number = step.number,
        .n_tokens = step.n_tokens,
        .tokens = step.tokens,
        .compute_ms = step.ms,
        .collective_ms = step.ms / 10,
        .decode_ms = step.decode_ms,
    };

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
    sim->rules.n_samples[index] = (uint8_t)r->request.n_samples;
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
    sim->rules = (struct sim_rules){
        .slots = n,
        .look_ahead = config->look_ahead ? config->look_ahead : 2,
        .n_samples = calloc(config->requests, 1),
        .max_context = context,
        .work_per_ms = config->work_per_ms > 0 ? config->work_per_ms : 1e7,
    };
    sim->rules.pages[0] = config->pages;
    sim->rules.pages[1] = config->pages / 2 + 1; /* it has half the KV heads */
    sim->requests = calloc(config->requests, sizeof(struct sim_request *));
    sim->groups = calloc(config->groups, sizeof(struct sim_group));
    CHECK(sim->requests && sim->groups && sim->rules.n_samples);
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
    free(sim->rules.n_samples);
    free(sim->requests);
}

static void check_all_is_free(struct simulation *sim)
{
    struct scheduler_counts counts = scheduler_counts(sim->scheduler);

    CHECK(counts.queued == 0 && counts.running == 0 && counts.queued_tokens == 0);
    for (uint32_t i = 0; i < sim->config.groups; i++) {
        for (int rank = 0; sim->groups[i].alive && rank < RANKS; rank++) {
            CHECK(scheduler_pages_free(sim->scheduler, i, rank) == sim->rules.pages[rank]);
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
