#include "coordinator/scheduler.h"
#include "coordinator/scheduler_state.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* How quickly measured speeds follow: the weight of the newest step. */
#define SMOOTHING 0.3

/* What is unlikely to be exceeded. */
static double cautious(const struct estimate *estimate)
{
    return estimate->mean + estimate->deviation;
}

static struct flight *flight_of(const struct scheduler *s, struct group *group, uint64_t number)
{
    return &group->flights[number % s->config.look_ahead];
}

/* ---- plans out ---- */

static void plan_release(struct scheduler *s, struct group *group, struct plan *plan)
{
    memcpy(s->release, group->release, group->n_release * sizeof(uint32_t));
    plan->n_release = group->n_release;
    plan->release = s->release;
    group->n_release = 0;
}

/* One more token for every live sequence. */
static void plan_decode_step(struct scheduler *s, struct group *group, struct plan *plan)
{
    struct link *next;

    plan->decode = s->decode;
    for (struct link *link = group->decode.next; link != &group->decode; link = next) {
        struct sequence *sequence = HOLDER_OF(link, struct sequence, decode);
        next = link->next;
        s->decode[plan->n_decode++] = sequence->slot;
        sequence->planned++;
        if (sequence->planned == sequence->job->request->sampling.max_tokens) {
            list_remove(link);
        }
    }
}

static void plan_begin_prompt(struct scheduler *s, struct prompt *prompt, struct plan *plan)
{
    struct job *job = prompt->job;
    const struct request *request = job->request;
    struct sequence *sequence = &job->sequences[0];

    sequence->begin_plan = plan->number;
    s->begins[plan->n_begin++] = (struct plan_begin){
        .slot = sequence->slot,
        .n_prompt = request->n_prompt,
        .prompt = request->prompt,
        .params = request->params,
        .sampling = request->sampling,
        .trace = request->trace,
        .max_rows = request->sampling.max_tokens - 1,
        .first_row = prompt->first_row,
    };
}

/* The first sample's prompt ends in this plan: the others begin where it is then, and each chooses
 * its first token. */
static void plan_fork_samples(struct scheduler *s, struct job *job, struct plan *plan)
{
    for (uint32_t i = 0; i < job->request->n_samples; i++) {
        struct sequence *sequence = &job->sequences[i];
        if (i > 0) {
            sequence->begin_plan = plan->number;
            s->begins[plan->n_begin++] = (struct plan_begin){
                .slot = sequence->slot,
                .sampling.sample = i,
                .forks = true,
                .source = job->sequences[0].slot,
            };
        }
        sequence->planned = 1;
        if (sequence->planned < job->request->sampling.max_tokens) {
            list_append(&job->group->decode, &sequence->decode);
        }
    }
}

/* In turn the oldest, so that none starves, and the one with the least left, so that a short prompt
 * does not wait for a long one. */
static struct prompt *next_prompt(struct group *group)
{
    struct prompt *best = NULL;

    for (uint32_t i = 0; i < PLAN_MAX_PROMPTS; i++) {
        struct prompt *prompt = &group->prompts[i];
        if (!prompt->job) {
            continue;
        }
        bool older = best && prompt->number < best->number;
        bool shorter = best && prompt->job->work - prompt->walked < best->job->work - best->walked;
        if (!best || (group->oldest_next ? older : shorter)) {
            best = prompt;
        }
    }
    group->oldest_next = !group->oldest_next;
    return best;
}

/* How long the slices of a plan may take.  Who decodes gets the next token with the plan's result,
 * so decoding and slices share the target; while nobody decodes, a plan is only short enough for
 * who comes next. */
static double prefill_ms(const struct scheduler *s, const struct group *group,
                         const struct plan *plan)
{
    double target = s->config.itl_target_ms;
    double decode_ms = cautious(&group->decode_ms);

    if (plan->n_decode == 0) {
        return target / 2;
    }
    return decode_ms < target * 3 / 4 ? target - decode_ms : target / 4;
}

/* The work that fits this time; nothing before the speed is known. */
static double work_in(const struct group *group, double ms)
{
    double ms_per_work = cautious(&group->ms_per_work);

    return ms_per_work > 0 ? ms / ms_per_work : 0;
}

