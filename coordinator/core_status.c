#include "coordinator/core_state.h"
#include "coordinator/meters.h"

#include <stdlib.h>

/* Fills groups[n] and workers[n * ranks]. */
static void describe_groups(struct core *core, struct group_status *groups,
                            struct worker_status *workers, uint32_t n)
{
    size_t ranks = (size_t)core->config->tensor_parallel;

    for (uint32_t i = 0; i < n; i++) {
        fleet_group_status(core->fleet, i, &groups[i], &workers[i * ranks], core->now);
        groups[i].running_requests = scheduler_group_running(core->scheduler, i);
        if (core->draining && groups[i].state == GROUP_READY) {
            groups[i].state = GROUP_DRAINING;
        }
    }
}

void core_count_groups(struct core *core)
{
    uint32_t n = fleet_groups(core->fleet);
    size_t ranks = (size_t)core->config->tensor_parallel;
    struct group_status *groups = calloc(n, sizeof(*groups));
    struct worker_status *workers = calloc(n * ranks, sizeof(*workers));
    double *promised = calloc(n, sizeof(*promised));

    if (groups && workers && promised) {
        describe_groups(core, groups, workers, n);
        for (uint32_t i = 0; i < n; i++) {
            promised[i] = scheduler_promised(core->scheduler, i);
        }
        meters_groups(core->config->meters, groups, n, promised);
    }
    free(groups);
    free(workers);
    free(promised);
}

static void snapshot(struct core *core, const struct ask *ask)
{
    struct scheduler_counts counts = scheduler_counts(core->scheduler);
    uint32_t n = fleet_groups(core->fleet);
    size_t ranks = (size_t)core->config->tensor_parallel;
    struct group_status *groups = calloc(n, sizeof(*groups));
    struct worker_status *workers = calloc(n * ranks, sizeof(*workers));
    struct service_status status = {
        .uptime_s = (core->now - core->opened_ms) / 1000,
        .draining = core->draining,
        .groups = groups,
        .queued_requests = counts.queued,
        .queued_tokens = counts.queued_tokens,
        .running_requests = counts.running,
        .completed_requests = core->completed,
        .failed_requests = core->failed,
    };

    if (groups && workers) {
        describe_groups(core, groups, workers, n);
        status.n_groups = n;
    }
    ask->reply(&status, ask->context);
    free(groups);
    free(workers);
}

void core_answer_asks(struct core *core)
{
    bool clearing = false;
    int kept = 0;

    for (uint32_t i = 0; core->n_asks && i < fleet_groups(core->fleet) && !clearing; i++) {
        clearing = scheduler_group_clearing(core->scheduler, i);
    }
    for (int i = 0; i < core->n_asks; i++) {
        if (clearing && core->now < core->asks[i].until_ms) {
            core->asks[kept++] = core->asks[i];
        } else {
            snapshot(core, &core->asks[i]);
        }
    }
    core->n_asks = kept;
}

void core_answer_all(struct core *core)
{
    for (int i = 0; i < core->n_asks; i++) {
        snapshot(core, &core->asks[i]);
    }
    core->n_asks = 0;
}

void core_status(struct core *core,
                 void (*reply)(const struct service_status *status, void *context), void *context,
                 double now)
{
    struct ask ask = {reply, context, now + STATUS_WAIT_MS};

    core->now = now;
    if (core->n_asks < MAX_STATUSES && !core->closing) {
        core->asks[core->n_asks++] = ask;
        core_settle(core);
    } else {
        snapshot(core, &ask);
    }
}
