#include "coordinator/scheduler.h"
#include "tests/check.h"
#include "tests/coordinator/helpers_simulation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- one group, by hand ---- */

struct seen {
    uint32_t tokens, dones, progress;
    enum finish reason;
    uint32_t completion_tokens;
    uint32_t reruns;
    bool ended, stop_at_next;
    struct failure failure;
    struct request_progress last;
};

static void on_progress(void *context, void *user, const struct request_progress *progress)
{
    struct seen *seen = user;

    (void)context;
    seen->progress++;
    seen->last = *progress;
}

static bool on_token(void *context, void *user, uint32_t sample, const struct result_token *token,
                     bool stop)
{
    struct seen *seen = user;

    (void)context;
    (void)sample;
    (void)token;
    (void)stop;
    seen->tokens++;
    return seen->stop_at_next;
}

static void on_done(void *context, void *user, const struct request_done *done)
{
    struct seen *seen = user;

    (void)context;
    seen->dones++;
    seen->reason = done->reason;
    seen->completion_tokens = done->usage.completion_tokens;
}

static void on_ended(void *context, void *user, const struct failure *failure)
{
    struct seen *seen = user;

    (void)context;
    CHECK(!seen->ended);
    seen->ended = true;
    if (failure) {
        seen->failure = *failure;
    }
}

static void on_rerun(void *context, void *user, const struct failure *failure)
{
    struct seen *seen = user;

    (void)context;
    CHECK(!seen->ended && seen->tokens == 0 && failure->code == STATUS_UNAVAILABLE);
    seen->reruns++;
}

static struct scheduler *open_one(uint32_t pages, uint32_t queue_requests)
{
    struct scheduler_config config = {
        .model = &simulation_model,
        .ranks = 1,
        .n_groups = 1,
        .max_context = 4096,
        .queue_requests = queue_requests,
        .queue_tokens = 5000,
        .sink = {on_progress, on_token, on_done, on_ended, on_rerun, NULL},
    };
    struct group_capacity capacity = {
        .epoch = 5, .page_rows = 32, .pages = &pages, .page_bytes = 1000};
    struct scheduler *scheduler;

    CHECK_OK(scheduler_open(&scheduler, &config));
    if (pages) {
        CHECK_OK(scheduler_group_ready(scheduler, 0, &capacity, 0));
    }
    return scheduler;
}

static struct request make(uint64_t handle, uint32_t n_prompt, uint32_t max_tokens)
{
    static uint32_t prompt[4096];
    struct request request = {
        .handle = handle,
        .prompt = prompt,
        .n_prompt = n_prompt,
        .sampling = {.max_tokens = max_tokens, .top_p = 1},
        .n_samples = 1,
        .deadline_ms = INT64_MAX,
    };

    method_defaults(&request.params, METHOD_FULL, &simulation_model);
    return request;
}

static status submit(struct scheduler *scheduler, const struct request *request, struct seen *seen,
                     bool *retry)
{
    *seen = (struct seen){0};
    return scheduler_submit(scheduler, request, seen, 1, retry);
}

static status answer(struct scheduler *scheduler, uint64_t number, uint32_t slot, uint32_t id)
{
    struct result_token token = {.slot = slot, .id = id};
    struct step_result result = {.number = number, .n_tokens = 1, .tokens = &token};

    return scheduler_result(scheduler, 0, &result, 2);
}

static struct plan next(struct scheduler *scheduler)
{
    struct plan plan;
    uint32_t group;

    CHECK(scheduler_next_plan(scheduler, &group, &plan));
    CHECK(group == 0 && plan.epoch == 5);
    return plan;
}

static bool idle(struct scheduler *scheduler)
{
    struct plan plan;
    uint32_t group;

    return !scheduler_next_plan(scheduler, &group, &plan);
}

static void test_without_a_ready_group_requests_are_refused(void **state)
{
    struct scheduler *scheduler = open_one(0, 10);
    struct request request = make(1, 10, 10);
    struct seen seen;
    bool retry;

    (void)state;
    CHECK_FAILS(submit(scheduler, &request, &seen, &retry), STATUS_UNAVAILABLE, "no worker group");
    CHECK(!seen.ended && seen.progress == 0);
    scheduler_close(scheduler);
}

