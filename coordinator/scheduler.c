#include "coordinator/scheduler.h"

#include "coordinator/scheduler_state.h"

#include <assert.h>
#include <stdlib.h>

/* ---- admission ---- */

static void admit(struct scheduler *s, struct job *job, struct group *group, bool passes,
                  double now)
{
    list_remove(&job->link);
    list_append(&group->jobs, &job->link);
    list_append(&s->prefilling, &job->prefill);
    s->n_queued--;
    s->queued_tokens -= job->request->n_prompt;
    s->n_running++;
    group->n_jobs++;
    group_take_pages(s, group, job);
    for (uint32_t i = 0; i < job->request->n_samples; i++) {
        struct sequence *sequence = &job->sequences[i];
        sequence->slot = group->free_slots[--group->n_free_slots];
        group->slots[sequence->slot] = sequence;
    }
    job->group = group;
    job->admitted_ms = now;
    job->progress.phase = PHASE_PREFILL;
    job->progress.queue_position = 0;
    group_add_prompt(s, group, job, passes);
    group_changed(s, group);
    job_report(s, job, now);
}

/* How many behind the head of the queue are looked at after an event. */
enum { LOOK_PAST = 32 };

/* While the head of the queue waits for a long prompt to be read, short ones behind it need not. */
static void let_pass(struct scheduler *s, const struct job *head, double now)
{
    struct link *at = head->link.next;

    for (int looked = 0; at != &s->queue && looked < LOOK_PAST; looked++) {
        struct job *job = HOLDER_OF(at, struct job, link);
        struct group *group = group_to_pass(s, job, head);
        at = at->next;
        if (group) {
            admit(s, job, group, true, now);
        }
    }
}

/* After every event: the head of the queue goes where there is room. */
void scheduler_settle(struct scheduler *s, double now)
{
    while (!list_empty(&s->queue)) {
        struct job *job = HOLDER_OF(s->queue.next, struct job, link);
        struct group *group = group_for_job(s, job);
        if (group) {
            admit(s, job, group, false, now);
        } else if (s->n_ready == 0 || job_can_ever_fit(s, job)) {
            let_pass(s, job, now);
            return;
        } else { /* the group that was large enough is lost */
            struct failure failure;
            status_save(&failure, job_never_fits(s, job));
            job_end(s, job, &failure);
        }
    }
}

static status check_request(const struct scheduler *s, const struct request *request, bool *retry)
{
    const struct scheduler_config *config = &s->config;

    *retry = false;
    if (request->n_prompt == 0 || request->n_samples == 0 ||
        request->n_samples > REQUEST_MAX_SAMPLES || request->sampling.max_tokens == 0) {
        return status_fail(STATUS_INVALID, "the request asks for nothing");
    }
    if ((uint64_t)request->n_prompt + request->sampling.max_tokens > config->max_context) {
        return status_fail(STATUS_OUT_OF_RANGE,
                           "%u prompt tokens and max_tokens %u exceed the context of %u",
                           request->n_prompt, request->sampling.max_tokens, config->max_context);
    }
    *retry = true;
    if (s->n_ready == 0) {
        return status_fail(STATUS_UNAVAILABLE, "no worker group is ready");
    }
    if (s->n_queued >= config->queue_requests) {
        return status_fail(STATUS_EXHAUSTED, "the queue is full: %u requests of at most %u",
                           s->n_queued, config->queue_requests);
    }
    if (s->n_queued && s->queued_tokens + request->n_prompt > config->queue_tokens) {
        return status_fail(STATUS_EXHAUSTED,
                           "the queue is full: %llu prompt tokens and %u more, of at most %llu",
                           (unsigned long long)s->queued_tokens, request->n_prompt,
                           (unsigned long long)config->queue_tokens);
    }
    *retry = false;
    return STATUS_OK;
}

/* A level of priority is worth SCHEDULER_PRIORITY_MS of waiting, so the order never changes later,
 * and nobody waits for ever. */
static double place_of(const struct job *job)
{
    double priority = job->request->priority;
    double most = SCHEDULER_MAX_PRIORITY;

    priority = priority > most ? most : priority < -most ? -most : priority;
    return job->submitted_ms - priority * SCHEDULER_PRIORITY_MS;
}

static bool goes_before(const struct job *a, const struct job *b)
{
    if (a->place < b->place || a->place > b->place) {
        return a->place < b->place;
    }
    return a->request->handle < b->request->handle;
}

