#include "coordinator/fleet.h"

#include "common/log.h"
#include "coordinator/fleet_state.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- joining and leaving ---- */

static status check_hello(const struct fleet *fleet, const struct fleet_hello *hello)
{
    if (strcmp(hello->build, fleet->config.build) != 0) {
        return status_fail(STATUS_INVALID, "worker build %s differs from the coordinator's %s",
                           hello->build, fleet->config.build);
    }
    if (hello->fixed_rank >= fleet->config.ranks) {
        return status_fail(STATUS_INVALID, "fixed rank %lld: groups have %d ranks",
                           (long long)hello->fixed_rank, fleet->config.ranks);
    }
    if (!list_empty(&fleet->workers) && hello->model_fingerprint != fleet->fingerprint) {
        return status_fail(STATUS_INVALID,
                           "the worker's model files (%016" PRIx64
                           ") differ from those of the others (%016" PRIx64
                           "), or its --weights or --kv do",
                           hello->model_fingerprint, fleet->fingerprint);
    }
    return STATUS_OK;
}

status fleet_join(struct fleet *fleet, struct fleet_worker **out, void *peer,
                  const struct fleet_hello *hello, double now)
{
    struct fleet_worker *worker;
    status st = check_hello(fleet, hello);

    if (st) {
        return st;
    }
    worker = calloc(1, sizeof(*worker));
    if (!worker) {
        return status_fail(STATUS_EXHAUSTED, "no memory for another worker");
    }
    fleet->fingerprint = hello->model_fingerprint;
    worker->peer = peer;
    worker->hello = *hello;
    worker->heard_ms = now;
    list_append(&fleet->workers, &worker->link);
    list_append(&fleet->waiting, &worker->wait);
    *out = worker;
    log_info("fleet: worker joined host=%s process=%u device=\"%s\"", hello->host, hello->process,
             hello->device);
    fleet_settle(fleet, now);
    return STATUS_OK;
}

/* "rank 1 of group 0 (host, process 7) CAUSE" */
static const struct failure *describe(struct fleet *fleet, const struct fleet_worker *worker,
                                      const char *cause)
{
    status st = worker->seated
                    ? status_fail(STATUS_UNAVAILABLE, "rank %u of group %u (%s, process %u) %s",
                                  worker->rank, worker->group, worker->hello.host,
                                  worker->hello.process, cause)
                    : status_fail(STATUS_UNAVAILABLE, "a worker without a rank (%s, process %u) %s",
                                  worker->hello.host, worker->hello.process, cause);

    status_save(&fleet->scratch, st);
    return &fleet->scratch;
}

/* Who was told to stop gives its seat up, and stops when it is told to leave. */
static void let_go(struct fleet *fleet, uint32_t index)
{
    for (int rank = 0; rank < fleet->config.ranks; rank++) {
        struct fleet_worker *worker = fleet->groups[index].seats[rank].worker;
        if (worker && worker->leaving) {
            fleet_stand_up(fleet, worker);
        }
    }
}

/* The epoch is over: whoever is still there leaves it. */
static void end_epoch(struct fleet *fleet, uint32_t index, const struct failure *failure,
                      double now)
{
    struct fleet_group *group = &fleet->groups[index];
    const struct fleet_sink *sink = &fleet->config.sink;
    uint64_t epoch = group->epoch;
    bool was_ready = group->ready;

    if (was_ready && now - group->ready_ms >= FLEET_SETTLED_MS) {
        group->backoff_ms = 0;
    }
    group->epoch = 0;
    group->ready = false;
    group->draining = false;
    group->failed = true;
    group->suspected = false;
    for (int rank = 0; rank < fleet->config.ranks; rank++) {
        struct fleet_worker *worker = group->seats[rank].worker;
        if (worker) {
            worker->is_ready = false;
            worker->kv_bytes_used = 0;
            sink->leave(sink->context, worker->peer, epoch);
        }
    }
    let_go(fleet, index);
    log_warn("fleet: group lost group=%u epoch=%" PRIu64 " cause=\"%s\"", index, epoch,
             failure->text);
    if (was_ready) {
        sink->lost(sink->context, index, failure);
    }
}