static void test_what_can_never_fit_is_refused_with_the_numbers(void **state)
{
    /* 4 layers * 3 heads, pages of 32 rows: 12 pages for each 32 tokens. */
    struct scheduler *scheduler = open_one(24, 10);
    struct request fits = make(1, 60, 5);
    struct request never = make(2, 61, 5);
    struct seen seen;
    bool retry;

    (void)state;
    CHECK_FAILS(submit(scheduler, &never, &seen, &retry), STATUS_EXHAUSTED,
                "61 prompt tokens with max_tokens 5, 1 sample(s) and method FULL need 36000 bytes "
                "of KV memory on rank 0; its pool has 24000");
    CHECK(!retry);
    CHECK_OK(submit(scheduler, &fits, &seen, &retry));
    CHECK(scheduler_pages_free(scheduler, 0, 0) == 0);
    fits.n_samples = 2;
    CHECK_FAILS(submit(scheduler, &fits, &seen, &retry), STATUS_EXHAUSTED, "2 sample(s)");
    scheduler_close(scheduler);
}

/* 4 layers * 3 heads, 100 places before the window for each head of a layer. */
static void test_heads_that_differ_are_counted_rank_by_rank(void **state)
{
    static float scores[24] = {[0] = 1}; /* 6 query heads: all of them go to the first */
    struct request request = make(1, 1000, 1);
    struct scheduler *scheduler = open_one(52, 10);
    struct seen seen;
    bool retry;

    (void)state;
    /* One head may win 268 rows, 9 pages; but all heads together only 326, and each may leave 31
     * rows of its last page empty: 13 pages a layer. */
    method_defaults(&request.params, METHOD_ADAKV, &simulation_model);
    request.params.absolute = true;
    request.params.capacity = 108;
    CHECK_OK(submit(scheduler, &request, &seen, &retry));
    CHECK(scheduler_pages_free(scheduler, 0, 0) == 0);
    CHECK(scheduler_cancel(scheduler, 1, NULL, 3));
    CHECK(seen.ended && scheduler_pages_free(scheduler, 0, 0) == 52);
    request.params.capacity = 120; /* 14 pages a layer */
    CHECK_FAILS(submit(scheduler, &request, &seen, &retry), STATUS_EXHAUSTED,
                "method ADAKV need 56000 bytes");
    scheduler_close(scheduler);

    /* 83 of 100 places are shared out: layer 0 gives its first head as many rows as there are,
     * 32 pages; the 11 other heads have 17 places and the window, a page each. */
    scheduler = open_one(32 + 11, 10);
    method_defaults(&request.params, METHOD_HEADKV, &simulation_model);
    request.params.absolute = true;
    request.params.capacity = 108;
    request.params.head_scores = scores;
    request.params.n_head_scores = 24;
    request.handle = 2;
    CHECK_OK(submit(scheduler, &request, &seen, &retry));
    CHECK(scheduler_pages_free(scheduler, 0, 0) == 0);
    CHECK(scheduler_cancel(scheduler, 2, NULL, 3));
    CHECK(seen.ended && scheduler_pages_free(scheduler, 0, 0) == 32 + 11);
    scheduler_close(scheduler);
}

static void test_a_full_queue_refuses_by_requests_and_by_tokens(void **state)
{
    uint32_t pages = 126U * (uint32_t)(simulation_model.layers * simulation_model.kv_heads);
    struct scheduler *scheduler = open_one(pages * 3 / 2, 2); /* for one of these requests */
    struct request request = make(1, 4000, 5);
    struct seen seen[4];
    bool retry;

    (void)state;
    CHECK_OK(submit(scheduler, &request, &seen[0], &retry)); /* runs */
    request.handle = 2;
    CHECK_OK(submit(scheduler, &request, &seen[1], &retry)); /* waits */
    CHECK(seen[1].last.phase == PHASE_QUEUED && seen[1].last.queue_position == 1);
    request.handle = 3;
    CHECK_FAILS(submit(scheduler, &request, &seen[2], &retry), STATUS_EXHAUSTED,
                "4000 prompt tokens and 4000 more, of at most 5000");
    CHECK(retry);
    request.n_prompt = 10;
    CHECK_OK(submit(scheduler, &request, &seen[2], &retry));
    CHECK_FAILS(submit(scheduler, &request, &seen[3], &retry), STATUS_EXHAUSTED,
                "2 requests of at most 2");
    CHECK(retry);
    request.n_prompt = 4092;
    CHECK(scheduler_cancel(scheduler, 3, &(struct failure){.code = STATUS_CANCELLED}, 2));
    CHECK_FAILS(submit(scheduler, &request, &seen[3], &retry), STATUS_OUT_OF_RANGE, "4096");
    scheduler_close(scheduler);
}