/* The next slices of a prompt, while their work and that before them is not above `most`; at least
 * one. */
static void plan_slices(struct scheduler *s, struct prompt *prompt, double most, struct plan *plan,
                        struct flight *flight)
{
    struct sequence *sequence = &prompt->job->sequences[0];
    struct plan_advance *advance = &s->advances[plan->n_advance++];
    struct reading *reading = &flight->readings[flight->n_readings++];
    struct slice slice = {0};

    if (!sequence->begin_plan) {
        plan_begin_prompt(s, prompt, plan);
    }
    *advance = (struct plan_advance){.slot = sequence->slot};
    *reading = (struct reading){.sequence = sequence};
    do {
        bool more = slices_next(&prompt->walk, &slice);
        double work = slice_work(s->config.model, &slice);
        assert(more);
        reading->work += work;
        flight->work += work;
        advance->slices++;
    } while (prompt->walk.next.end != 0 && advance->slices < PLAN_MAX_ADVANCE &&
             flight->work + slice_work(s->config.model, &prompt->walk.next) <= most);
    prompt->walked += reading->work;
    reading->work_done = prompt->walked;
    reading->layer = (uint32_t)slice.nth_layer;
    reading->tokens_done = (uint32_t)slice.end;
}

/* Slices for the time there is: where a prompt ends before it, the next one begins. */
static void plan_prefill(struct scheduler *s, struct group *group, struct plan *plan,
                         struct flight *flight)
{
    double most = work_in(group, prefill_ms(s, group, plan));
    struct prompt *prompt = next_prompt(group);

    plan->advance = s->advances;
    while (prompt) {
        struct job *job = prompt->job;
        plan_slices(s, prompt, most, plan, flight);
        if (prompt->walk.next.end != 0) {
            return;
        }
        flight->n_tokens += job->request->n_samples; /* the last slice chooses the first tokens */
        plan_fork_samples(s, job, plan);
        group_drop_prompt(group, job);
        prompt = next_prompt(group);
        if (prompt && flight->work + slice_work(s->config.model, &prompt->walk.next) > most) {
            return;
        }
    }
}

static bool has_work(const struct scheduler *s, const struct group *group)
{
    return group->ready && group->n_flights < s->config.look_ahead &&
           (group->n_prompts || group->n_release || !list_empty(&group->decode));
}

static void plan_group(struct scheduler *s, struct group *group, struct plan *plan)
{
    struct flight *flight = flight_of(s, group, group->number);

    *plan = (struct plan){.epoch = group->epoch, .number = group->number, .begin = s->begins};
    *flight = (struct flight){0};
    plan_release(s, group, plan);
    plan_decode_step(s, group, plan); /* before a prompt ends in this plan and joins */
    if (group->n_prompts) {
        plan_prefill(s, group, plan, flight);
    }
    flight->n_tokens += plan->n_decode;
    flight->decodes = plan->n_decode > 0;
    group->number++;
    group->n_flights++;
}

bool scheduler_next_plan(struct scheduler *s, uint32_t *index, struct plan *plan)
{
    while (!list_empty(&s->dirty)) {
        struct group *group = HOLDER_OF(s->dirty.next, struct group, dirty);
        uint32_t prompts = group->n_prompts;
        if (!has_work(s, group)) {
            list_remove(&group->dirty);
            continue;
        }
        plan_group(s, group, plan);
        if (group->n_prompts < prompts) {
            group_changed(s, group);
        }
        *index = group->index;
        return true;
    }
    return false;
}

/* ---- results in ---- */

static void learn(struct estimate *estimate, double value)
{
    if (estimate->mean > 0) {
        double off = fabs(value - estimate->mean);
        estimate->deviation += SMOOTHING * (off - estimate->deviation);
        estimate->mean += SMOOTHING * (value - estimate->mean);
    } else {
        estimate->mean = value;
    }
}