/* Behind everybody who may go first. */
static void enqueue(struct scheduler *s, struct job *job)
{
    struct link *before = s->queue.prev;

    job->place = place_of(job);
    s->n_queued++;
    s->queued_tokens += job->request->n_prompt;
    job->progress.queue_position = s->n_queued;
    while (before != &s->queue && goes_before(job, HOLDER_OF(before, struct job, link))) {
        before = before->prev;
        job->progress.queue_position--;
    }
    list_append(before->next, &job->link);
}

status scheduler_submit(struct scheduler *s, const struct request *request, void *user, double now,
                        bool *retry)
{
    struct job *job;
    status st = check_request(s, request, retry);

    if (st) {
        return st;
    }
    job = job_create(s, request, user, now, &st);
    if (!job) {
        return st;
    }
    enqueue(s, job);
    if (request->deadline_ms != INT64_MAX) {
        job->by_deadline.key = request->deadline_ms;
        job->by_deadline.tie = request->handle;
        heap_insert(&s->by_deadline, &job->by_deadline);
    }
    job_report(s, job, now);
    scheduler_settle(s, now);
    return STATUS_OK;
}

bool scheduler_cancel(struct scheduler *s, uint64_t handle, const struct failure *failure,
                      double now)
{
    struct table_node *node = table_first(&s->by_handle, table_hash(handle));

    for (; node; node = table_next(node)) {
        struct job *job = HOLDER_OF(node, struct job, by_handle);
        if (job->request->handle != handle) {
            continue;
        }
        if (failure) {
            job_end(s, job, failure);
        } else {
            job_abort(s, job, now);
        }
        scheduler_settle(s, now);
        return true;
    }
    return false;
}

/* The client has seen nothing of it, and the same prompt and seed give the same tokens. */
static bool may_run_again(const struct job *job)
{
    for (uint32_t i = 0; i < job->request->n_samples; i++) {
        if (job->sequences[i].got > 0) {
            return false;
        }
    }
    return job->reruns < SCHEDULER_MAX_RERUNS;
}

/* The jobs of a lost group. */
void jobs_lost(struct scheduler *s, struct link *jobs, const struct failure *failure, double now)
{
    struct link *next;

    for (struct link *at = jobs->next; at != jobs; at = next) {
        struct job *job = HOLDER_OF(at, struct job, link);
        next = at->next;
        if (!may_run_again(job)) {
            job_end(s, job, failure);
            continue;
        }
        job_leave_group(s, job);
        list_remove(&job->link);
        list_remove(&job->prefill);
        job_reset(s, job);
        job->reruns++;
        enqueue(s, job);
        s->config.sink.rerun(s->config.sink.context, job->user, failure);
        job_report(s, job, now);
    }
}

uint32_t jobs_fail(struct scheduler *s, struct link *jobs, const struct failure *failure)
{
    uint32_t n = 0;

    for (; !list_empty(jobs); n++) {
        struct link *first = jobs->next;
        job_end(s, HOLDER_OF(first, struct job, link), failure);
        assert(jobs->next != first); /* it is out of its list */
    }
    return n;
}

uint32_t scheduler_fail_all(struct scheduler *s, const struct failure *failure)
{
    uint32_t n = jobs_fail(s, &s->queue, failure);

    for (uint32_t i = 0; i < s->config.n_groups; i++) {
        n += jobs_fail(s, &s->groups[i].jobs, failure);
    }
    return n;
}

/* ---- time ---- */

static void fail_late(struct scheduler *s, struct job *job)
{
    static const char *const phases[] = {"", "in the queue", "in prefill", "while decoding"};
    struct failure failure;

    status_save(&failure, status_fail(STATUS_DEADLINE, "the deadline passed %s",
                                      phases[job->progress.phase]));
    job_end(s, job, &failure);
}

/* Lost groups that do not form again: nobody waits for ever. */
static void fail_without_group(struct scheduler *s, double now)
{
    struct failure failure;

    if (s->n_ready || list_empty(&s->queue) || now - s->lost_ms < s->config.reform_ms) {
        return;
    }
    status_save(&failure, status_fail(STATUS_UNAVAILABLE,
                                      "%s, and no worker group was ready again within %.1f s",
                                      s->loss.text, s->config.reform_ms / 1000));
    (void)jobs_fail(s, &s->queue, &failure);
}

static void report_all(struct scheduler *s, double now)
{
    uint32_t position = 0;

    for (struct link *at = s->queue.next; at != &s->queue; at = at->next) {
        struct job *job = HOLDER_OF(at, struct job, link);
        job->progress.queue_position = ++position;
        job_report(s, job, now);
    }
    for (struct link *at = s->prefilling.next; at != &s->prefilling; at = at->next) {
        job_report(s, HOLDER_OF(at, struct job, prefill), now);
    }
}