static void test_tokens_past_a_stop_are_dropped_and_the_slot_is_released(void **state)
{
    struct scheduler *scheduler = open_one(1000, 10);
    struct request request = make(1, 10, 50);
    struct seen seen;
    struct plan plan;
    uint32_t slot;
    bool retry;

    (void)state;
    CHECK_OK(submit(scheduler, &request, &seen, &retry));
    /* The rate is unknown, so a plan has one slice: 3 whole layers, then keys and queries. */
    for (uint64_t i = 1; i <= 4; i++) {
        struct step_result nothing = {.number = i};
        plan = next(scheduler);
        CHECK(plan.number == i && plan.n_advance == 1 && plan.n_begin == (i == 1));
        CHECK(plan.n_decode == 0);
        CHECK_OK(scheduler_result(scheduler, 0, &nothing, 2));
    }
    plan = next(scheduler);
    CHECK(plan.n_advance == 1 && plan.n_decode == 0); /* chooses the first token */
    slot = plan.advance[0].slot;
    plan = next(scheduler);
    CHECK(plan.n_advance == 0 && plan.n_decode == 1 && plan.decode[0] == slot);
    CHECK(idle(scheduler)); /* two plans ahead */
    CHECK_OK(answer(scheduler, 5, slot, 3));
    CHECK(seen.tokens == 1 && seen.last.phase == PHASE_DECODE);
    plan = next(scheduler);
    CHECK(plan.number == 7 && plan.n_decode == 1);
    seen.stop_at_next = true;
    CHECK_OK(answer(scheduler, 6, slot, 4));
    CHECK(seen.tokens == 2 && seen.ended && seen.dones == 1);
    CHECK(seen.reason == FINISH_STOP_STRING && seen.completion_tokens == 2);
    plan = next(scheduler);
    CHECK(plan.n_release == 1 && plan.release[0] == slot && plan.n_decode == 0);
    CHECK_OK(answer(scheduler, 7, slot, 5)); /* was computed past the stop */
    CHECK(seen.tokens == 2);
    CHECK(scheduler_pages_free(scheduler, 0, 0) == 1000);
    CHECK(idle(scheduler));
    scheduler_close(scheduler);
}

/* Once the speed is known: a plan is full, whoever it reads for. */
static void test_short_prompts_share_a_plan(void **state)
{
    struct scheduler *scheduler = open_one(1000, 10);
    struct request requests[4] = {make(1, 10, 1), make(2, 10, 1), make(3, 10, 1), make(4, 10, 1)};
    struct result_token tokens[3];
    struct step_result result = {.tokens = tokens, .compute_ms = 1};
    struct seen seen[4];
    struct plan plan;
    bool retry;

    (void)state;
    CHECK_OK(submit(scheduler, &requests[0], &seen[0], &retry));
    for (result.number = 1; !seen[0].ended; result.number++) {
        plan = next(scheduler);
        CHECK(plan.n_advance == 1 && plan.advance[0].slices == (result.number == 1 ? 1 : 4));
        result.n_tokens = result.number == 2;
        tokens[0] = (struct result_token){.slot = plan.advance[0].slot, .id = 3};
        CHECK_OK(scheduler_result(scheduler, 0, &result, 2));
    }
    CHECK(next(scheduler).n_release == 1);
    for (int i = 1; i < 4; i++) {
        CHECK_OK(submit(scheduler, &requests[i], &seen[i], &retry));
    }
    result.n_tokens = 0;
    CHECK_OK(scheduler_result(scheduler, 0, &result, 3));
    plan = next(scheduler);
    CHECK(plan.n_begin == 3 && plan.n_advance == 3);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK(plan.advance[i].slices == 5);
        tokens[result.n_tokens++] = (struct result_token){.slot = plan.advance[i].slot, .id = 3};
    }
    result.number++;
    CHECK_OK(scheduler_result(scheduler, 0, &result, 4));
    CHECK(seen[1].ended && seen[2].ended && seen[3].ended);
    scheduler_close(scheduler);
}

