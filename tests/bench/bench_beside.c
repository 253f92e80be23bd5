/*
 * bench_beside.c - what the decode steps between a prompt's slices cost the slices, beside their
 * own time: caches that hold the decoders' rows and all weights instead of the prompt's keys.
 *
 *   winnow-bench-beside --model DIR [--tokens N] [--decoders N] [--decoder-rows N] ...
 *
 * The same prompt is read again and again by one rank's engine, cut into the same plans.  Every
 * second plan holds a decode step, in each pass the others than in the pass before, so that each
 * plan is measured behind a step and behind none.  A machine that is quick now and slow later
 * changes neighbours alike: their differences are compared.
 */
#include "common/clock.h"
#include "common/options.h"
#include "common/slices.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_group.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PLANS = 8192, MAX_TOKENS = 1 << 17, DECODER_STEPS = 30000 };

struct settings {
    const char *model, *method;
    int64_t tokens, decoders, decoder_rows, target_ms, threads, rounds;
    struct model_config config; /* of the model */
    struct method_params params;
};

struct passes {
    const struct settings *settings;
    struct bench bench;
    uint32_t slices[MAX_PLANS]; /* of each plan */
    int plans;
    double ms[2][MAX_PLANS]; /* the slices of a plan: behind no step, behind one */
    double cost[MAX_PLANS];
    double step_ms;
    int steps;
};

static uint32_t ids[MAX_TOKENS];

static void draw_ids(const struct settings *s)
{
    uint32_t seed = 1;

    for (int i = 0; i < MAX_TOKENS; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (seed >> 8) % (uint32_t)s->config.vocab;
    }
}

static struct plan_begin begin_of(const struct settings *s, uint32_t slot, uint32_t tokens,
                                  uint32_t steps)
{
    return (struct plan_begin){
        .slot = slot,
        .n_prompt = tokens,
        .prompt = ids,
        .params = s->params,
        .sampling = {.max_tokens = steps + 1, .top_p = 1, .repetition_penalty = 1},
        .max_rows = steps,
    };
}

static status open_decoders(struct passes *p)
{
    status st = STATUS_OK;

    for (uint32_t slot = 0; !st && slot < (uint32_t)p->settings->decoders; slot++) {
        struct plan_begin begin =
            begin_of(p->settings, slot, (uint32_t)p->settings->decoder_rows, DECODER_STEPS);
        struct outcome outcome = {0};

        begin.params = (struct method_params){.method = METHOD_FULL};
        st = bench_prompt(&p->bench, &begin, &outcome);
        outcome_free(&outcome);
    }
    return st;
}

/* Plans as long as the target, by how long the slices take here and now. */
static status cut(struct passes *p)
{
    const struct settings *s = p->settings;
    uint32_t slot = (uint32_t)s->decoders;
    const struct plan_begin begin = begin_of(s, slot, (uint32_t)s->tokens, 0);
    struct plan_advance advance = {.slot = slot, .slices = 1};
    struct plan plan = {.n_begin = 1, .begin = &begin, .n_advance = 1, .advance = &advance};
    struct step_result result = {0};
    double ms = 0;
    status st = STATUS_OK;

    p->plans = 1;
    while (!st && result.n_tokens == 0) {
        plan.number = p->bench.number++;
        st = engine_step(p->bench.engine, &plan, &result);
        plan.n_begin = 0;
        ms += result.compute_ms;
        p->slices[p->plans - 1]++;
        if (ms >= (double)s->target_ms && p->plans < MAX_PLANS) {
            p->plans++;
            ms = 0;
        }
    }
    p->plans -= p->slices[p->plans - 1] == 0;
    return st;
}

