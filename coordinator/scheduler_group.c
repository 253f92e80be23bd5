#include "coordinator/scheduler_state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---- room ---- */

static uint32_t cache_heads(const struct split *split, bool per_query_head)
{
    return (uint32_t)(per_query_head ? split->query_heads : split->kv_heads);
}

/* Pages per KV head that every rank can still give, of `pages` on each. */
static uint64_t head_pages(const struct scheduler *s, const uint32_t *pages)
{
    uint64_t least = UINT64_MAX;

    for (int rank = 0; rank < s->config.ranks; rank++) {
        uint64_t each = pages[rank] / cache_heads(&s->splits[rank], false);
        least = each < least ? each : least;
    }
    return least;
}

bool group_takes_jobs(const struct group *group)
{
    return group->ready && !group->draining;
}

/* The group may have a plan to send, and its place among the open groups may have moved. */
void group_changed(struct scheduler *s, struct group *group)
{
    heap_remove(&s->open, &group->open);
    if (group_takes_jobs(group) && group->n_prompts < PLAN_MAX_PROMPTS && group->n_free_slots > 0) {
        group->open.key = -(int64_t)head_pages(s, group->free);
        group->open.tie = group->index;
        heap_insert(&s->open, &group->open);
    }
    list_remove(&group->dirty);
    if (group->ready) {
        list_append(&s->dirty, &group->dirty);
    }
}

/* What is promised to the job on a rank. */
static struct page_need need_on_rank(const struct scheduler *s, const struct job *job, int rank)
{
    uint64_t heads = cache_heads(&s->splits[rank], job->per_query_head);

    if (job->kept) {
        return job->kept[rank];
    }
    if (job->rank_worst) {
        return job->rank_worst[rank];
    }
    return (struct page_need){job->worst.shared * heads, job->worst.own * heads};
}

/* With so many samples. */
static uint64_t pages_of_samples(const struct page_need *need, uint32_t n)
{
    return n > 0 ? need->shared + n * need->own : 0;
}

/* Of a job that waits. */
static uint64_t pages_on_rank(const struct scheduler *s, const struct job *job, int rank)
{
    struct page_need need = need_on_rank(s, job, rank);

    return pages_of_samples(&need, job->request->n_samples);
}

/* All KV heads need the same: what one of them needs settles the matter. */
static bool goes_by_kv_head(const struct job *job)
{
    return !job->per_query_head && !job->rank_worst;
}

static bool fits(const struct scheduler *s, const struct job *job, const uint32_t *pages)
{
    for (int rank = 0; rank < s->config.ranks; rank++) {
        if (pages_on_rank(s, job, rank) > pages[rank]) {
            return false;
        }
    }
    return true;
}

/* Whether some ready group could hold the job if it were empty. */
bool job_can_ever_fit(struct scheduler *s, struct job *job)
{
    bool found = false;

    if (job->fits_checked == s->generation) {
        return true;
    }
    if (job->request->n_samples > s->config.max_sequences) {
        return false;
    }
    if (goes_by_kv_head(job)) {
        found = pages_of_samples(&job->worst, job->request->n_samples) <= s->best_pages;
    }
    for (uint32_t i = 0; !goes_by_kv_head(job) && i < s->config.n_groups && !found; i++) {
        found = group_takes_jobs(&s->groups[i]) && fits(s, job, s->groups[i].pages);
    }
    if (found) {
        job->fits_checked = s->generation;
    }
    return found;
}

/* ---- prompt memory ---- */

enum { NO_ROW = UINT32_MAX };

/* The lowest run of free rows at or behind `least` that holds the prompt. */
static uint32_t find_rows(const struct scheduler *s, const struct group *group, uint32_t least,
                          uint32_t n_prompt)
{
    uint32_t first = (least + PLAN_ROW_STEP - 1) / PLAN_ROW_STEP * PLAN_ROW_STEP;
    bool moved = true;

    while (moved) {
        moved = false;
        for (uint32_t i = 0; i < PLAN_MAX_PROMPTS; i++) {
            const struct prompt *other = &group->prompts[i];
            uint32_t end = other->job ? other->first_row + other->job->request->n_prompt : 0;
            if (other->job && first < end && other->first_row < first + n_prompt) {
                first = (end + PLAN_ROW_STEP - 1) / PLAN_ROW_STEP * PLAN_ROW_STEP;
                moved = true;
            }
        }
    }
    return first + n_prompt <= plan_prompt_rows(s->config.max_context) ? first : NO_ROW;
}

/* Who passes the head of the queue stays behind the rows that the head may need. */
static uint32_t least_row(const struct scheduler *s, bool passes)
{
    return passes ? s->config.max_context : 0;
}

void group_add_prompt(const struct scheduler *s, struct group *group, struct job *job, bool passes)
{
    struct prompt *prompt = group->prompts;

    while (prompt->job) {
        prompt++;
        assert(prompt < group->prompts + PLAN_MAX_PROMPTS);
    }
    *prompt = (struct prompt){
        .job = job,
        .first_row = find_rows(s, group, least_row(s, passes), job->request->n_prompt),
        .number = group->n_admitted++,
    };
    assert(prompt->first_row != NO_ROW);
    slices_begin(&prompt->walk, &job->request->params, s->config.model,
                 (int)job->request->n_prompt);
    group->n_prompts++;
}