/* ADAKV's worst case is a bound: when the choice is made, the rest is free for others. */
static void test_pages_that_a_choice_left_over_are_given_back_at_once(void **state)
{
    struct scheduler *scheduler = open_one(52, 10);
    struct request first = make(1, 1000, 1);
    struct request second = make(2, 60, 5); /* 24 pages */
    struct seen seen[2];
    uint32_t slot;
    bool retry;

    (void)state;
    method_defaults(&first.params, METHOD_ADAKV, &simulation_model);
    first.params.absolute = true;
    first.params.capacity = 108; /* 52 pages */
    CHECK_OK(submit(scheduler, &first, &seen[0], &retry));
    CHECK_OK(submit(scheduler, &second, &seen[1], &retry));
    slot = next(scheduler).advance[0].slot;
    CHECK(scheduler_pages_free(scheduler, 0, 0) == 0 && seen[1].last.phase == PHASE_QUEUED);
    CHECK_OK(scheduler_keep_pages(scheduler, 0, slot, 1, 0, 48, 0));
    CHECK(scheduler_pages_free(scheduler, 0, 0) == 4);
    CHECK_FAILS(scheduler_keep_pages(scheduler, 0, slot, 1, 0, 49, 0), STATUS_INTERNAL,
                "rank 0 needs 49 KV pages");
    CHECK_OK(scheduler_keep_pages(scheduler, 0, slot, 1, 0, 28, 0));
    CHECK_OK(scheduler_keep_pages(scheduler, 0, slot + 1, 1, 0, 1, 0)); /* nobody's slot */
    CHECK_OK(scheduler_result(scheduler, 0, &(struct step_result){.number = 1}, 2));
    CHECK(seen[1].last.phase == PHASE_PREFILL && scheduler_pages_free(scheduler, 0, 0) == 0);
    CHECK(scheduler_cancel(scheduler, 1, NULL, 3) && scheduler_cancel(scheduler, 2, NULL, 3));
    CHECK(scheduler_pages_free(scheduler, 0, 0) == 52);
    scheduler_close(scheduler);
}

/* FULL, 70 prompt tokens, 4 layers * 3 heads: 2 full pages each are shared, and each of 3 samples
 * appends 29 rows to the 6 of the last one: 2 pages. */
static void test_samples_share_the_pages_of_their_prompt(void **state)
{
    struct request request = make(1, 70, 30);
    struct scheduler *scheduler = open_one(12 * (2 + 3 * 2), 10);
    uint32_t slots[3];
    struct result_token tokens[3];
    struct seen seen;
    struct plan plan;
    bool retry;

    (void)state;
    request.n_samples = 3;
    CHECK_OK(submit(scheduler, &request, &seen, &retry));
    CHECK(scheduler_pages_free(scheduler, 0, 0) == 0);
    do {
        plan = next(scheduler);
        if (plan.n_begin < 2) {
            CHECK_OK(
                scheduler_result(scheduler, 0, &(struct step_result){.number = plan.number}, 2));
        }
    } while (plan.n_begin < 2);
    slots[0] = plan.advance[0].slot;
    for (uint32_t i = 0; i < 2; i++) { /* one prefill, and the others begin in its last plan */
        CHECK(plan.begin[i].forks && plan.begin[i].source == slots[0]);
        CHECK(plan.begin[i].sampling.sample == i + 1);
        slots[i + 1] = plan.begin[i].slot;
    }
    for (uint32_t i = 0; i < 3; i++) {
        tokens[i] = (struct result_token){.slot = slots[i], .id = 1};
    }
    CHECK_FAILS(scheduler_keep_pages(scheduler, 0, slots[0], plan.number, 0, 3, 4), STATUS_INTERNAL,
                "shares 4 of 3");
    CHECK_FAILS(scheduler_keep_pages(scheduler, 0, slots[0], plan.number, 0, 48, 20),
                STATUS_INTERNAL, "promised 48 and 24");
    CHECK_OK(scheduler_keep_pages(scheduler, 0, slots[0], plan.number, 0, 48, 24));
    CHECK(scheduler_pages_free(scheduler, 0, 0) == 0);
    CHECK_OK(scheduler_result(
        scheduler, 0, &(struct step_result){.number = plan.number, .n_tokens = 3, .tokens = tokens},
        2));
    plan = next(scheduler);
    CHECK(plan.n_decode == 3 && plan.n_begin == 0);
    tokens[0].id = simulation_model.eos_ids[0]; /* the sample that was read ends first */
    CHECK_OK(scheduler_result(
        scheduler, 0, &(struct step_result){.number = plan.number, .n_tokens = 3, .tokens = tokens},
        2));
    CHECK(seen.dones == 1 && scheduler_pages_free(scheduler, 0, 0) == 24);
    CHECK(scheduler_cancel(scheduler, 1, NULL, 3));
    CHECK(scheduler_pages_free(scheduler, 0, 0) == 96);
    scheduler_close(scheduler);
}