void scheduler_tick(struct scheduler *s, double now)
{
    struct heap_node *first;

    while ((first = heap_first(&s->by_deadline)) && (double)first->key <= now) {
        fail_late(s, HOLDER_OF(first, struct job, by_deadline));
    }
    fail_without_group(s, now);
    if (now >= s->next_report_ms) {
        s->next_report_ms = now + s->config.report_ms;
        report_all(s, now);
    }
    scheduler_settle(s, now);
}

/* ---- what is there ---- */

struct scheduler_counts scheduler_counts(const struct scheduler *s)
{
    return (struct scheduler_counts){
        .queued = s->n_queued,
        .running = s->n_running,
        .queued_tokens = s->queued_tokens,
        .ready_groups = s->n_ready,
    };
}

uint32_t scheduler_group_running(const struct scheduler *s, uint32_t index)
{
    return s->groups[index].n_jobs;
}

bool scheduler_group_clearing(const struct scheduler *s, uint32_t index)
{
    const struct group *group = &s->groups[index];

    return group->ready && group->n_jobs == 0 && group->n_flights > 0;
}

uint32_t scheduler_pages_free(const struct scheduler *s, uint32_t index, int rank)
{
    return s->groups[index].ready ? s->groups[index].free[rank] : 0;
}

double scheduler_promised(const struct scheduler *s, uint32_t index)
{
    const struct group *group = &s->groups[index];
    double most = 0;

    for (int rank = 0; group->ready && rank < s->config.ranks; rank++) {
        double promised = 1 - (double)group->free[rank] / group->pages[rank];
        most = promised > most ? promised : most;
    }
    return most;
}

static void set_defaults(struct scheduler_config *config)
{
    config->queue_requests = config->queue_requests ? config->queue_requests : 1024;
    config->queue_tokens = config->queue_tokens ? config->queue_tokens : UINT64_MAX;
    config->look_ahead = config->look_ahead ? config->look_ahead : 2;
    config->max_sequences = config->max_sequences ? config->max_sequences : PLAN_MAX_SLOTS;
    config->itl_target_ms = config->itl_target_ms > 0 ? config->itl_target_ms : 100;
    config->report_ms = config->report_ms > 0 ? config->report_ms : 400;
    config->reform_ms = config->reform_ms > 0 ? config->reform_ms : 30000;
}

static status alloc_groups(struct scheduler *s)
{
    uint32_t n = s->config.n_groups;

    s->splits = calloc((size_t)s->config.ranks, sizeof(struct split));
    s->groups = s->splits ? calloc(n, sizeof(struct group)) : NULL;
    if (!s->groups) {
        return status_fail(STATUS_EXHAUSTED, "no memory for %u groups", n);
    }
    for (uint32_t i = 0; i < n; i++) {
        s->groups[i].index = i;
        list_init(&s->groups[i].jobs);
        list_init(&s->groups[i].decode);
        list_init(&s->groups[i].dirty);
    }
    return heap_reserve(&s->open, n + 1);
}

status scheduler_open(struct scheduler **out, const struct scheduler_config *config)
{
    struct scheduler *s = calloc(1, sizeof(*s));
    status st;

    assert(config->n_groups >= 1 && config->n_groups <= SCHEDULER_MAX_GROUPS);
    assert(config->look_ahead <= SCHEDULER_MAX_LOOK_AHEAD);
    assert(config->max_sequences <= PLAN_MAX_SLOTS);
    if (!s) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the scheduler");
    }
    s->config = *config;
    set_defaults(&s->config);
    list_init(&s->queue);
    list_init(&s->prefilling);
    list_init(&s->dirty);
    st = alloc_groups(s);
    for (int rank = 0; rank < config->ranks && !st; rank++) {
        st = split_for_rank(&s->splits[rank], config->model, rank, config->ranks);
    }
    if (st) {
        scheduler_close(s);
        return st;
    }
    *out = s;
    return STATUS_OK;
}

static void free_jobs(struct link *jobs)
{
    struct link *next;

    for (struct link *at = jobs->next; at != jobs; at = next) {
        next = at->next;
        job_free(HOLDER_OF(at, struct job, link));
    }
}

void scheduler_close(struct scheduler *s)
{
    if (!s) {
        return;
    }
    free_jobs(&s->queue);
    for (uint32_t i = 0; s->groups && i < s->config.n_groups; i++) {
        struct group *group = &s->groups[i];
        free_jobs(&group->jobs);
        free(group->slots);
        free(group->free_slots);
        free(group->release);
        free(group->pages);
        free(group->free);
    }
    table_fini(&s->by_handle);
    heap_fini(&s->by_deadline);
    heap_fini(&s->open);
    free(s->groups);
    free(s->splits);
    free(s);
}