void group_drop_prompt(struct group *group, const struct job *job)
{
    for (uint32_t i = 0; i < PLAN_MAX_PROMPTS; i++) {
        if (group->prompts[i].job == job) {
            group->prompts[i].job = NULL;
            group->n_prompts--;
        }
    }
}

static bool has_room(const struct scheduler *s, const struct group *group, const struct job *job,
                     bool passes)
{
    return group->n_free_slots >= job->request->n_samples && fits(s, job, group->free) &&
           find_rows(s, group, least_row(s, passes), job->request->n_prompt) != NO_ROW;
}

/* A group where the job can start although the head of the queue cannot, and takes nothing that the
 * head waits for: neither its pages nor its rows nor the last place for a prompt. */
struct group *group_to_pass(struct scheduler *s, const struct job *job, const struct job *head)
{
    for (size_t i = 1; i <= s->open.n; i++) {
        struct group *group = HOLDER_OF(s->open.nodes[i], struct group, open);
        bool both = group->n_prompts < PLAN_MAX_PROMPTS - 1 && has_room(s, group, job, true) &&
                    group->n_free_slots >= job->request->n_samples + head->request->n_samples;
        for (int rank = 0; rank < s->config.ranks && both; rank++) {
            both = pages_on_rank(s, job, rank) + pages_on_rank(s, head, rank) <= group->free[rank];
        }
        if (both) {
            return group;
        }
    }
    return NULL;
}

/* The open group with the most room, if it has enough. */
struct group *group_for_job(struct scheduler *s, const struct job *job)
{
    struct heap_node *first = heap_first(&s->open);
    uint64_t need = pages_of_samples(&job->worst, job->request->n_samples);

    if (!first || (goes_by_kv_head(job) && -first->key < (int64_t)need)) {
        return NULL;
    }
    /* The first one, unless it lacks slots; where heads differ the order is not exact either. */
    for (size_t i = 1; i <= s->open.n; i++) {
        struct group *group = HOLDER_OF(s->open.nodes[i], struct group, open);
        if (has_room(s, group, job, false)) {
            return group;
        }
    }
    return NULL;
}

void group_take_pages(struct scheduler *s, struct group *group, const struct job *job)
{
    for (int rank = 0; rank < s->config.ranks; rank++) {
        uint64_t pages = pages_on_rank(s, job, rank);
        assert(pages <= group->free[rank]);
        group->free[rank] -= (uint32_t)pages;
    }
}

static void give(struct group *group, int rank, uint64_t pages)
{
    assert(group->free[rank] + pages <= group->pages[rank]);
    group->free[rank] += (uint32_t)pages;
}

/* A sample ended, which is no longer among the live ones. */
void group_give_pages(struct scheduler *s, struct sequence *sequence)
{
    const struct job *job = sequence->job;

    for (int rank = 0; rank < s->config.ranks; rank++) {
        struct page_need need = need_on_rank(s, job, rank);
        give(job->group, rank,
             pages_of_samples(&need, job->n_live + 1) - pages_of_samples(&need, job->n_live));
    }
}

/* Without memory for the smaller numbers the worst case stays reserved, which is safe. */
static void note_worst_case(const struct scheduler *s, struct job *job)
{
    struct page_need *kept = calloc((size_t)s->config.ranks, sizeof(*kept));

    for (int rank = 0; kept && rank < s->config.ranks; rank++) {
        kept[rank] = need_on_rank(s, job, rank);
    }
    job->kept = kept;
}

status group_keep_pages(const struct scheduler *s, struct job *job, int rank,
                        const struct page_need *need)
{
    struct page_need worst = need_on_rank(s, job, rank);
    uint64_t before = pages_of_samples(&worst, job->n_live);
    uint64_t now = pages_of_samples(need, job->n_live);

    if (need->shared + need->own > worst.shared + worst.own || need->own > worst.own) {
        return status_fail(
            STATUS_INTERNAL,
            "rank %d needs %llu KV pages for a sample and %llu for each other one; "
            "it was promised %llu and %llu",
            rank, (unsigned long long)need->shared + need->own, (unsigned long long)need->own,
            (unsigned long long)worst.shared + worst.own, (unsigned long long)worst.own);
    }
    if (now < before && !job->kept) {
        note_worst_case(s, job);
    }
    if (now < before && job->kept) {
        job->kept[rank] = *need;
        give(job->group, rank, before - now);
    }
    return STATUS_OK;
}

