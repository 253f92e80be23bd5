/* fleet_status.c - what is there: workers, seats and the states of groups. */
#include "coordinator/fleet_state.h"

#include <stdio.h>

const char *worker_state_name(enum worker_state state)
{
    static const char *const names[] = {"joining", "loading", "ready", "lost"};

    return names[state];
}

const char *group_state_name(enum group_state state)
{
    static const char *const names[] = {"forming", "ready", "failed", "draining"};

    return names[state];
}

uint32_t fleet_worker_group(const struct fleet_worker *worker)
{
    return worker->group;
}

uint32_t fleet_worker_rank(const struct fleet_worker *worker)
{
    return worker->rank;
}

uint32_t fleet_worker_process(const struct fleet_worker *worker)
{
    return worker->hello.process;
}

void *fleet_peer(const struct fleet *fleet, uint32_t index, int rank)
{
    const struct fleet_group *group = &fleet->groups[index];

    return group->seats && group->seats[rank].worker ? group->seats[rank].worker->peer : NULL;
}

uint32_t fleet_groups(const struct fleet *fleet)
{
    return fleet->n_used ? fleet->n_used : 1;
}

static enum worker_state worker_state(const struct fleet_group *group,
                                      const struct fleet_worker *worker)
{
    if (worker->is_ready) {
        return WORKER_STATE_READY;
    }
    return group->epoch ? WORKER_STATE_LOADING : WORKER_STATE_JOINING;
}

static void seat_status(const struct fleet_group *group, uint32_t rank, struct worker_status *out,
                        double now)
{
    const struct seat *seat = &group->seats[rank];
    const struct fleet_worker *worker = seat->worker;

    *out = seat->last;
    out->rank = rank;
    out->state = WORKER_STATE_LOST;
    if (worker) {
        out->state = worker_state(group, worker);
        out->heartbeat_age_s = (now - worker->heard_ms) / 1000;
        out->kv_bytes_used = worker->kv_bytes_used;
        out->memory_peak_bytes = worker->memory_peak_bytes;
        out->kv_bytes_total = worker->is_ready ? worker->ready.kv_bytes_total : 0;
        snprintf(out->device, sizeof(out->device), "%s", worker->hello.device);
    }
}

void fleet_group_status(const struct fleet *fleet, uint32_t index, struct group_status *out,
                        struct worker_status *workers, double now)
{
    const struct fleet_group *group = &fleet->groups[index];

    *out = (struct group_status){.group = index, .epoch = group->epoch, .workers = workers};
    out->state = GROUP_FORMING;
    if (group->ready) {
        out->state = group->draining ? GROUP_DRAINING : GROUP_READY;
    } else if (group->failed && !group->epoch) {
        out->state = GROUP_FAILED;
    }
    for (int rank = 0; group->seats && rank < fleet->config.ranks; rank++) {
        if (group->seats[rank].last.host[0] || group->seats[rank].worker) {
            seat_status(group, (uint32_t)rank, &workers[out->n_workers++], now);
        }
    }
}
