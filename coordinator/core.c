#include "common/log.h"
#include "coordinator/core_state.h"
#include "coordinator/meters.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void core_break_group(struct core *core, uint32_t group, status st)
{
    if (!core->broken) {
        core->broken = true;
        core->broken_group = group;
        status_save(&core->broken_failure, st);
        core->broken_failure.code = STATUS_UNAVAILABLE;
    }
}

/* ---- what the scheduler decides ---- */

static void on_progress(void *context, void *user, const struct request_progress *progress)
{
    struct live *live = user;

    (void)context;
    live->request->sink->progress(live->request, progress);
}

static bool on_token(void *context, void *user, uint32_t sample, const struct result_token *token,
                     bool stop)
{
    struct live *live = user;

    (void)context;
    return live->request->sink->token(live->request, sample, token, stop);
}

static void on_sample_done(void *context, void *user, const struct request_done *done)
{
    struct live *live = user;
    struct request_done whole = *done;
    struct record *record = live->records[done->sample];

    (void)context;
    if (record && record_finish(record, &whole)) {
        const struct log_field fields[] = {
            LOG_FIELD_TEXT("id", live->request->request_id),
            LOG_FIELD_TEXT("trace_id", live->request->trace_id),
            LOG_FIELD_INTEGER("handle", live->request->handle),
            LOG_FIELD_TEXT("reason", status_text()),
        };
        log_event(LOG_ERROR, "core: trace lost", fields, sizeof(fields) / sizeof(fields[0]));
    }
    live->request->sink->done(live->request, &whole);
    record_destroy(record);
    live->records[done->sample] = NULL;
}

static void live_free(struct live *live)
{
    for (uint32_t i = 0; i < live->request->n_samples; i++) {
        record_destroy(live->records[i]);
    }
    free(live);
}

static void give_back(struct core *core, struct request *request, const struct failure *failure,
                      bool retry)
{
    core->sink.forget(core->sink.context, request);
    request->sink->ended(request, failure, retry ? SERVICE_RETRY_AFTER_MS : 0);
}

static void on_ended(void *context, void *user, const struct failure *failure)
{
    struct core *core = context;
    struct live *live = user;
    struct request *request = live->request;

    core->completed += !failure;
    core->failed += failure && failure->code != STATUS_CANCELLED;
    live_free(live);
    give_back(core, request, failure,
              failure && failure->code == STATUS_UNAVAILABLE && !core->draining);
}

static void on_rerun(void *context, void *user, const struct failure *failure)
{
    struct core *core = context;
    struct live *live = user;

    for (uint32_t i = 0; i < live->request->n_samples; i++) {
        record_destroy(live->records[i]);
        live->records[i] = NULL;
    }
    const struct log_field fields[] = {
        LOG_FIELD_TEXT("id", live->request->request_id),
        LOG_FIELD_TEXT("trace_id", live->request->trace_id),
        LOG_FIELD_INTEGER("handle", live->request->handle),
        LOG_FIELD_TEXT("cause", failure->text),
    };
    log_event(LOG_WARN, "core: request runs again", fields, sizeof(fields) / sizeof(fields[0]));
    meters_rerun(core->config->meters);
}

/* ---- what the fleet decides ---- */

static void on_assign(void *context, void *peer, const struct fleet_assignment *assignment)
{
    (void)context;
    dispatch_assign(peer, assignment);
}

static void on_store(void *context, void *peer, const struct fleet_entry *entry)
{
    (void)context;
    dispatch_store(peer, entry);
}

static void on_leave(void *context, void *peer, uint64_t epoch)
{
    (void)context;
    dispatch_leave(peer, epoch);
}

static void on_dismiss(void *context, void *peer, uint32_t process, const struct failure *failure)
{
    struct core *core = context;

    core->sink.silent(core->sink.context, process);
    dispatch_set_worker(peer, NULL);
    dispatch_end(peer, failure);
}