/* Nobody died, so nothing but time separates this epoch from the next. */
static void back_off(struct fleet_group *group, double now)
{
    group->backoff_ms = group->backoff_ms > 0 ? 2 * group->backoff_ms : FLEET_MIN_BACKOFF_MS;
    if (group->backoff_ms > FLEET_MAX_BACKOFF_MS) {
        group->backoff_ms = FLEET_MAX_BACKOFF_MS;
    }
    group->retry_ms = now + group->backoff_ms;
}

static void remove_worker(struct fleet *fleet, struct fleet_worker *worker, const char *cause,
                          double now)
{
    struct failure failure = *describe(fleet, worker, cause);
    bool seated = worker->seated;
    uint32_t index = worker->group;

    if (seated) {
        struct seat *seat = &fleet->groups[index].seats[worker->rank];
        snprintf(seat->last.last_error, sizeof(seat->last.last_error), "%s", failure.text);
    }
    fleet_stand_up(fleet, worker);
    list_remove(&worker->link);
    free(worker);
    if (seated && fleet->groups[index].epoch) {
        end_epoch(fleet, index, &failure, now);
    }
}

void fleet_gone(struct fleet *fleet, struct fleet_worker *worker, const char *cause, double now)
{
    remove_worker(fleet, worker, cause, now);
    fleet_settle(fleet, now);
}

static void end_drain(struct fleet *fleet, uint32_t index, const struct failure *cause, double now)
{
    end_epoch(fleet, index, cause, now);
    fleet->groups[index].failed = false; /* nobody is missed */
    fleet_settle(fleet, now);
}

void fleet_drain(struct fleet *fleet, struct fleet_worker *worker, double now)
{
    const struct fleet_sink *sink = &fleet->config.sink;
    struct failure cause = *describe(fleet, worker, "was told to stop");
    struct fleet_group *group = worker->seated ? fleet_group_of(fleet, worker) : NULL;

    if (worker->leaving) {
        return;
    }
    worker->leaving = true;
    log_info("fleet: worker drains host=%s process=%u", worker->hello.host, worker->hello.process);
    if (group && group->ready) {
        if (!group->draining) {
            group->draining = true;
            sink->drain(sink->context, worker->group, &cause);
        }
    } else if (group && group->epoch) {
        end_drain(fleet, worker->group, &cause, now);
    } else {
        fleet_stand_up(fleet, worker);
        sink->leave(sink->context, worker->peer, 0);
    }
}

bool fleet_is_draining(const struct fleet *fleet, uint32_t index)
{
    return fleet->groups[index].draining;
}

void fleet_drained(struct fleet *fleet, uint32_t index, double now)
{
    const struct fleet_group *group = &fleet->groups[index];
    struct failure cause = {.code = STATUS_UNAVAILABLE};

    assert(group->draining);
    for (int rank = 0; rank < fleet->config.ranks; rank++) {
        if (group->seats[rank].worker->leaving) {
            cause = *describe(fleet, group->seats[rank].worker, "was told to stop");
        }
    }
    end_drain(fleet, index, &cause, now);
}

/* ---- what workers say ---- */

bool fleet_heard(struct fleet *fleet, struct fleet_worker *worker, uint64_t epoch, double now)
{
    worker->heard_ms = now;
    return worker->seated && epoch != 0 && fleet_group_of(fleet, worker)->epoch == epoch;
}

void fleet_beat(struct fleet *fleet, struct fleet_worker *worker, const struct fleet_beat *beat,
                double now)
{
    bool current = fleet_heard(fleet, worker, beat->epoch, now);

    worker->waiting_ms = current ? beat->waiting_ms : 0;
    worker->waiting_for = beat->waiting_for;
    worker->memory_peak_bytes = beat->memory_peak_bytes;
}