static status read_prompt(struct passes *p, int odd)
{
    const struct settings *s = p->settings;
    uint32_t slot = (uint32_t)s->decoders;
    const struct plan_begin begin = begin_of(s, slot, (uint32_t)s->tokens, 0);
    struct plan_advance advance = {.slot = slot};
    struct plan plan = {.n_begin = 1, .begin = &begin, .n_advance = 1, .advance = &advance};
    struct step_result result = {0};
    uint32_t slots[PLAN_MAX_DECODE];
    status st = STATUS_OK;

    for (uint32_t i = 0; i < slot; i++) {
        slots[i] = i;
    }
    plan.decode = slots;
    for (int i = 0; !st && i < p->plans; i++) {
        bool behind = i > 0 && plan.n_decode > 0;

        advance.slices = p->slices[i];
        plan.number = p->bench.number++;
        plan.n_decode = i % 2 == odd ? slot : 0;
        st = engine_step(p->bench.engine, &plan, &result);
        plan.n_begin = 0;
        p->ms[behind][i] = result.compute_ms - result.decode_ms;
        p->step_ms += result.decode_ms;
        p->steps += plan.n_decode > 0;
    }
    return st;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* The mean of the middle nine tenths, and its standard error. */
static double middle(double *values, int n, double *error)
{
    int cut_off = n / 20, left = n - 2 * cut_off;
    double sum = 0, squares = 0;

    qsort(values, (size_t)n, sizeof(*values), ascending);
    for (int i = cut_off; i < n - cut_off; i++) {
        sum += values[i];
        squares += values[i] * values[i];
    }
    double mean = sum / left;
    *error = sqrt((squares / left - mean * mean) / left);
    return mean;
}

/* The first plan is behind nothing, and the last ones are short. */
static void print_round(struct passes *p)
{
    double slices = 0, error;
    int n = 0;

    for (int i = 1; i + 2 < p->plans; i++) {
        double here = p->ms[1][i] - p->ms[0][i], next = p->ms[1][i + 1] - p->ms[0][i + 1];

        p->cost[n++] = (here + next) / 2;
        slices += p->ms[0][i];
    }
    if (n < 20) {
        printf("%d plans: too few\n", p->plans);
        return;
    }
    double cost = middle(p->cost, n, &error);
    printf("{\"tokens\": %d, \"decoders\": %d, \"decoder_rows\": %d, \"plans\": %d, \"plan_ms\": "
           "%.1f, \"step_ms\": %.2f, "
           "\"cost_ms\": %.3f, \"error_ms\": %.3f, \"percent\": %.2f}\n",
           (int)p->settings->tokens, (int)p->settings->decoders, (int)p->settings->decoder_rows,
           p->plans, slices / n, p->step_ms / p->steps, cost, error, 100 * cost * n / slices);
    fflush(stdout);
}

static status measure(struct passes *p)
{
    uint32_t slot = (uint32_t)p->settings->decoders;
    uint64_t used;
    status st = open_decoders(p);

    if (!st) {
        st = cut(p);
    }
    for (int64_t pass = 0; !st && pass < 2 * p->settings->rounds; pass++) {
        st = bench_release(&p->bench, slot, &used);
        if (!st) {
            st = read_prompt(p, (int)(pass % 2));
        }
        if (!st && pass % 2 == 1) {
            print_round(p);
        }
    }
    return st;
}

static status run_rank(struct comm *comm, void *context)
{
    struct passes *p = context;
    const struct settings *s = p->settings;
    const struct bench_config config = {
        .model = s->model,
        .dtype = s->config.dtype,
        .max_context = (int)(s->tokens + s->decoder_rows) + DECODER_STEPS + 1,
        .kv_bytes = (uint64_t)1 << 30,
        .threads = (int)s->threads,
    };
    status st = bench_open(&p->bench, comm, &config);

    if (!st) {
        st = measure(p);
    }
    bench_close(&p->bench);
    return st;
}

static status parse(struct settings *s, int argc, char **argv, enum options_outcome *outcome)
{
    const struct option table[] = {
        {"model", OPTION_STRING, &s->model, "DIR", "model directory", 0, 0},
        {"method", OPTION_STRING, &s->method, "NAME", "FULL, FASTKV, ...", 0, 0},
        {"tokens", OPTION_INT, &s->tokens, "N", "of the prompt", 1, MAX_TOKENS},
        {"decoders", OPTION_INT, &s->decoders, "N", "at a time", 1, PLAN_MAX_DECODE - 1},
        {"decoder-rows", OPTION_INT, &s->decoder_rows, "N", "in their caches", 1, 1e5},
        {"target-ms", OPTION_INT, &s->target_ms, "N", "slices of a plan", 1, 1000},
        {"threads", OPTION_INT, &s->threads, "N", "of the rank", 1, 1024},
        {"rounds", OPTION_INT, &s->rounds, "N", "of two passes, one line each", 1, 1000},
    };
    struct options options = {.program = "winnow-bench-beside",
                              .synopsis = "measures what decode steps cost the slices around them",
                              .table = table,
                              .n = sizeof(table) / sizeof(table[0])};

    *s = (struct settings){.method = "FASTKV",
                           .tokens = 32768,
                           .decoders = 8,
                           .decoder_rows = 64,
                           .target_ms = 100,
                           .threads = 1,
                           .rounds = 3};
    status st = options_parse(&options, argc, argv, outcome);
    if (st || *outcome != OPTIONS_RUN) {
        return st;
    }
    if (!s->model || method_by_name(s->method) == METHOD_UNSPECIFIED) {
        return status_fail(STATUS_INVALID, "--model DIR and --method NAME are needed");
    }
    st = model_config_load(&s->config, s->model);
    if (!st) {
        method_defaults(&s->params, method_by_name(s->method), &s->config);
    }
    return st;
}

int main(int argc, char **argv)
{
    static struct passes passes;
    enum options_outcome outcome;
    struct settings settings;
    status st = parse(&settings, argc, argv, &outcome);

    if (st) {
        fprintf(stderr, "winnow-bench-beside: %s\n", status_text());
        return 1;
    }
    if (outcome == OPTIONS_RUN) {
        draw_ids(&settings);
        passes.settings = &settings;
        group_run(1, run_rank, &passes);
    }
    return 0;
}