static void test_late_tokens_of_a_reused_slot_go_to_nobody(void **state)
{
    struct scheduler *scheduler = open_one(1000, 10);
    struct request first = make(1, 10, 50);
    struct request second = make(2, 10, 50);
    struct seen seen[2];
    struct plan plan;
    uint32_t sample;
    uint32_t slot;
    bool retry;

    (void)state;
    CHECK_OK(submit(scheduler, &first, &seen[0], &retry));
    for (uint64_t i = 1; i <= 4; i++) {
        struct step_result nothing = {.number = i};
        (void)next(scheduler);
        CHECK_OK(scheduler_result(scheduler, 0, &nothing, 2));
    }
    slot = next(scheduler).advance[0].slot;
    CHECK(next(scheduler).n_decode == 1);
    CHECK(scheduler_cancel(scheduler, 1, &(struct failure){.code = STATUS_CANCELLED}, 2));
    CHECK(seen[0].ended && seen[0].failure.code == STATUS_CANCELLED);
    CHECK_OK(submit(scheduler, &second, &seen[1], &retry));
    CHECK_OK(answer(scheduler, 5, slot, 3));
    plan = next(scheduler);
    CHECK(plan.n_release == 1 && plan.n_begin == 1 && plan.begin[0].slot == slot);
    CHECK(!scheduler_find(scheduler, 0, slot, 6, &sample));
    CHECK(scheduler_find(scheduler, 0, slot, 7, &sample) == &seen[1]);
    CHECK_OK(answer(scheduler, 6, slot, 3));
    CHECK(seen[0].tokens == 0 && seen[1].tokens == 0);
    scheduler_close(scheduler);
}

static struct failure lost(void)
{
    return (struct failure){.code = STATUS_UNAVAILABLE, .text = "rank 1 died"};
}

static void form_again(struct scheduler *scheduler, double now)
{
    uint32_t pages = 1000;
    struct group_capacity capacity = {
        .epoch = 5, .page_rows = 32, .pages = &pages, .page_bytes = 1000};

    CHECK_OK(scheduler_group_ready(scheduler, 0, &capacity, now));
}

/* Plans until the first request has a token. */
static void first_token(struct scheduler *scheduler, struct seen *seen)
{
    for (uint64_t number = 1; seen->tokens == 0; number++) {
        struct step_result nothing = {.number = number};
        struct plan plan = next(scheduler);
        uint32_t slot = plan.advance[0].slot;
        if (scheduler_result(scheduler, 0, &nothing, 2)) {
            CHECK_OK(answer(scheduler, number, slot, 3));
        }
        CHECK(number < 100);
    }
}

static void test_a_lost_group_fails_only_who_has_a_token(void **state)
{
    struct scheduler *scheduler = open_one(1000, 10);
    struct request requests[3] = {make(1, 10, 50), make(2, 1000, 50), make(3, 1000, 50)};
    struct failure failure = lost();
    struct seen seen[3];
    bool retry;

    (void)state;
    CHECK_OK(submit(scheduler, &requests[0], &seen[0], &retry));
    first_token(scheduler, &seen[0]);
    CHECK_OK(submit(scheduler, &requests[1], &seen[1], &retry)); /* is read */
    CHECK_OK(submit(scheduler, &requests[2], &seen[2], &retry)); /* waits */
    scheduler_group_lost(scheduler, 0, &failure, 3);
    CHECK(seen[0].ended && strcmp(seen[0].failure.text, "rank 1 died") == 0);
    CHECK(!seen[1].ended && seen[1].reruns == 1 && seen[1].last.phase == PHASE_QUEUED);
    CHECK(seen[1].last.queue_position == 1);
    CHECK(!seen[2].ended && idle(scheduler));
    CHECK(scheduler_counts(scheduler).queued == 2 && scheduler_counts(scheduler).running == 0);
    CHECK_FAILS(submit(scheduler, &requests[0], &seen[0], &retry), STATUS_UNAVAILABLE, "no worker");
    form_again(scheduler, 4);
    CHECK(seen[1].last.phase == PHASE_PREFILL);
    struct plan plan = next(scheduler);
    CHECK(plan.number == 1 && plan.n_begin == 1 && plan.begin[0].n_prompt == 1000);
    scheduler_close(scheduler);
}

static void test_who_runs_again_keeps_its_place(void **state)
{
    uint32_t pages = 126U * (uint32_t)(simulation_model.layers * simulation_model.kv_heads);
    struct scheduler *scheduler = open_one(pages, 10); /* one at a time */
    struct request requests[3] = {make(1, 3000, 1000), make(2, 3000, 1000), make(3, 3000, 1000)};
    struct failure failure = lost();
    struct seen seen[3];
    bool retry;

    (void)state;
    requests[1].n_prompt = 900;
    requests[2].n_prompt = 1000;
    for (int i = 0; i < 3; i++) {
        CHECK_OK(submit(scheduler, &requests[i], &seen[i], &retry));
    }
    (void)next(scheduler);
    CHECK(seen[0].last.phase == PHASE_PREFILL && seen[1].last.queue_position == 1);
    scheduler_group_lost(scheduler, 0, &failure, 3);
    CHECK(seen[0].last.queue_position == 1);
    scheduler_tick(scheduler, 500);
    CHECK(seen[1].last.queue_position == 2 && seen[2].last.queue_position == 3);
    scheduler_close(scheduler);
}