/* Back to its sender, too: a rank finds all keys in one place. */
void fleet_store(struct fleet *fleet, struct fleet_worker *worker, const struct fleet_entry *entry)
{
    struct fleet_group *group = fleet_group_of(fleet, worker);

    for (int rank = 0; rank < fleet->config.ranks; rank++) {
        fleet->config.sink.store(fleet->config.sink.context, group->seats[rank].worker->peer,
                                 entry);
    }
}

void fleet_worker_ready(struct fleet *fleet, struct fleet_worker *worker,
                        const struct fleet_ready *ready, double now)
{
    struct fleet_group *group = fleet_group_of(fleet, worker);
    const struct fleet_sink *sink = &fleet->config.sink;
    const struct fleet_ready *ranks[FLEET_MAX_RANKS];

    if (worker->is_ready) {
        return;
    }
    worker->is_ready = true;
    worker->ready = *ready;
    snprintf(worker->hello.device, sizeof(worker->hello.device), "%s", ready->device);
    group->n_ready++;
    if (group->n_ready < (uint32_t)fleet->config.ranks) {
        return;
    }
    for (int rank = 0; rank < fleet->config.ranks; rank++) {
        ranks[rank] = &group->seats[rank].worker->ready;
        group->seats[rank].last.last_error[0] = '\0';
    }
    group->ready = true;
    group->failed = false;
    group->ready_ms = now;
    log_info("fleet: group ready group=%u epoch=%" PRIu64, worker->group, group->epoch);
    sink->ready(sink->context, worker->group, group->epoch, ranks);
}

void fleet_fail_group(struct fleet *fleet, uint32_t index, const struct failure *failure,
                      double now)
{
    struct fleet_group *group = &fleet->groups[index];

    assert(index < fleet->config.n_groups);
    if (!group->epoch) {
        return;
    }
    end_epoch(fleet, index, failure, now);
    back_off(group, now);
}

void fleet_fault(struct fleet *fleet, struct fleet_worker *worker, const struct failure *fault,
                 double now)
{
    struct fleet_group *group = fleet_group_of(fleet, worker);
    struct seat *seat = &group->seats[worker->rank];
    char cause[sizeof(fault->text) + 16];

    snprintf(cause, sizeof(cause), "reports: %s", fault->text);
    snprintf(seat->last.last_error, sizeof(seat->last.last_error), "%s", fault->text);
    if (fault->code != STATUS_UNAVAILABLE) {
        fleet_fail_group(fleet, worker->group, describe(fleet, worker, cause), now);
    } else if (!group->suspected) {
        group->suspected = true;
        group->suspected_ms = now;
        group->suspicion = *describe(fleet, worker, cause);
    }
}

void fleet_kv_used(struct fleet *fleet, struct fleet_worker *worker, uint64_t bytes)
{
    (void)fleet;
    worker->kv_bytes_used = bytes;
}

/* ---- time ---- */

static void drop_silent(struct fleet *fleet, double now)
{
    struct link *next;

    for (struct link *at = fleet->workers.next; at != &fleet->workers; at = next) {
        struct fleet_worker *worker = HOLDER_OF(at, struct fleet_worker, link);
        void *peer = worker->peer;
        uint32_t process = worker->hello.process;
        struct failure failure;
        char cause[64];

        next = at->next;
        if (now - worker->heard_ms < fleet->config.heartbeat_timeout_ms) {
            continue;
        }
        snprintf(cause, sizeof(cause), "sent nothing for %.1f s", (now - worker->heard_ms) / 1000);
        failure = *describe(fleet, worker, cause);
        remove_worker(fleet, worker, cause, now);
        fleet->config.sink.dismiss(fleet->config.sink.context, peer, process, &failure);
    }
}

