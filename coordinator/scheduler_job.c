#include "coordinator/scheduler_state.h"

#include <stdlib.h>

/* What the samples can share of `total` pages in `tables` tables, of which each sample changes the
 * last one and what it appends; where rows leave, it may change any. */
static struct page_need divide_pages(const struct scheduler *s, const struct request *request,
                                     uint64_t total, uint64_t tables)
{
    uint64_t appended = request->sampling.max_tokens - 1;
    uint64_t own =
        appended ? tables * ((s->page_rows - 1 + appended + s->page_rows - 1) / s->page_rows) : 0;

    if (request->n_samples == 1 || method_evicts(&request->params) || own > total) {
        own = total;
    }
    return (struct page_need){total - own, own};
}

/* The same rank by rank, for methods whose heads differ. */
static status count_rank_pages(const struct scheduler *s, struct job *job)
{
    const struct request *request = job->request;
    const struct method_params *params = &request->params;
    int ranks = s->config.ranks;
    struct layer_load load = {
        .n_prompt = (int)request->n_prompt,
        .rows = method_first_rows(params, (int)request->n_prompt),
        .appended = (int)request->sampling.max_tokens - 1,
        .page_rows = (int)s->page_rows,
    };
    struct head_range *ranges = calloc((size_t)ranks, sizeof(*ranges));
    uint64_t *pages = calloc((size_t)ranks, sizeof(*pages));

    job->rank_worst = calloc((size_t)ranks, sizeof(*job->rank_worst));
    if (!ranges || !pages || !job->rank_worst) {
        free(ranges);
        free(pages);
        return status_fail(STATUS_EXHAUSTED, "no memory for one more request");
    }
    for (int rank = 0; rank < ranks; rank++) {
        const struct split *split = &s->splits[rank];
        ranges[rank] = job->per_query_head
                           ? (struct head_range){split->query_first, split->query_heads}
                           : (struct head_range){split->kv_first, split->kv_heads};
    }
    for (; load.layer < s->config.model->layers; load.layer++) {
        method_add_pages(params, s->config.model, &load, ranges, ranks, pages);
    }
    for (int rank = 0; rank < ranks; rank++) {
        uint64_t tables = (uint64_t)ranges[rank].n * (uint64_t)s->config.model->layers;
        job->rank_worst[rank] = divide_pages(s, request, pages[rank], tables);
    }
    free(ranges);
    free(pages);
    return STATUS_OK;
}

/* Worst case in pages of one cache head over all layers. */
static void count_pages(const struct scheduler *s, struct job *job)
{
    const struct request *request = job->request;
    const struct model_config *model = s->config.model;
    uint32_t appended = request->sampling.max_tokens ? request->sampling.max_tokens - 1 : 0;
    int rows = method_first_rows(&request->params, (int)request->n_prompt);

    uint64_t total = 0;
    uint64_t shared = 0;

    for (int layer = 0; layer < model->layers; layer++) {
        struct layer_rows after =
            method_layer_rows(&request->params, model, (int)request->n_prompt, layer, rows);
        uint64_t most = (uint64_t)method_peak_rows(&request->params, (int)request->n_prompt,
                                                   after.kept, (int)appended);
        total += (most + s->page_rows - 1) / s->page_rows;
        shared += (uint64_t)after.kept / s->page_rows; /* the last one, not full, is changed */
        rows = after.propagated;
    }
    if (request->n_samples == 1 || method_evicts(&request->params)) {
        shared = 0;
    } else if (appended == 0) {
        shared = total;
    }
    job->worst = (struct page_need){shared, total - shared};
    job->per_query_head = method_caches_by_query(&request->params);
    job->work = slices_total_work(&request->params, model, (int)request->n_prompt);
}

void job_reset(const struct scheduler *s, struct job *job)
{
    const struct request *request = job->request;

    job->group = NULL;
    job->n_live = request->n_samples;
    job->progress = (struct request_progress){
        .phase = PHASE_QUEUED,
        .prompt_tokens = request->n_prompt,
        .layers =
            (uint32_t)slices_layers(&request->params, s->config.model, (int)request->n_prompt),
    };
    for (uint32_t i = 0; i < request->n_samples; i++) {
        job->sequences[i] = (struct sequence){.job = job, .sample = i};
        list_init(&job->sequences[i].decode);
    }
}