static status group_ready(struct core *core, uint32_t group, uint64_t epoch,
                          const struct fleet_ready *const *ranks)
{
    uint32_t pages[FLEET_MAX_RANKS];
    struct group_capacity capacity = {
        .epoch = epoch, .page_rows = ranks[0]->page_rows, .pages = pages};
    status st = STATUS_OK;

    for (int rank = 0; rank < core->config->tensor_parallel; rank++) {
        pages[rank] = ranks[rank]->pages_total;
        if (pages[rank] == 0 || ranks[rank]->page_rows != capacity.page_rows) {
            return status_fail(STATUS_INTERNAL, "rank %d has %u KV pages of %u rows, rank 0 of %u",
                               rank, pages[rank], ranks[rank]->page_rows, capacity.page_rows);
        }
        capacity.page_bytes = ranks[rank]->kv_bytes_total / pages[rank];
    }
    if (!core->gathers[group]) {
        st = gather_create(&core->gathers[group], core->config->tensor_parallel);
    }
    if (!st) {
        gather_reset(core->gathers[group]);
        st = scheduler_group_ready(core->scheduler, group, &capacity, core->now);
        meters_capacity(core->config->meters, group, pages[0], capacity.page_rows);
    }
    return st;
}

static void on_group_ready(void *context, uint32_t group, uint64_t epoch,
                           const struct fleet_ready *const *ranks)
{
    struct core *core = context;
    status st = group_ready(core, group, epoch, ranks);

    if (st) {
        core_break_group(core, group, st);
    }
}

static void on_group_drain(void *context, uint32_t group, const struct failure *cause)
{
    struct core *core = context;

    scheduler_group_drain(core->scheduler, group, cause, core->now);
}

static void on_group_lost(void *context, uint32_t group, const struct failure *failure)
{
    struct core *core = context;

    scheduler_group_lost(core->scheduler, group, failure, core->now);
}

/* ---- after every event ---- */

static void send_plans(struct core *core)
{
    struct plan plan;
    uint32_t group;

    while (scheduler_next_plan(core->scheduler, &group, &plan)) {
        for (int rank = 0; rank < core->config->tensor_parallel; rank++) {
            core->peers[rank] = fleet_peer(core->fleet, group, rank);
        }
        status st = dispatch_plan(core->peers, (size_t)core->config->tensor_parallel, &plan);
        if (st) {
            core_break_group(core, group, st);
        }
    }
}

static void tell_ready(struct core *core)
{
    bool ready = scheduler_counts(core->scheduler).ready_groups > 0 && !core->draining;

    if (ready != core->ready) {
        core->ready = ready;
        core->was_ready = core->was_ready || ready;
        core->sink.ready(core->sink.context, ready);
    }
}

static void answer_drains(struct core *core, uint32_t unfinished)
{
    for (int i = 0; i < core->n_drains; i++) {
        core->drains[i].reply(unfinished, core->drains[i].context);
    }
    core->n_drains = 0;
}

static void check_drain(struct core *core)
{
    struct scheduler_counts counts = scheduler_counts(core->scheduler);
    struct failure failure = {.code = STATUS_UNAVAILABLE, .text = "the server is draining"};

    if (!core->draining || core->n_drains == 0) {
        return;
    }
    if (counts.queued + counts.running == 0) {
        answer_drains(core, 0);
    } else if (core->now >= core->drain_deadline_ms) {
        answer_drains(core, scheduler_fail_all(core->scheduler, &failure));
    }
}

static void look_at_queue(struct core *core)
{
    struct scheduler_counts counts = scheduler_counts(core->scheduler);

    if (counts.running == 0) {
        core->progress_ms = core->now;
    }
    meters_queue(core->config->meters, &(struct meters_queue){
                                           .queued = counts.queued,
                                           .running = counts.running,
                                           .ready_groups = counts.ready_groups,
                                           .queued_tokens = counts.queued_tokens,
                                           .draining = core->draining,
                                       });
}

/* Groups whose workers were told to stop, and that have nothing left to do. */
static void end_drained(struct core *core)
{
    for (uint32_t i = 0; i < fleet_groups(core->fleet); i++) {
        if (fleet_is_draining(core->fleet, i) && scheduler_group_running(core->scheduler, i) == 0) {
            fleet_drained(core->fleet, i, core->now);
        }
    }
}

void core_settle(struct core *core)
{
    end_drained(core);
    send_plans(core);
    while (core->broken) {
        core->broken = false;
        fleet_fail_group(core->fleet, core->broken_group, &core->broken_failure, core->now);
        send_plans(core);
    }
    check_drain(core);
    look_at_queue(core);
    tell_ready(core);
    core_answer_asks(core);
}

/* ---- requests ---- */

