#include "coordinator/fleet.h"

#include "common/log.h"
#include "coordinator/list.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fleet_worker {
    void *peer;
    struct fleet_hello hello;
    struct fleet_ready ready;
    struct link link; /* in fleet.workers */
    struct link wait; /* in fleet.waiting while it has no seat */
    bool seated;
    bool leaving; /* it was told to stop */
    uint32_t group, rank;
    bool is_ready; /* in this epoch */
    double heard_ms;
    double waiting_ms; /* of its last beat in this epoch */
    uint32_t waiting_for;
    uint64_t kv_bytes_used;
    uint64_t memory_peak_bytes; /* of its last beat */
};

/* A place in a group, and what became of who sat there last. */
struct seat {
    struct fleet_worker *worker;
    struct worker_status last; /* host, device and error; host "": never taken */
};

struct fleet_group {
    struct seat *seats; /* [ranks]; NULL: never used */
    uint32_t n_seated, n_ready;
    uint64_t epoch; /* 0: not formed */
    bool ready;
    bool draining;
    bool failed; /* since it was last ready or formed */
    double ready_ms;
    double retry_ms; /* not formed again before */
    double backoff_ms;
    bool suspected;
    double suspected_ms;
    struct failure suspicion;
};

struct fleet {
    struct fleet_config config;
    struct fleet_group *groups; /* [n_groups] */
    uint32_t n_used;
    struct link workers;
    struct link waiting;
    uint64_t last_epoch;
    double ticked_ms;     /* 0: never */
    uint64_t fingerprint; /* of the model, as the first worker has it */
    struct failure scratch;
};

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

static struct fleet_group *group_of(const struct fleet *fleet, const struct fleet_worker *worker)
{
    return &fleet->groups[worker->group];
}

static bool complete(const struct fleet *fleet, const struct fleet_group *group)
{
    return group->n_seated == (uint32_t)fleet->config.ranks;
}

/* ---- seats ---- */

static void stand_up(struct fleet *fleet, struct fleet_worker *worker)
{
    if (!worker->seated) {
        list_remove(&worker->wait);
        return;
    }
    group_of(fleet, worker)->seats[worker->rank].worker = NULL;
    group_of(fleet, worker)->n_seated--;
    worker->seated = false;
}

static void sit_down(struct fleet *fleet, struct fleet_worker *worker, uint32_t index,
                     uint32_t rank)
{
    struct fleet_group *group = &fleet->groups[index];
    struct seat *seat = &group->seats[rank];

    stand_up(fleet, worker);
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
        for (int r = 0; group->seats && !complete(fleet, group) && r < fleet->config.ranks; r++) {
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

    for (int rank = 0; rank < fleet->config.ranks && !complete(fleet, group); rank++) {
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
    if (complete(fleet, group) && !group->epoch && now >= group->retry_ms) {
        form(fleet, index);
    }
}

/* After every change of who is there. */
static void settle(struct fleet *fleet, double now)
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
    settle(fleet, now);
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
            stand_up(fleet, worker);
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
    stand_up(fleet, worker);
    list_remove(&worker->link);
    free(worker);
    if (seated && fleet->groups[index].epoch) {
        end_epoch(fleet, index, &failure, now);
    }
}

void fleet_gone(struct fleet *fleet, struct fleet_worker *worker, const char *cause, double now)
{
    remove_worker(fleet, worker, cause, now);
    settle(fleet, now);
}

static void end_drain(struct fleet *fleet, uint32_t index, const struct failure *cause, double now)
{
    end_epoch(fleet, index, cause, now);
    fleet->groups[index].failed = false; /* nobody is missed */
    settle(fleet, now);
}

void fleet_drain(struct fleet *fleet, struct fleet_worker *worker, double now)
{
    const struct fleet_sink *sink = &fleet->config.sink;
    struct failure cause = *describe(fleet, worker, "was told to stop");
    struct fleet_group *group = worker->seated ? group_of(fleet, worker) : NULL;

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
        stand_up(fleet, worker);
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
    return worker->seated && epoch != 0 && group_of(fleet, worker)->epoch == epoch;
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
    struct fleet_group *group = group_of(fleet, worker);

    for (int rank = 0; rank < fleet->config.ranks; rank++) {
        fleet->config.sink.store(fleet->config.sink.context, group->seats[rank].worker->peer,
                                 entry);
    }
}

void fleet_worker_ready(struct fleet *fleet, struct fleet_worker *worker,
                        const struct fleet_ready *ready, double now)
{
    struct fleet_group *group = group_of(fleet, worker);
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
    struct fleet_group *group = group_of(fleet, worker);
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
    settle(fleet, now);
}

/* ---- what is there ---- */

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