/* Learns how long slices and decode steps take here. */
static void measure(struct group *group, const struct flight *flight,
                    const struct step_result *result)
{
    double slices_ms = result->compute_ms - result->decode_ms;

    if (flight->work > 0 && slices_ms > 0) {
        learn(&group->ms_per_work, slices_ms / flight->work);
    }
    if (flight->decodes && result->decode_ms > 0) {
        learn(&group->decode_ms, result->decode_ms);
    }
}

static bool is_stop(const struct scheduler *s, const struct sequence *sequence, uint32_t id)
{
    const struct request *request = sequence->job->request;
    const struct model_config *model = s->config.model;

    if (sequence->got <= request->sampling.min_tokens) {
        return false;
    }
    for (uint32_t i = 0; i < request->n_stop_ids; i++) {
        if (request->stop_ids[i] == id) {
            return true;
        }
    }
    for (int i = 0; i < model->n_eos_ids && !request->ignore_eos; i++) {
        if ((uint32_t)model->eos_ids[i] == id) {
            return true;
        }
    }
    return false;
}

static void first_token(struct scheduler *s, struct sequence *sequence, double now)
{
    struct job *job = sequence->job;

    sequence->first_token_ms = now;
    if (job->progress.phase == PHASE_DECODE) {
        return;
    }
    list_remove(&job->prefill);
    job->progress.phase = PHASE_DECODE;
    job->progress.layer = job->progress.layers;
    job->progress.fraction = 1;
    job_report(s, job, now);
}

static void take_token(struct scheduler *s, struct sequence *sequence,
                       const struct result_token *token, double now)
{
    const struct request *request = sequence->job->request;
    const struct scheduler_sink *sink = &s->config.sink;
    bool stop;

    sequence->got++;
    if (sequence->got == 1) {
        first_token(s, sequence, now);
    }
    stop = is_stop(s, sequence, token->id);
    if (sink->token(sink->context, sequence->job->user, sequence->sample, token, stop)) {
        sequence_end(s, sequence, FINISH_STOP_STRING, now);
    } else if (stop) {
        sequence_end(s, sequence, FINISH_STOP_TOKEN, now);
    } else if (sequence->got == request->sampling.max_tokens) {
        sequence_end(s, sequence, FINISH_LENGTH, now);
    }
}

/* The sequence that the slot belonged to when that plan was made, if it still lives. */
static struct sequence *find_sequence(const struct group *group, uint32_t slot, uint64_t number)
{
    struct sequence *sequence = group->slots[slot];

    return sequence && sequence->begin_plan && sequence->begin_plan <= number ? sequence : NULL;
}

void *scheduler_find(const struct scheduler *s, uint32_t index, uint32_t slot, uint64_t number,
                     uint32_t *sample)
{
    const struct group *group = &s->groups[index];
    const struct sequence *sequence = NULL;

    assert(index < s->config.n_groups);
    if (group->ready && slot < s->config.max_sequences) {
        sequence = find_sequence(group, slot, number);
    }
    if (!sequence) {
        return NULL;
    }
    *sample = sequence->sample;
    return sequence->job->user;
}

status scheduler_keep_pages(struct scheduler *s, uint32_t index, uint32_t slot, uint64_t number,
                            int rank, uint64_t pages, uint64_t shared)
{
    struct group *group = &s->groups[index];
    struct sequence *sequence = NULL;

    assert(index < s->config.n_groups && rank >= 0 && rank < s->config.ranks);
    if (group->ready && slot < s->config.max_sequences) {
        sequence = find_sequence(group, slot, number);
    }
    if (shared > pages) {
        return status_fail(STATUS_INTERNAL, "rank %d shares %llu of %llu KV pages", rank,
                           (unsigned long long)shared, (unsigned long long)pages);
    }
    const struct page_need need = {shared, pages - shared};
    return sequence ? group_keep_pages(s, sequence->job, rank, &need) : STATUS_OK;
}

void scheduler_lacks_memory(struct scheduler *s, uint32_t index, uint32_t slot, uint64_t number,
                            const struct failure *failure)
{
    struct group *group = &s->groups[index];
    struct sequence *sequence = NULL;

    assert(index < s->config.n_groups);
    if (group->ready && slot < s->config.max_sequences) {
        sequence = find_sequence(group, slot, number);
    }
    if (!sequence) {
        return;
    }
    for (uint32_t i = 0; i < s->config.look_ahead; i++) {
        group->flights[i].fewer = true;
    }
    job_end(s, sequence->job, failure);
}

