/* bench_scheduler.c - what the scheduler costs: a plan for many live sequences, and a day's
 * requests.
 *
 *   winnow-bench-scheduler [SEQUENCES [REQUESTS]]
 */
#include "common/slices.h"
#include "tests/check.h"
#include "tests/coordinator/helpers_simulation.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { ROUNDS = 2000, WARM_UP = 100, N_PROMPT = 32 };

static double cpu_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return 1e6 * (double)t.tv_sec + (double)t.tv_nsec / 1e3;
}

static void on_progress(void *context, void *user, const struct request_progress *progress)
{
    (void)context;
    (void)user;
    (void)progress;
}

static bool on_token(void *context, void *user, uint32_t sample, const struct result_token *token,
                     bool stop)
{
    (void)context;
    (void)user;
    (void)sample;
    (void)token;
    (void)stop;
    return false;
}

static void on_done(void *context, void *user, const struct request_done *done)
{
    (void)context;
    (void)user;
    (void)done;
}

static void on_ended(void *context, void *user, const struct failure *failure)
{
    (void)context;
    (void)user;
    (void)failure;
}

/* Answers a plan as the worker would. */
static void answer(struct scheduler *scheduler, const struct plan *plan, struct slices *walks,
                   double now)
{
    static struct result_token tokens[PLAN_MAX_DECODE + 1];
    struct step_result result = {.number = plan->number, .tokens = tokens, .compute_ms = 1};
    struct slice slice;

    for (uint32_t i = 0; i < plan->n_advance; i++) {
        struct slices *walk = &walks[plan->advance[i].slot];
        for (uint32_t k = 0; k < plan->advance[i].slices; k++) {
            (void)slices_next(walk, &slice);
        }
        if (walk->next.end == 0) {
            tokens[result.n_tokens++] = (struct result_token){.slot = plan->advance[i].slot};
        }
    }
    for (uint32_t i = 0; i < plan->n_decode; i++) {
        tokens[result.n_tokens++] = (struct result_token){.slot = plan->decode[i]};
    }
    if (scheduler_result(scheduler, 0, &result, now)) {
        fprintf(stderr, "%s\n", status_text());
        exit(1);
    }
}

static struct scheduler *open_with(struct request *requests, uint32_t n)
{
    const struct scheduler_config config = {
        .model = &simulation_model,
        .ranks = 1,
        .n_groups = 1,
        .max_context = 1 << 17,
        .queue_requests = n,
        .look_ahead = 1,
        .sink = {on_progress, on_token, on_done, on_ended, on_ended, NULL},
    };
    static uint32_t prompt[N_PROMPT];
    uint32_t pages = UINT32_MAX;
    struct group_capacity capacity = {.epoch = 1, .page_rows = 32, .pages = &pages};
    struct scheduler *scheduler;
    bool retry;

    if (scheduler_open(&scheduler, &config) || scheduler_group_ready(scheduler, 0, &capacity, 0)) {
        exit(1);
    }
    for (uint32_t i = 0; i < n; i++) {
        requests[i] = (struct request){.handle = i + 1,
                                       .prompt = prompt,
                                       .n_prompt = N_PROMPT,
                                       .sampling = {.max_tokens = 1 << 16},
                                       .n_samples = 1,
                                       .ignore_eos = true,
                                       .deadline_ms = INT64_MAX};
        method_defaults(&requests[i].params, METHOD_FULL, &simulation_model);
        if (scheduler_submit(scheduler, &requests[i], &requests[i], 0, &retry)) {
            exit(1);
        }
    }
    return scheduler;
}

/* The cost of a plan that decodes for `n` live sequences, and of its result. */
static void time_plans(uint32_t n)
{
    struct request *requests = calloc(n, sizeof(*requests));
    struct slices walks[PLAN_MAX_SLOTS];
    double plans_us = 0, packing_us = 0, results_us = 0;
    struct scheduler *scheduler = open_with(requests, n);
    struct plan plan;
    uint32_t group;
    uint8_t *data;
    size_t bytes;

    for (int round = -WARM_UP; round < ROUNDS;) {
        double begin = cpu_us();
        bool more = scheduler_next_plan(scheduler, &group, &plan);
        double planned = cpu_us();
        CHECK(more);
        CHECK_OK(plan_encode(&plan, &data, &bytes));
        free(data);
        double packed = cpu_us();
        for (uint32_t i = 0; i < plan.n_begin; i++) {
            slices_begin(&walks[plan.begin[i].slot], &requests[0].params, &simulation_model,
                         N_PROMPT);
        }
        answer(scheduler, &plan, walks, 1);
        if (plan.n_decode == n && ++round > 0) {
            plans_us += planned - begin;
            packing_us += packed - planned;
            results_us += cpu_us() - packed;
        }
    }
    printf("%u live sequences: a plan costs %.1f us and %.1f us to pack, its result %.1f us\n", n,
           plans_us / ROUNDS, packing_us / ROUNDS, results_us / ROUNDS);
    (void)scheduler_fail_all(scheduler, &(struct failure){.code = STATUS_CANCELLED});
    scheduler_close(scheduler);
    free(requests);
}

static void time_requests(uint32_t n)
{
    const struct simulation_config config = {
        .seed = 1,
        .groups = 1000,
        .requests = n,
        .pages = 60000,
        .max_sequences = 64,
        .kind = {.real = true, .max_context = 131072, .deadline_share = 0.02},
        .work_per_ms = 1e9,
        .arrivals_per_ms = 20,
        .deaths_per_s = 0.05,
        .cancel_share = 0.02,
        .queue_requests = 2000,
    };
    double begin = cpu_us();
    struct simulation_outcome outcome = simulate(&config);
    double seconds = (cpu_us() - begin) / 1e6;

    printf("%u requests, %u groups: %u completed, %u cancelled, %u late, %u lost, %u refused, %u "
           "run again; %llu plans, %llu tokens\n",
           n, config.groups, outcome.completed, outcome.cancelled, outcome.late, outcome.lost,
           outcome.refused, outcome.reruns, (unsigned long long)outcome.plans,
           (unsigned long long)outcome.tokens);
    printf("%.1f s of CPU with the simulated workers, for %.0f s of virtual time\n", seconds,
           outcome.ended_ms / 1000);
}

int main(int argc, char **argv)
{
    unsigned long sequences = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000;
    unsigned long requests = argc > 2 ? strtoul(argv[2], NULL, 10) : 1000000;

    if (sequences < 1 || sequences > PLAN_MAX_SLOTS || requests < 1 || requests > 100000000) {
        fprintf(stderr, "usage: winnow-bench-scheduler [SEQUENCES (1 to %d) [REQUESTS]]\n",
                PLAN_MAX_SLOTS);
        return 2;
    }
    time_plans((uint32_t)sequences);
    time_requests((uint32_t)requests);
    return 0;
}