/* A request that kills its workers must not do so for ever. */
static void test_a_request_runs_only_so_often(void **state)
{
    struct scheduler *scheduler = open_one(1000, 10);
    struct request request = make(1, 1000, 50);
    struct failure failure = lost();
    struct seen seen;
    bool retry;

    (void)state;
    CHECK_OK(submit(scheduler, &request, &seen, &retry));
    for (uint32_t i = 1; i <= SCHEDULER_MAX_RERUNS; i++) {
        (void)next(scheduler);
        scheduler_group_lost(scheduler, 0, &failure, i);
        CHECK(!seen.ended && seen.reruns == i);
        form_again(scheduler, i);
    }
    (void)next(scheduler);
    scheduler_group_lost(scheduler, 0, &failure, 9);
    CHECK(seen.ended && strcmp(seen.failure.text, "rank 1 died") == 0);
    CHECK(seen.reruns == SCHEDULER_MAX_RERUNS);
    scheduler_close(scheduler);
}

static void test_the_wait_for_a_lost_group_is_bounded(void **state)
{
    struct scheduler *scheduler = open_one(1000, 10);
    struct request request = make(1, 1000, 50);
    struct failure failure = lost();
    struct seen seen;
    bool retry;

    (void)state;
    CHECK_OK(submit(scheduler, &request, &seen, &retry));
    scheduler_group_lost(scheduler, 0, &failure, 1000);
    scheduler_tick(scheduler, 30999);
    CHECK(!seen.ended);
    scheduler_tick(scheduler, 31000);
    CHECK(seen.ended && seen.failure.code == STATUS_UNAVAILABLE);
    CHECK(strcmp(seen.failure.text,
                 "rank 1 died, and no worker group was ready again within 30.0 s") == 0);
    scheduler_close(scheduler);
}

/* One long prompt is read and the next waits for its rows: short ones behind them start, finish
 * first, and take nothing from the waiting one. */
static void test_short_prompts_pass_a_long_one_that_waits(void **state)
{
    struct scheduler *scheduler = open_one(100000, 10);
    struct request requests[5] = {make(1, 4000, 5), make(2, 900, 5), make(3, 100, 5),
                                  make(4, 100, 5), make(5, 100, 5)};
    struct seen seen[5];
    bool retry;

    (void)state;
    requests[1].n_prompt = 3900;
    for (int i = 0; i < 5; i++) {
        CHECK_OK(submit(scheduler, &requests[i], &seen[i], &retry));
    }
    CHECK(seen[0].last.phase == PHASE_PREFILL && seen[1].last.phase == PHASE_QUEUED);
    CHECK(seen[2].last.phase == PHASE_PREFILL && seen[3].last.phase == PHASE_PREFILL);
    CHECK(seen[4].last.phase == PHASE_QUEUED); /* the last place is the waiting one's */
    for (uint64_t number = 1; seen[2].ended + seen[3].ended < 2; number++) {
        struct plan plan = next(scheduler);
        struct result_token tokens[PLAN_MAX_DECODE + 1];
        struct step_result result = {.number = number, .tokens = tokens};
        for (uint32_t i = 0; i < plan.n_begin; i++) {
            bool is_long = plan.begin[i].n_prompt == 4000;
            CHECK(is_long ? plan.begin[i].first_row == 0 : plan.begin[i].first_row >= 4096);
        }
        for (uint32_t i = 0; i < plan.n_decode; i++) {
            tokens[result.n_tokens++] = (struct result_token){.slot = plan.decode[i], .id = 1};
        }
        uint32_t slot = plan.n_advance ? plan.advance[0].slot : 0;
        if (scheduler_result(scheduler, 0, &result, (double)number)) {
            tokens[result.n_tokens++] = (struct result_token){.slot = slot, .id = 1};
            CHECK_OK(scheduler_result(scheduler, 0, &result, (double)number));
        }
        CHECK(number < 1000);
    }
    CHECK(!seen[0].ended && seen[1].last.phase == PHASE_QUEUED);
    scheduler_close(scheduler);
}