void core_submit_take(struct core *core, struct request *request, double now)
{
    struct live *live =
        calloc(1, sizeof(*live) + (size_t)request->n_samples * sizeof(struct record *));
    struct failure failure = {.code = STATUS_UNAVAILABLE, .text = "the server is draining"};
    bool retry = false;
    bool taken = false;

    core->now = now;
    if (!live) {
        status_save(&failure, status_fail(STATUS_EXHAUSTED, "no memory for one more request"));
    } else if (!core->draining) {
        live->request = request;
        status st = scheduler_submit(core->scheduler, request, live, now, &retry);
        taken = st == STATUS_OK;
        status_save(&failure, st);
    }
    if (!taken) {
        free(live);
        give_back(core, request, &failure, retry);
    }
    core_settle(core);
}

void core_cancel(struct core *core, uint64_t handle, bool abort, double now)
{
    struct failure failure = {.code = STATUS_CANCELLED, .text = "the request was cancelled"};

    core->now = now;
    if (!scheduler_cancel(core->scheduler, handle, abort ? NULL : &failure, now)) {
        log_debug("core: nothing to cancel handle=%" PRIu64, handle);
    }
    core_settle(core);
}

void core_fail_all(struct core *core, const struct failure *failure, double now)
{
    core->now = now;
    core->draining = true;
    core->closing = true;
    answer_drains(core, scheduler_fail_all(core->scheduler, failure));
    core_settle(core);
    core_answer_all(core);
}

void core_drain(struct core *core, double deadline_ms,
                void (*reply)(uint32_t unfinished, void *context), void *context, double now)
{
    core->now = now;
    if (!core->draining || deadline_ms < core->drain_deadline_ms) {
        core->drain_deadline_ms = deadline_ms;
    }
    core->draining = true;
    if (core->n_drains == MAX_DRAINS) {
        struct scheduler_counts counts = scheduler_counts(core->scheduler);
        reply(counts.queued + counts.running, context);
    } else {
        core->drains[core->n_drains++] = (struct drain){reply, context};
    }
    core_settle(core);
}

/* ---- workers ---- */

static status take_hello(struct core *core, struct dispatch_peer *peer,
                         const struct fleet_hello *hello)
{
    struct fleet_worker *worker;
    status st;

    if (dispatch_worker(peer)) {
        return status_fail(STATUS_INVALID, "a worker says hello once");
    }
    st = fleet_join(core->fleet, &worker, peer, hello, core->now);
    if (!st) {
        dispatch_set_worker(peer, worker);
    }
    return st;
}

static void take_epoch_message(struct core *core, struct fleet_worker *worker,
                               struct worker_message *message)
{
    switch (message->kind) {
    case MESSAGE_READY:
        fleet_worker_ready(core->fleet, worker, &message->ready, core->now);
        break;
    case MESSAGE_STORE:
        fleet_store(core->fleet, worker, &message->entry);
        break;
    case MESSAGE_RESULT:
        core_take_result(core, worker, &message->result);
        break;
    case MESSAGE_FAULT:
        snprintf(core->last_fault, sizeof(core->last_fault), "%s", message->fault.text);
        fleet_fault(core->fleet, worker, &message->fault, core->now);
        break;
    case MESSAGE_HELLO:
    case MESSAGE_BEAT:
    case MESSAGE_BYE:
    case MESSAGE_DRAIN:
        break;
    }
}

static status take_message(struct core *core, struct dispatch_peer *peer,
                           struct worker_message *message)
{
    struct fleet_worker *worker = dispatch_worker(peer);

    if (message->kind == MESSAGE_HELLO) {
        return take_hello(core, peer, &message->hello);
    }
    if (!worker) {
        return STATUS_OK; /* refused or dismissed, and its stream is about to end */
    }
    if (message->kind == MESSAGE_BYE) {
        dispatch_set_worker(peer, NULL);
        fleet_gone(core->fleet, worker, "was told to stop", core->now);
    } else if (message->kind == MESSAGE_DRAIN) {
        fleet_drain(core->fleet, worker, core->now);
    } else if (message->kind == MESSAGE_BEAT) {
        fleet_beat(core->fleet, worker, &message->beat, core->now);
    } else if (fleet_heard(core->fleet, worker, message->epoch, core->now)) {
        take_epoch_message(core, worker, message);
    }
    return STATUS_OK;
}

