/* fleet_seats.c - who sits where; a group whose seats are taken forms. */
#include "common/log.h"
#include "coordinator/fleet_state.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void fleet_stand_up(struct fleet *fleet, struct fleet_worker *worker)
{
    if (!worker->seated) {
        list_remove(&worker->wait);
        return;
    }
    fleet_group_of(fleet, worker)->seats[worker->rank].worker = NULL;
    fleet_group_of(fleet, worker)->n_seated--;
    worker->seated = false;
}

static void sit_down(struct fleet *fleet, struct fleet_worker *worker, uint32_t index,
                     uint32_t rank)
{
    struct fleet_group *group = &fleet->groups[index];
    struct seat *seat = &group->seats[rank];

    fleet_stand_up(fleet, worker);
    assert(!seat->worker && !group->epoch);
    seat->worker = worker;
    snprintf(seat->last.host, sizeof(seat->last.host), "%s", worker->hello.host);
    snprintf(seat->last.device, sizeof(seat->last.device), "%s", worker->hello.device);
    group->n_seated++;
    worker->seated = true;
    worker->group = index;
    worker->rank = rank;
    worker->is_ready = false;
    if (index >= fleet->n_used) {
        fleet->n_used = index + 1;
    }
}

/* Whoever sits in the group already decides its cohort. */
static bool may_sit(const struct fleet *fleet, const struct fleet_worker *worker, uint32_t index,
                    uint32_t rank)
{
    const struct seat *seats = fleet->groups[index].seats;

    if (worker->leaving) {
        return false;
    }
    for (int r = 0; r < fleet->config.ranks; r++) {
        if (seats[r].worker && strcmp(seats[r].worker->hello.cohort, worker->hello.cohort) != 0) {
            return false;
        }
    }
    return worker->hello.fixed_rank < 0 || worker->hello.fixed_rank == (int64_t)rank;
}

/* Who waits and holds the weights of this rank already. */
static struct fleet_worker *find_loaded(struct fleet *fleet, uint32_t index, uint32_t rank)
{
    for (struct link *at = fleet->waiting.next; at != &fleet->waiting; at = at->next) {
        struct fleet_worker *worker = HOLDER_OF(at, struct fleet_worker, wait);
        if (worker->hello.loaded_size == (uint32_t)fleet->config.ranks &&
            worker->hello.loaded_rank == rank && may_sit(fleet, worker, index, rank)) {
            return worker;
        }
    }
    return NULL;
}

/* Someone for this seat: who waits, or sits in a later group that cannot form anyway. */
static struct fleet_worker *find_worker(struct fleet *fleet, uint32_t index, uint32_t rank)
{
    for (struct link *at = fleet->waiting.next; at != &fleet->waiting; at = at->next) {
        struct fleet_worker *worker = HOLDER_OF(at, struct fleet_worker, wait);
        if (may_sit(fleet, worker, index, rank)) {
            return worker;
        }
    }
    for (uint32_t i = fleet->n_used; i-- > index + 1;) {
        struct fleet_group *group = &fleet->groups[i];
        for (int r = 0; group->seats && !fleet_is_complete(fleet, group) && r < fleet->config.ranks;
             r++) {
            struct fleet_worker *worker = group->seats[r].worker;
            if (worker && may_sit(fleet, worker, index, rank)) {
                return worker;
            }
        }
    }
    return NULL;
}

static bool group_has_seats(struct fleet *fleet, struct fleet_group *group)
{
    if (!group->seats) {
        group->seats = calloc((size_t)fleet->config.ranks, sizeof(struct seat));
    }
    if (!group->seats) {
        log_error("fleet: no memory for another group");
    }
    return group->seats != NULL;
}

static void form(struct fleet *fleet, uint32_t index)
{
    struct fleet_group *group = &fleet->groups[index];

    group->epoch = ++fleet->last_epoch;
    group->n_ready = 0;
    group->suspected = false;
    log_info("fleet: group forms group=%u epoch=%" PRIu64 " ranks=%d", index, group->epoch,
             fleet->config.ranks);
    for (int rank = 0; rank < fleet->config.ranks; rank++) {
        struct fleet_worker *worker = group->seats[rank].worker;
        struct fleet_assignment assignment = {
            .group = index,
            .rank = (uint32_t)rank,
            .size = (uint32_t)fleet->config.ranks,
            .epoch = group->epoch,
            .dtype = fleet->config.dtype,
            .max_context = fleet->config.max_context,
            .check_selection = fleet->config.check_selection,
        };
        assert(worker); /* the group is complete */
        worker->is_ready = false;
        worker->waiting_ms = 0;
        fleet->config.sink.assign(fleet->config.sink.context, worker->peer, &assignment);
    }
}

static void seat_all(struct fleet *fleet, uint32_t index,
                     struct fleet_worker *(*find)(struct fleet *, uint32_t, uint32_t))
{
    struct fleet_group *group = &fleet->groups[index];

    for (int rank = 0; rank < fleet->config.ranks && !fleet_is_complete(fleet, group); rank++) {
        struct fleet_worker *worker =
            group->seats[rank].worker ? NULL : find(fleet, index, (uint32_t)rank);
        if (worker) {
            sit_down(fleet, worker, index, (uint32_t)rank);
        }
    }
}

/* Fills the seats of one group as far as there are workers, and forms it if that is all. */
static void fill_group(struct fleet *fleet, uint32_t index, double now)
{
    struct fleet_group *group = &fleet->groups[index];

    seat_all(fleet, index, find_loaded);
    seat_all(fleet, index, find_worker);
    if (fleet_is_complete(fleet, group) && !group->epoch && now >= group->retry_ms) {
        form(fleet, index);
    }
}

void fleet_settle(struct fleet *fleet, double now)
{
    for (uint32_t i = 0; i < fleet->config.n_groups; i++) {
        struct fleet_group *group = &fleet->groups[i];
        if (i >= fleet->n_used && list_empty(&fleet->waiting)) {
            return;
        }
        if (!group->epoch && group_has_seats(fleet, group)) {
            fill_group(fleet, i, now);
        }
    }
}