struct job *job_create(struct scheduler *s, const struct request *request, void *user, double now,
                       status *st)
{
    struct job *job = calloc(1, sizeof(struct job) + request->n_samples * sizeof(struct sequence));

    if (!job) {
        *st = status_fail(STATUS_EXHAUSTED, "no memory for one more request");
        return NULL;
    }
    job->request = request;
    job->user = user;
    job->submitted_ms = now;
    list_init(&job->link);
    list_init(&job->prefill);
    job_reset(s, job);
    count_pages(s, job);
    *st = method_heads_differ(&request->params) ? count_rank_pages(s, job) : STATUS_OK;
    if (!*st) {
        *st = job_can_ever_fit(s, job) ? STATUS_OK : job_never_fits(s, job);
    }
    if (!*st) {
        *st = heap_reserve(&s->by_deadline, s->by_handle.n + 1);
    }
    if (!*st) {
        *st = table_insert(&s->by_handle, &job->by_handle, table_hash(request->handle));
    }
    if (*st) {
        job_free(job);
        return NULL;
    }
    return job;
}

/* Its memory is free from the next plan on, which releases the slot first of all. */
static void sequence_free(struct scheduler *s, struct sequence *sequence)
{
    struct group *group = sequence->job->group;

    sequence->ended = true;
    sequence->job->n_live--;
    list_remove(&sequence->decode);
    for (uint32_t i = 0; i < s->config.look_ahead; i++) {
        struct flight *flight = &group->flights[i];
        for (uint32_t k = 0; k < flight->n_readings; k++) {
            if (flight->readings[k].sequence == sequence) {
                flight->readings[k].sequence = NULL;
            }
        }
    }
    group->slots[sequence->slot] = NULL;
    group->free_slots[group->n_free_slots++] = sequence->slot;
    if (sequence->begin_plan) {
        group->release[group->n_release++] = sequence->slot;
    }
    group_give_pages(s, sequence);
    group_changed(s, group);
}

void job_leave_group(struct scheduler *s, struct job *job)
{
    struct group *group = job->group;

    for (uint32_t i = 0; i < job->request->n_samples; i++) {
        if (!job->sequences[i].ended) {
            sequence_free(s, &job->sequences[i]);
        }
    }
    free(job->kept);
    job->kept = NULL;
    group_drop_prompt(group, job);
    group->n_jobs--;
    s->n_running--;
    group_changed(s, group);
}

/* Out of every list. */
static void job_detach(struct scheduler *s, struct job *job)
{
    list_remove(&job->link);
    list_remove(&job->prefill);
    heap_remove(&s->by_deadline, &job->by_deadline);
    table_remove(&s->by_handle, &job->by_handle);
    if (!job->group) {
        s->n_queued--;
        s->queued_tokens -= job->request->n_prompt;
        return;
    }
    job_leave_group(s, job);
}

void job_free(struct job *job)
{
    free(job->kept);
    free(job->rank_worst);
    free(job);
}

void job_end(struct scheduler *s, struct job *job, const struct failure *failure)
{
    void *user = job->user;

    job_detach(s, job);
    job_free(job);
    s->config.sink.ended(s->config.sink.context, user, failure);
}

static void sequence_report_end(struct scheduler *s, struct sequence *sequence, enum finish reason,
                                double now)
{
    const struct job *job = sequence->job;
    const struct request *request = job->request;
    double admitted = job->group ? job->admitted_ms : now;
    double first = sequence->first_token_ms > 0 ? sequence->first_token_ms : now;
    struct request_done done = {
        .sample = sequence->sample,
        .reason = reason,
        .seed = request->sampling.seed,
        .usage.prompt_tokens = request->n_prompt,
        .usage.completion_tokens = sequence->got,
        .usage.propagated_tokens =
            (uint32_t)method_propagated(&request->params, s->config.model, (int)request->n_prompt),
        .timing.queue_ms = admitted - job->submitted_ms,
        .timing.tokenize_ms = request->tokenize_ms,
        .timing.prefill_ms = first - admitted,
        .timing.ttft_ms = first - request->arrived_ms,
        .timing.decode_ms = now - first,
        .timing.total_ms = now - request->arrived_ms,
        .timing.collective_ms = sequence->collective_ms,
        .timing.scoring_ms = sequence->scoring_ms,
        .timing.beside_ms = sequence->beside_ms,
    };

    s->config.sink.done(s->config.sink.context, job->user, &done);
}

void sequence_end(struct scheduler *s, struct sequence *sequence, enum finish reason, double now)
{
    struct job *job = sequence->job;

    sequence_report_end(s, sequence, reason, now);
    sequence_free(s, sequence);
    if (job->n_live == 0) {
        job_end(s, job, NULL);
    }
}

void job_abort(struct scheduler *s, struct job *job, double now)
{
    for (uint32_t i = 0; i < job->request->n_samples; i++) {
        if (!job->sequences[i].ended) {
            sequence_report_end(s, &job->sequences[i], FINISH_ABORTED, now);
        }
    }
    job_end(s, job, NULL);
}

void job_report(struct scheduler *s, struct job *job, double now)
{
    job->reported_ms = now;
    s->config.sink.progress(s->config.sink.context, job->user, &job->progress);
}