/* Says by how much the job exceeds the rank that is shortest of room in the largest group. */
status job_never_fits(const struct scheduler *s, const struct job *job)
{
    const struct request *request = job->request;
    const struct group *best = NULL;
    uint64_t most = 0;

    for (uint32_t i = 0; i < s->config.n_groups; i++) {
        const struct group *group = &s->groups[i];
        if (group_takes_jobs(group) && (!best || head_pages(s, group->pages) > most)) {
            best = group;
            most = head_pages(s, group->pages);
        }
    }
    assert(best);
    for (int rank = 0; rank < s->config.ranks; rank++) {
        uint64_t need = pages_on_rank(s, job, rank);
        if (need <= best->pages[rank]) {
            continue;
        }
        return status_fail(STATUS_EXHAUSTED,
                           "%u prompt tokens with max_tokens %u, %u sample(s) and method %s need "
                           "%llu bytes of KV memory on rank %d; its pool has %llu",
                           request->n_prompt, request->sampling.max_tokens, request->n_samples,
                           method_name(request->params.method),
                           (unsigned long long)need * best->page_bytes, rank,
                           (unsigned long long)best->pages[rank] * best->page_bytes);
    }
    return status_fail(STATUS_EXHAUSTED, "the request fits in no worker group");
}

/* ---- groups come and go ---- */

static void find_best(struct scheduler *s)
{
    s->best_pages = 0;
    s->generation++;
    for (uint32_t i = 0; i < s->config.n_groups; i++) {
        if (group_takes_jobs(&s->groups[i])) {
            uint64_t pages = head_pages(s, s->groups[i].pages);
            s->best_pages = pages > s->best_pages ? pages : s->best_pages;
        }
    }
}

static status group_alloc(const struct scheduler *s, struct group *group)
{
    size_t n = s->config.max_sequences;
    size_t ranks = (size_t)s->config.ranks;

    if (group->slots) {
        return STATUS_OK;
    }
    group->slots = calloc(n, sizeof(struct sequence *));
    group->free_slots = calloc(n, sizeof(uint32_t));
    group->release = calloc(n, sizeof(uint32_t));
    group->pages = calloc(ranks, sizeof(uint32_t));
    group->free = calloc(ranks, sizeof(uint32_t));
    if (!group->slots || !group->free_slots || !group->release || !group->pages || !group->free) {
        free(group->slots);
        group->slots = NULL;
        return status_fail(STATUS_EXHAUSTED, "no memory for group %u", group->index);
    }
    return STATUS_OK;
}

/* Everything of the last epoch is forgotten, also by the workers. */
static void group_reset(const struct scheduler *s, struct group *group)
{
    uint32_t n = s->config.max_sequences;

    assert(list_empty(&group->jobs) && list_empty(&group->decode));
    group->n_release = 0;
    group->n_flights = 0;
    group->number = 1;
    group->ms_per_work = (struct estimate){0};
    group->decode_ms = (struct estimate){0};
    group->n_free_slots = n;
    for (uint32_t i = 0; i < n; i++) {
        group->free_slots[i] = n - 1 - i;
    }
    memset(group->flights, 0, sizeof(group->flights));
}

status scheduler_group_ready(struct scheduler *s, uint32_t index,
                             const struct group_capacity *capacity, double now)
{
    struct group *group = &s->groups[index];
    status st;

    assert(index < s->config.n_groups && !group->ready);
    if (capacity->page_rows == 0 || (s->page_rows && capacity->page_rows != s->page_rows)) {
        return status_fail(STATUS_INVALID, "group %u has KV pages of %u rows, others of %u", index,
                           capacity->page_rows, s->page_rows);
    }
    st = group_alloc(s, group);
    if (st) {
        return st;
    }
    s->page_rows = capacity->page_rows;
    group_reset(s, group);
    group->epoch = capacity->epoch;
    group->page_bytes = capacity->page_bytes;
    memcpy(group->pages, capacity->pages, (size_t)s->config.ranks * sizeof(uint32_t));
    memcpy(group->free, capacity->pages, (size_t)s->config.ranks * sizeof(uint32_t));
    group->ready = true;
    group->draining = false;
    s->n_ready++;
    find_best(s);
    group_changed(s, group);
    scheduler_settle(s, now);
    return STATUS_OK;
}

void scheduler_group_drain(struct scheduler *s, uint32_t index, const struct failure *cause,
                           double now)
{
    struct group *group = &s->groups[index];

    assert(index < s->config.n_groups);
    if (!group_takes_jobs(group)) {
        return;
    }
    group->draining = true;
    s->n_ready--;
    find_best(s);
    s->loss = *cause;
    s->lost_ms = now;
    group_changed(s, group);
    scheduler_settle(s, now);
}

void scheduler_group_lost(struct scheduler *s, uint32_t index, const struct failure *failure,
                          double now)
{
    struct group *group = &s->groups[index];

    assert(index < s->config.n_groups);
    if (!group->ready) {
        return;
    }
    s->n_ready -= group_takes_jobs(group);
    group->ready = false;
    group->draining = false;
    find_best(s);
    s->loss = *failure;
    s->lost_ms = now;
    jobs_lost(s, &group->jobs, failure, now);
    group_changed(s, group);
    scheduler_settle(s, now);
}
