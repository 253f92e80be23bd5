#include "coordinator/gather.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct gather {
    int ranks;
    uint64_t next;                /* number of the oldest incomplete plan */
    int n_have[GATHER_MAX_PLANS]; /* by number */
    bool *have;                   /* [GATHER_MAX_PLANS][ranks] */
    struct step_result *results;  /* likewise */
};

status gather_create(struct gather **out, int ranks)
{
    struct gather *gather = calloc(1, sizeof(*gather));
    size_t n = (size_t)GATHER_MAX_PLANS * (size_t)ranks;

    if (gather) {
        gather->have = calloc(n, sizeof(bool));
        gather->results = calloc(n, sizeof(struct step_result));
    }
    if (!gather || !gather->have || !gather->results) {
        gather_destroy(gather);
        return status_fail(STATUS_EXHAUSTED, "no memory for the results of %d ranks", ranks);
    }
    gather->ranks = ranks;
    gather->next = 1;
    *out = gather;
    return STATUS_OK;
}

static size_t row_of(const struct gather *gather, uint64_t number)
{
    return (size_t)(number % GATHER_MAX_PLANS) * (size_t)gather->ranks;
}

static void clear(struct gather *gather, uint64_t number)
{
    size_t row = row_of(gather, number);

    for (size_t i = row; i < row + (size_t)gather->ranks; i++) {
        if (gather->have[i]) {
            step_result_free(&gather->results[i]);
        }
        gather->have[i] = false;
    }
    gather->n_have[number % GATHER_MAX_PLANS] = 0;
}

void gather_reset(struct gather *gather)
{
    for (uint64_t i = 0; i < GATHER_MAX_PLANS; i++) {
        clear(gather, i);
    }
    gather->next = 1;
}

void gather_destroy(struct gather *gather)
{
    if (!gather) {
        return;
    }
    if (gather->have && gather->results) {
        gather_reset(gather);
    }
    free(gather->have);
    free(gather->results);
    free(gather);
}

status gather_add_take(struct gather *gather, int rank, struct step_result *result)
{
    uint64_t number = result->number;
    size_t at = row_of(gather, number) + (size_t)rank;

    if (number < gather->next || number >= gather->next + GATHER_MAX_PLANS || gather->have[at]) {
        step_result_free(result);
        return status_fail(STATUS_INTERNAL,
                           "rank %d answers plan %llu, the oldest open one is %llu", rank,
                           (unsigned long long)number, (unsigned long long)gather->next);
    }
    gather->have[at] = true;
    gather->results[at] = *result;
    gather->n_have[number % GATHER_MAX_PLANS]++;
    *result = (struct step_result){0};
    return STATUS_OK;
}

const struct step_result *gather_complete(const struct gather *gather)
{
    if (gather->n_have[gather->next % GATHER_MAX_PLANS] < gather->ranks) {
        return NULL;
    }
    return &gather->results[row_of(gather, gather->next)];
}

void gather_pop(struct gather *gather)
{
    clear(gather, gather->next);
    gather->next++;
}