/* The rank that most ranks wait for; -1: some rank does not wait long enough. */
static int awaited_rank(const struct fleet *fleet, const struct fleet_group *group)
{
    uint32_t n_waiting[FLEET_MAX_RANKS] = {0};
    int best = 0;

    for (int rank = 0; rank < fleet->config.ranks; rank++) {
        const struct fleet_worker *worker = group->seats[rank].worker;
        if (!(worker->waiting_ms >= fleet->config.heartbeat_timeout_ms) || /* NaN does not wait */
            worker->waiting_for >= (uint32_t)fleet->config.ranks) {
            return -1;
        }
        n_waiting[worker->waiting_for]++;
    }
    for (int rank = 1; rank < fleet->config.ranks; rank++) {
        best = n_waiting[rank] > n_waiting[best] ? rank : best;
    }
    return best;
}

/* All ranks live and none goes on: their messages to each other are lost. */
static void fail_stalled(struct fleet *fleet, uint32_t index, double now)
{
    struct fleet_group *group = &fleet->groups[index];
    int awaited = group->ready ? awaited_rank(fleet, group) : -1;
    const struct fleet_worker *worker = NULL;
    char cause[128];

    if (awaited < 0) {
        return;
    }
    for (int rank = 0; !worker; rank++) {
        const struct fleet_worker *other = group->seats[rank].worker;
        worker = other->waiting_for == (uint32_t)awaited ? other : NULL;
    }
    snprintf(cause, sizeof(cause), "waits for rank %d since %.1f s, and no rank goes on: %s",
             awaited, worker->waiting_ms / 1000, "the network between the ranks is cut");
    struct failure failure = *describe(fleet, worker, cause);
    fleet_fail_group(fleet, index, &failure, now);
}

/* What workers said while this program was stopped has yet to be read. */
static void forgive_absence(struct fleet *fleet, double now)
{
    double absent = fleet->ticked_ms > 0 ? now - fleet->ticked_ms : 0;

    fleet->ticked_ms = now;
    if (absent < FLEET_ABSENT_MS) {
        return;
    }
    log_warn("fleet: this program stood still for %.1f s", absent / 1000);
    for (struct link *at = fleet->workers.next; at != &fleet->workers; at = at->next) {
        HOLDER_OF(at, struct fleet_worker, link)->heard_ms += absent;
    }
}

void fleet_tick(struct fleet *fleet, double now)
{
    forgive_absence(fleet, now);
    drop_silent(fleet, now);
    for (uint32_t i = 0; i < fleet->n_used; i++) {
        struct fleet_group *group = &fleet->groups[i];
        if (group->suspected && now - group->suspected_ms >= FLEET_BLAME_MS) {
            struct failure failure = group->suspicion;
            fleet_fail_group(fleet, i, &failure, now);
        }
        fail_stalled(fleet, i, now);
    }
    fleet_settle(fleet, now);
}

status fleet_open(struct fleet **out, const struct fleet_config *config)
{
    struct fleet *fleet = calloc(1, sizeof(*fleet));

    assert(config->ranks >= 1 && config->ranks <= FLEET_MAX_RANKS && config->n_groups >= 1);
    if (fleet) {
        fleet->groups = calloc(config->n_groups, sizeof(struct fleet_group));
    }
    if (!fleet || !fleet->groups) {
        free(fleet);
        return status_fail(STATUS_EXHAUSTED, "no memory for %u groups", config->n_groups);
    }
    fleet->config = *config;
    list_init(&fleet->workers);
    list_init(&fleet->waiting);
    *out = fleet;
    return STATUS_OK;
}

void fleet_close(struct fleet *fleet)
{
    struct link *next;

    if (!fleet) {
        return;
    }
    for (struct link *at = fleet->workers.next; at != &fleet->workers; at = next) {
        next = at->next;
        free(HOLDER_OF(at, struct fleet_worker, link));
    }
    for (uint32_t i = 0; i < fleet->config.n_groups; i++) {
        free(fleet->groups[i].seats);
    }
    free(fleet->groups);
    free(fleet);
}
