/*
 * helpers_simulation.h - workers that are arithmetic, requests that are random, a clock that is
 * a number: the scheduler in all its states within milliseconds, replayable from a seed.
 *
 * Every callback and every plan is checked against what must hold at any time: each accepted
 * request ends exactly once, and each of its samples; tokens are the model's, in order; pages and
 * rows of the prompt memory never exceed what a rank has; who goes first in the queue goes first,
 * and gets its turn in bounded time.
 */
#ifndef TESTS_COORDINATOR_HELPERS_SIMULATION_H
#define TESTS_COORDINATOR_HELPERS_SIMULATION_H

#include "coordinator/scheduler.h"
#include "tests/coordinator/helpers_traffic.h"

struct simulation_config {
    uint64_t seed;
    uint32_t groups;
    uint32_t requests;
    uint32_t pages;         /* of each rank's pool */
    uint32_t max_sequences; /* of a group; 0: the scheduler's default */
    uint32_t look_ahead;
    struct traffic_kind kind;
    double work_per_ms; /* floating-point operations that a group computes; 0: 1e7 */
    double arrivals_per_ms;
    double deaths_per_s; /* of each group */
    double reform_ms;    /* of the scheduler */
    double cancel_share; /* of the requests; half of them abort */
    uint32_t queue_requests;
};

struct simulation_outcome {
    uint32_t refused, completed, failed, cancelled, late, aborted, lost;
    uint32_t reruns;
    uint32_t lost_waiting; /* of the lost: no group was there in time */
    uint32_t lost_often;   /* of the lost: without a token, after all its runs */
    uint32_t passed;       /* who may go first: a short prompt beside its long one */
    double head_ms;        /* the longest at the head of the queue */
    uint64_t tokens, plans, events;
    uint64_t history; /* hash of everything that was reported, in order */
    double ended_ms;
};

extern const struct model_config simulation_model;

/* Runs until every request has ended; fails the test at the first broken invariant. */
struct simulation_outcome simulate(const struct simulation_config *config);

#endif