/* One level is worth ten seconds: higher ones go first, but not past who waits much longer. */
static void test_priority_orders_the_queue_and_ages(void **state)
{
    uint32_t pages = 126U * (uint32_t)(simulation_model.layers * simulation_model.kv_heads);
    struct scheduler *scheduler = open_one(pages, 10); /* one at a time */
    const struct {
        double at;
        int32_t priority;
        uint32_t position;
    } cases[] = {{0, 0, 0},
                 {1, 0, 1},
                 {2, 1, 1},
                 {3, 1, 2},
                 {9000, 0, 4},
                 {11500, 1, 4},
                 {11600, INT32_MAX, 1},
                 {11700, INT32_MIN, 7}};
    struct request requests[8];
    struct seen seen[8] = {{0}};
    bool retry;

    (void)state;
    for (int i = 0; i < 8; i++) {
        requests[i] = make((uint64_t)i + 1, i == 0 ? 3950 : 2200, 5);
        requests[i].n_prompt = i == 0 ? 3950 : 500 + (uint32_t)i;
        requests[i].sampling.max_tokens = i == 0 ? 5 : 3000; /* pages, not tokens, are short */
        requests[i].priority = cases[i].priority;
        CHECK_OK(scheduler_submit(scheduler, &requests[i], &seen[i], cases[i].at, &retry));
        CHECK(seen[i].last.queue_position == cases[i].position);
    }
    scheduler_close(scheduler);
}

static void test_deadlines_pass_in_the_queue_and_in_prefill(void **state)
{
    struct scheduler *scheduler = open_one(2000, 10);
    struct request running = make(1, 1000, 50);
    struct request waiting = make(2, 4000, 50);
    struct seen seen[2];
    bool retry;

    (void)state;
    running.n_prompt = 4000;
    running.deadline_ms = 100;
    waiting.deadline_ms = 60;
    CHECK_OK(submit(scheduler, &running, &seen[0], &retry));
    CHECK_OK(submit(scheduler, &waiting, &seen[1], &retry));
    scheduler_tick(scheduler, 59);
    CHECK(!seen[1].ended);
    scheduler_tick(scheduler, 60);
    CHECK(seen[1].ended && seen[1].failure.code == STATUS_DEADLINE);
    CHECK(strstr(seen[1].failure.text, "in the queue"));
    (void)next(scheduler);
    scheduler_tick(scheduler, 100);
    CHECK(seen[0].ended && strstr(seen[0].failure.text, "in prefill"));
    scheduler_close(scheduler);
}

static void test_results_that_make_no_sense_are_errors(void **state)
{
    struct scheduler *scheduler = open_one(1000, 10);
    struct request request = make(1, 10, 50);
    struct seen seen;
    bool retry;

    (void)state;
    CHECK_FAILS(answer(scheduler, 1, 0, 0), STATUS_INTERNAL, "result of plan 1");
    CHECK_OK(submit(scheduler, &request, &seen, &retry));
    (void)next(scheduler);
    CHECK_FAILS(answer(scheduler, 2, 0, 0), STATUS_INTERNAL, "not of 1");
    CHECK_FAILS(answer(scheduler, 1, 0, 0), STATUS_INTERNAL, "with 1 tokens, not 0");
    scheduler_close(scheduler);
}

static void test_a_group_that_drains_finishes_and_gets_no_more(void **state)
{
    struct scheduler *scheduler = open_one(1000, 10);
    const struct failure cause = {.code = STATUS_UNAVAILABLE, .text = "told to stop"};
    struct request running = make(1, 10, 1);
    struct request waiting = make(2, 10, 1);
    struct step_result nothing = {0};
    struct seen seen[2];
    bool retry;

    (void)state;
    CHECK_OK(submit(scheduler, &running, &seen[0], &retry));
    CHECK(scheduler_counts(scheduler).ready_groups == 1);
    scheduler_group_drain(scheduler, 0, &cause, 3);
    scheduler_group_drain(scheduler, 0, &cause, 3);
    CHECK(scheduler_counts(scheduler).ready_groups == 0 && !seen[0].ended);
    CHECK_FAILS(submit(scheduler, &waiting, &seen[1], &retry), STATUS_UNAVAILABLE,
                "no worker group");
    for (nothing.number = 1; nothing.number <= 4; nothing.number++) {
        struct plan plan = next(scheduler);
        CHECK(plan.number == nothing.number);
        CHECK_OK(scheduler_result(scheduler, 0, &nothing, 4));
    }
    struct plan plan = next(scheduler);
    CHECK_OK(answer(scheduler, 5, plan.advance[0].slot, 3));
    CHECK(seen[0].ended && seen[0].tokens == 1 && scheduler_group_running(scheduler, 0) == 0);
    scheduler_group_lost(scheduler, 0, &cause, 5);
    CHECK(scheduler_counts(scheduler).ready_groups == 0);
    uint32_t pages = 1000;
    struct group_capacity capacity = {
        .epoch = 6, .page_rows = 32, .pages = &pages, .page_bytes = 1000};
    CHECK_OK(scheduler_group_ready(scheduler, 0, &capacity, 6));
    CHECK_OK(submit(scheduler, &waiting, &seen[1], &retry));
    CHECK(scheduler_group_running(scheduler, 0) == 1);
    scheduler_close(scheduler);
}

