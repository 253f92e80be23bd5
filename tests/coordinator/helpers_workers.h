/*
 * helpers_workers.h - a group of workers that are arithmetic: they execute plans, check each for
 * what must hold, and say how long it took.
 */
#ifndef TESTS_COORDINATOR_HELPERS_WORKERS_H
#define TESTS_COORDINATOR_HELPERS_WORKERS_H

#include "common/slices.h"
#include "coordinator/scheduler.h"

enum { RANKS = 2, PAGE_ROWS = 32, VOCAB = 1024, EOS = 7 };

/* What a simulated group is like. */
struct sim_rules {
    uint32_t slots, look_ahead, max_context;
    uint32_t pages[RANKS];
    double work_per_ms;
    uint8_t *n_samples; /* by handle - 1: of a request */
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

/* What the simulated model says: a function of the request, the sample and the step. */
uint32_t workers_token(uint64_t handle, uint32_t sample, uint32_t step);

/* Applies the plan to the group, as its next step. */
struct sim_step *workers_execute(const struct sim_rules *rules, struct sim_group *group,
                                 const struct plan *plan);

/* The oldest step is answered; what it holds is valid until the group executes again. */
struct sim_step workers_answer(struct sim_group *group);

#endif