void core_message_take(struct core *core, struct dispatch_peer *peer, uint8_t *data, size_t bytes,
                       double now)
{
    struct worker_message message;
    status st = worker_message_open(&message, data, bytes);

    core->now = now;
    if (!st) {
        st = take_message(core, peer, &message);
    }
    if (st) {
        struct fleet_worker *worker = dispatch_worker(peer);
        struct failure failure;
        status_save(&failure, st);
        log_warn("core: worker refused peer=%s reason=\"%s\"", dispatch_address(peer),
                 failure.text);
        dispatch_set_worker(peer, NULL);
        if (worker) {
            fleet_gone(core->fleet, worker, failure.text, now);
        }
        dispatch_end(peer, &failure);
    }
    worker_message_close(&message);
    free(data);
    core_settle(core);
}

void core_gone_take(struct core *core, struct dispatch_peer *peer, const char *cause, double now)
{
    struct fleet_worker *worker = dispatch_worker(peer);

    core->now = now;
    if (worker) {
        fleet_gone(core->fleet, worker, cause, now);
    }
    dispatch_free_peer(peer);
    core_settle(core);
}

void core_tick(struct core *core, double now)
{
    core->now = now;
    fleet_tick(core->fleet, now);
    scheduler_tick(core->scheduler, now);
    if (core->config->meters && now >= core->next_count_ms) {
        core->next_count_ms = now + COUNT_MS;
        core_count_groups(core);
    }
    core_settle(core);
}

/* ---- what is there ---- */

uint64_t core_steps(const struct core *core)
{
    return core->steps;
}

double core_progress_ms(const struct core *core)
{
    return core->progress_ms;
}

bool core_was_ready(const struct core *core)
{
    return core->was_ready;
}

const char *core_last_fault(const struct core *core)
{
    return core->last_fault;
}

static status open_scheduler(struct core *core)
{
    const struct service_config *config = core->config;
    struct scheduler_config scheduler = {
        .model = config->model,
        .ranks = config->tensor_parallel,
        .n_groups = SERVICE_MAX_GROUPS,
        .max_context = config->max_context,
        .queue_requests = config->queue_requests,
        .queue_tokens = config->queue_tokens,
        .itl_target_ms = config->itl_target_ms,
        .report_ms = SERVICE_PROGRESS_MS,
        .reform_ms = config->reform_timeout_ms,
        .sink = {on_progress, on_token, on_sample_done, on_ended, on_rerun, core},
    };

    return scheduler_open(&core->scheduler, &scheduler);
}

static status open_fleet(struct core *core)
{
    const struct service_config *config = core->config;
    struct fleet_config fleet = {
        .build = WINNOW_VERSION,
        .ranks = config->tensor_parallel,
        .n_groups = SERVICE_MAX_GROUPS,
        .dtype = config->dtype,
        .max_context = config->max_context,
        .check_selection = config->check_selection,
        .heartbeat_timeout_ms = config->heartbeat_timeout_ms ? config->heartbeat_timeout_ms : 5000,
        .sink = {on_assign, on_store, on_leave, on_dismiss, on_group_ready, on_group_drain,
                 on_group_lost, core},
    };

    return fleet_open(&core->fleet, &fleet);
}

status core_open(struct core **out, const struct service_config *config,
                 const struct core_sink *sink, double now)
{
    struct core *core = calloc(1, sizeof(*core));
    size_t ranks = (size_t)config->tensor_parallel;
    status st = STATUS_OK;

    if (!core) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the service");
    }
    core->config = config;
    core->sink = *sink;
    core->opened_ms = now;
    core->progress_ms = now;
    core->splits = calloc(ranks + 1, sizeof(struct split));
    core->peers = calloc(ranks + 1, sizeof(struct dispatch_peer *));
    if (!core->splits || !core->peers) {
        st = status_fail(STATUS_EXHAUSTED, "no memory for %zu ranks", ranks);
    }
    for (int rank = 0; rank < config->tensor_parallel && !st; rank++) {
        st = split_for_rank(&core->splits[rank], config->model, rank, config->tensor_parallel);
    }
    if (!st) {
        st = open_scheduler(core);
    }
    if (!st) {
        st = open_fleet(core);
    }
    if (st) {
        core_close(core);
        return st;
    }
    *out = core;
    return STATUS_OK;
}

void core_close(struct core *core)
{
    if (!core) {
        return;
    }
    for (int i = 0; i < SERVICE_MAX_GROUPS; i++) {
        gather_destroy(core->gathers[i]);
    }
    scheduler_close(core->scheduler);
    fleet_close(core->fleet);
    free(core->splits);
    free(core->peers);
    free(core);
}