static void test_a_rank_without_memory_fails_one_request_only(void **state)
{
    struct scheduler *scheduler = open_one(1000, 10);
    const struct failure failure = {.code = STATUS_EXHAUSTED, .text = "no memory"};
    struct request request = make(1, 10, 50);
    struct step_result nothing = {0};
    struct seen seen;
    struct plan plan;
    bool retry;

    (void)state;
    CHECK_OK(submit(scheduler, &request, &seen, &retry));
    for (nothing.number = 1; nothing.number <= 4; nothing.number++) {
        next(scheduler);
        CHECK_OK(scheduler_result(scheduler, 0, &nothing, 2));
    }
    plan = next(scheduler); /* chooses the first token */
    uint32_t slot = plan.advance[0].slot;
    plan = next(scheduler);
    CHECK(plan.n_decode == 1);
    scheduler_lacks_memory(scheduler, 0, slot + 1, 5, &failure); /* nobody's */
    CHECK(!seen.ended);
    scheduler_lacks_memory(scheduler, 0, slot, 5, &failure);
    CHECK(seen.ended && seen.failure.code == STATUS_EXHAUSTED && seen.dones == 0);
    CHECK_OK(scheduler_result(scheduler, 0, &nothing, 2)); /* without the tokens of both plans */
    nothing.number = 6;
    CHECK_OK(scheduler_result(scheduler, 0, &nothing, 2));
    plan = next(scheduler);
    CHECK(plan.number == 7 && plan.n_release == 1 && plan.release[0] == slot);
    CHECK(scheduler_pages_free(scheduler, 0, 0) == 1000);
    CHECK_OK(submit(scheduler, &request, &seen, &retry)); /* the group goes on */
    nothing.number = 7;
    CHECK_OK(scheduler_result(scheduler, 0, &nothing, 2));
    for (nothing.number = 8; nothing.number <= 11; nothing.number++) {
        next(scheduler);
        CHECK_OK(scheduler_result(scheduler, 0, &nothing, 2));
    }
    next(scheduler);
    CHECK_FAILS(scheduler_result(scheduler, 0, &nothing, 2), STATUS_INTERNAL, "with 0 tokens");
    scheduler_close(scheduler);
}

static void test_an_abort_keeps_what_there_is(void **state)
{
    struct scheduler *scheduler = open_one(1000, 10);
    struct request request = make(1, 10, 50);
    struct seen seen;
    bool retry;

    (void)state;
    CHECK_OK(submit(scheduler, &request, &seen, &retry));
    CHECK(scheduler_cancel(scheduler, 1, NULL, 2));
    CHECK(seen.ended && seen.failure.code == STATUS_OK && seen.reason == FINISH_ABORTED);
    CHECK(!scheduler_cancel(scheduler, 1, NULL, 2));
    scheduler_close(scheduler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_a_ready_group_requests_are_refused),
        cmocka_unit_test(test_what_can_never_fit_is_refused_with_the_numbers),
        cmocka_unit_test(test_heads_that_differ_are_counted_rank_by_rank),
        cmocka_unit_test(test_a_full_queue_refuses_by_requests_and_by_tokens),
        cmocka_unit_test(test_tokens_past_a_stop_are_dropped_and_the_slot_is_released),
        cmocka_unit_test(test_short_prompts_share_a_plan),
        cmocka_unit_test(test_pages_that_a_choice_left_over_are_given_back_at_once),
        cmocka_unit_test(test_samples_share_the_pages_of_their_prompt),
        cmocka_unit_test(test_late_tokens_of_a_reused_slot_go_to_nobody),
        cmocka_unit_test(test_a_lost_group_fails_only_who_has_a_token),
        cmocka_unit_test(test_who_runs_again_keeps_its_place),
        cmocka_unit_test(test_a_request_runs_only_so_often),
        cmocka_unit_test(test_the_wait_for_a_lost_group_is_bounded),
        cmocka_unit_test(test_short_prompts_pass_a_long_one_that_waits),
        cmocka_unit_test(test_priority_orders_the_queue_and_ages),
        cmocka_unit_test(test_deadlines_pass_in_the_queue_and_in_prefill),
        cmocka_unit_test(test_results_that_make_no_sense_are_errors),
        cmocka_unit_test(test_a_group_that_drains_finishes_and_gets_no_more),
        cmocka_unit_test(test_a_rank_without_memory_fails_one_request_only),
        cmocka_unit_test(test_an_abort_keeps_what_there_is),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