static void take_progress(struct scheduler *s, const struct reading *reading, double now)
{
    struct job *job;

    job = reading->sequence->job;
    if (job->progress.phase != PHASE_PREFILL) {
        return;
    }
    job->progress.layer = reading->layer;
    job->progress.tokens_done = reading->tokens_done;
    job->progress.fraction = (float)(reading->work_done / job->work);
    if (now - job->reported_ms >= s->config.report_ms / 4) {
        job_report(s, job, now);
    }
}

/* What a step took counts for each prompt that it read; the scoring by its part of the work. */
static void take_readings(struct scheduler *s, const struct flight *flight,
                          const struct step_result *result, double now)
{
    for (uint32_t i = 0; i < flight->n_readings; i++) {
        const struct reading *reading = &flight->readings[i];
        if (!reading->sequence) {
            continue;
        }
        take_progress(s, reading, now);
        reading->sequence->collective_ms += result->collective_ms;
        reading->sequence->scoring_ms += result->scoring_ms * reading->work / flight->work;
        reading->sequence->beside_ms += result->decode_ms;
    }
}

static status check_result(const struct scheduler *s, struct group *group,
                           const struct step_result *result)
{
    uint64_t oldest = group->number - group->n_flights;
    const struct flight *flight;

    if (!group->ready || group->n_flights == 0 || result->number != oldest) {
        return status_fail(STATUS_INTERNAL, "group %u sent a result of plan %llu, not of %llu",
                           group->index, (unsigned long long)result->number,
                           (unsigned long long)oldest);
    }
    flight = flight_of(s, group, oldest);
    if (result->n_tokens > flight->n_tokens ||
        (result->n_tokens < flight->n_tokens && !flight->fewer)) {
        return status_fail(STATUS_INTERNAL, "group %u answered plan %llu with %u tokens, not %u",
                           group->index, (unsigned long long)oldest, result->n_tokens,
                           flight->n_tokens);
    }
    for (uint32_t i = 0; i < result->n_tokens; i++) {
        if (result->tokens[i].slot >= s->config.max_sequences ||
            result->tokens[i].id >= (uint32_t)s->config.model->vocab) {
            return status_fail(STATUS_INTERNAL, "group %u sent token %u for slot %u", group->index,
                               result->tokens[i].id, result->tokens[i].slot);
        }
    }
    return STATUS_OK;
}

status scheduler_result(struct scheduler *s, uint32_t index, const struct step_result *result,
                        double now)
{
    struct group *group = &s->groups[index];
    struct flight flight;
    status st;

    assert(index < s->config.n_groups);
    st = check_result(s, group, result);
    if (st) {
        return st;
    }
    flight = *flight_of(s, group, result->number);
    flight_of(s, group, result->number)->n_readings = 0;
    group->n_flights--;
    measure(group, &flight, result);
    take_readings(s, &flight, result, now);
    for (uint32_t i = 0; i < result->n_tokens; i++) {
        const struct result_token *token = &result->tokens[i];
        struct sequence *sequence = find_sequence(group, token->slot, result->number);
        if (!sequence) {
            continue;
        }
        if (sequence->got >= sequence->planned) {
            st = status_fail(STATUS_INTERNAL, "group %u sent a token for slot %u too many", index,
                             token->slot);
            break;
        }
        if (sequence->got == 0 && sequence->sample > 0) { /* the first one's prompt is its own */
            sequence->collective_ms = sequence->job->sequences[0].collective_ms;
            sequence->scoring_ms = sequence->job->sequences[0].scoring_ms;
            sequence->beside_ms = sequence->job->sequences[0].beside_ms;
        } else if (sequence->got > 0) { /* else its reading has counted it */
            sequence->collective_ms += result->collective_ms;
        }
        take_token(s, sequence, token, now);
    }
    group_changed(s, group);
    scheduler_settle(s, now);
    return st;
}
