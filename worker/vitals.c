#include "worker/vitals.h"

#include "common/clock.h"
#include "common/health.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/web.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const double step_bounds[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                     0.1,    0.25,  0.5,    1,     2.5,  5,     10};

enum series {
    READY,
    GROUP,
    RANK,
    STEPS,
    TOKENS,
    STEP_TIME,
    COLLECTIVE,
    EXCHANGE,
    SCORING,
    KV_USED,
    KV_TOTAL,
    N_SERIES,
};

static const struct metric_family families[N_SERIES] = {
    [READY] = {"winnow:worker_ready", "1 while this rank is part of a ready group.", METRIC_GAUGE,
               NULL, 0},
    [GROUP] = {"winnow:worker_group", "The group that it is part of.", METRIC_GAUGE, NULL, 0},
    [RANK] = {"winnow:worker_rank", "Its rank there.", METRIC_GAUGE, NULL, 0},
    [STEPS] = {"winnow:worker_steps_total", "Plans executed.", METRIC_COUNTER, NULL, 0},
    [TOKENS] = {"winnow:worker_tokens_total", "Tokens chosen, told by rank 0 only.", METRIC_COUNTER,
                NULL, 0},
    [STEP_TIME] = {"winnow:worker_step_seconds", "Time of a plan.", METRIC_HISTOGRAM, step_bounds,
                   sizeof(step_bounds) / sizeof(step_bounds[0])},
    [COLLECTIVE] = {"winnow:worker_collective_seconds_total",
                    "Of it in collectives, waiting for other ranks included.", METRIC_COUNTER, NULL,
                    0},
    [EXCHANGE] =
        {"winnow:worker_exchange_seconds_total",
         "From the beginning of collectives to their end, hidden behind computation or not.",
         METRIC_COUNTER, NULL, 0},
    [SCORING] = {"winnow:worker_scoring_seconds_total",
                 "Of it for the scores by which methods choose rows.", METRIC_COUNTER, NULL, 0},
    [KV_USED] = {"winnow:worker_kv_used_bytes", "KV bytes in use.", METRIC_GAUGE, NULL, 0},
    [KV_TOTAL] = {"winnow:worker_kv_total_bytes", "KV bytes that there are.", METRIC_GAUGE, NULL,
                  0},
};

struct vitals {
    struct health *health;
    struct health_port *port; /* NULL: not served */
    struct web *web;          /* likewise */
    struct metrics *metrics;
    struct metric *series[N_SERIES];
    _Atomic(double) busy_since_ms; /* 0: no plan is being executed */
};

bool vitals_is_alive(const struct vitals *vitals, double now, double limit_ms)
{
    double since = atomic_load(&vitals->busy_since_ms);

    return since == 0 || now - since < limit_ms;
}

static bool is_alive(const void *vitals)
{
    return vitals_is_alive(vitals, clock_ms(), VITALS_STALL_MS);
}

static status open_all(struct vitals *vitals, const struct vitals_config *config)
{
    status st = metrics_open(&vitals->metrics, config->model_name);

    for (int i = 0; !st && i < N_SERIES; i++) {
        vitals->series[i] = metrics_add(vitals->metrics, &families[i], NULL, 0);
    }
    if (!st) {
        st = health_open(&vitals->health);
    }
    if (!st) {
        vitals_not_ready(vitals);
        st = health_watch_liveness(vitals->health, is_alive, vitals);
    }
    if (!st && *config->http) {
        st = web_open(&vitals->web, config->http, vitals->metrics, vitals->health);
    }
    if (!st && *config->health_listen) {
        st = health_serve(&vitals->port, vitals->health, config->health_listen);
    }
    return st;
}

status vitals_open(struct vitals **out, const struct vitals_config *config)
{
    struct vitals *vitals = calloc(1, sizeof(*vitals));
    status st = vitals ? open_all(vitals, config)
                       : status_fail(STATUS_EXHAUSTED, "no memory for health and metrics");

    if (st) {
        vitals_close(vitals);
        return st;
    }
    *out = vitals;
    return STATUS_OK;
}

void vitals_close(struct vitals *vitals)
{
    if (!vitals) {
        return;
    }
    health_stop(vitals->health);
    health_port_close(vitals->port);
    web_close(vitals->web);
    metrics_close(vitals->metrics);
    health_close(vitals->health);
    free(vitals);
}

void vitals_ready(struct vitals *vitals, uint32_t group, uint32_t rank, uint64_t kv_bytes_total)
{
    metric_set(vitals->series[READY], 1);
    metric_set(vitals->series[GROUP], group);
    metric_set(vitals->series[RANK], rank);
    metric_set(vitals->series[KV_USED], 0);
    metric_set(vitals->series[KV_TOTAL], (double)kv_bytes_total);
    health_set_ready(true, vitals->health);
}

void vitals_not_ready(struct vitals *vitals)
{
    health_set_ready(false, vitals->health);
    metric_set(vitals->series[READY], 0);
    metric_set(vitals->series[GROUP], NAN);
    metric_set(vitals->series[RANK], NAN);
    metric_set(vitals->series[KV_USED], 0);
    metric_set(vitals->series[KV_TOTAL], 0);
}

void vitals_begin_step(struct vitals *vitals, double now)
{
    atomic_store(&vitals->busy_since_ms, now);
}

void vitals_end_step(struct vitals *vitals, const struct step_result *result)
{
    atomic_store(&vitals->busy_since_ms, 0);
    if (!result) {
        return;
    }
    metric_add(vitals->series[STEPS], 1);
    metric_add(vitals->series[TOKENS], result->n_tokens);
    metric_observe(vitals->series[STEP_TIME], result->compute_ms / 1000);
    metric_add(vitals->series[COLLECTIVE], result->collective_ms / 1000);
    metric_add(vitals->series[EXCHANGE], result->exchange_ms / 1000);
    metric_add(vitals->series[SCORING], result->scoring_ms / 1000);
    metric_set(vitals->series[KV_USED], (double)result->kv_bytes_used);
}
