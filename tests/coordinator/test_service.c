/* The core against workers that are played by this program, over loopback. */
#include "common/envelope.h"
#include "common/plan.h"
#include "common/rpc.h"
#include "common/slices.h"
#include "common/split.h"
#include "coordinator/service.h"
#include "tests/check.h"
#include "winnow/v1/worker.pb-c.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RANKS = 2, WAIT_MS = 20000, SLOTS = 64, VOCAB = 10 };

static const struct model_config model = {
    .name = "played",
    .layers = 3,
    .hidden = 64,
    .intermediate = 64,
    .query_heads = 4,
    .kv_heads = 2,
    .head_dim = 16,
    .vocab = VOCAB,
    .max_positions = 100000,
    .eos_ids = {9},
    .n_eos_ids = 1,
};

/* Everything the threads share; signalled at every change. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void lock(void)
{
    pthread_mutex_lock(&mutex);
}

static void unlock(void)
{
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

/* Waits, locked, until *value is at least `least`. */
static bool wait_for(const int *value, int least)
{
    struct timespec until;
    int error = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_MS / 1000;
    while (*value < least && !error) {
        error = pthread_cond_timedwait(&changed, &mutex, &until);
    }
    return *value >= least;
}

/* ---- a played worker ---- */

struct slot {
    bool used;
    uint32_t produced;
    struct method_params params;
    struct slices walk;
};

struct player {
    struct rpc_client *client;
    struct rpc_stream *stream;
    const char *build;
    uint32_t rank;
    uint64_t epoch;
    struct slot slots[SLOTS];
    bool hold; /* answers no plan */
    int assigns, leaves, plans, ended;
    struct failure end;
};

static void send_message(struct player *player, int field, const ProtobufCMessage *message)
{
    uint8_t payload[512];
    uint8_t *data;
    size_t bytes = protobuf_c_message_pack(message, payload);
    size_t n;

    CHECK_OK(envelope_wrap(&data, &n, field, payload, bytes));
    (void)rpc_stream_send(player->stream, data, n);
    free(data);
}

static ProtobufCBinaryData text(const char *s)
{
    return (ProtobufCBinaryData){.len = strlen(s), .data = (uint8_t *)s};
}

static void say_ready(struct player *player)
{
    Winnow__V1__WorkerReady ready = WINNOW__V1__WORKER_READY__INIT;

    ready.epoch = player->epoch;
    ready.kv_bytes_total = 1000000;
    ready.pages_total = 1000;
    ready.page_rows = 32;
    ready.device = text("played");
    send_message(player, WORKER_READY, &ready.base);
}

static void execute(struct player *player, const struct plan *plan, struct result_token *tokens,
                    uint32_t *n_tokens)
{
    for (uint32_t i = 0; i < plan->n_release; i++) {
        player->slots[plan->release[i]].used = false;
    }
    for (uint32_t i = 0; i < plan->n_begin; i++) {
        struct slot *slot = &player->slots[plan->begin[i].slot];
        *slot = (struct slot){.used = true, .params = plan->begin[i].params};
        slices_begin(&slot->walk, &slot->params, &model, (int)plan->begin[i].n_prompt);
    }
    for (uint32_t i = 0; i < plan->n_advance; i++) {
        struct slot *slot = &player->slots[plan->advance[i].slot];
        struct slice slice;
        for (uint32_t n = 0; n < plan->advance[i].slices; n++) {
            CHECK(slices_next(&slot->walk, &slice));
        }
        if (slot->walk.next.end == 0) {
            tokens[(*n_tokens)++] = (struct result_token){.slot = plan->advance[i].slot};
        }
    }
    for (uint32_t i = 0; i < plan->n_decode; i++) {
        tokens[(*n_tokens)++] = (struct result_token){.slot = plan->decode[i]};
    }
    for (uint32_t i = 0; i < *n_tokens; i++) {
        struct slot *slot = &player->slots[tokens[i].slot];
        CHECK(slot->used);
        tokens[i].id = slot->produced++ % 9;
    }
}

static void on_plan(struct player *player, const uint8_t *data, size_t bytes)
{
    struct result_token tokens[SLOTS];
    uint8_t *packed;
    uint8_t *wrapped;
    size_t packed_bytes;
    size_t n;
    struct plan plan;

    CHECK_OK(plan_decode(&plan, data, bytes, &model));
    struct step_result result = {.epoch = plan.epoch, .number = plan.number, .tokens = tokens};
    player->plans++;
    execute(player, &plan, tokens, &result.n_tokens);
    if (player->rank != 0) {
        result.n_tokens = 0;
    }
    if (!player->hold) {
        CHECK_OK(step_result_encode(&result, &packed, &packed_bytes));
        CHECK_OK(envelope_wrap(&wrapped, &n, WORKER_RESULT, packed, packed_bytes));
        (void)rpc_stream_send(player->stream, wrapped, n);
        free(packed);
        free(wrapped);
    }
    plan_free(&plan);
}

static void on_message(struct rpc_stream *stream, const uint8_t *data, size_t bytes, void *context)
{
    struct player *player = context;
    const uint8_t *payload;
    size_t n;
    int field;

    (void)stream;
    CHECK_OK(envelope_open(&field, &payload, &n, data, bytes));
    lock();
    if (field == COORDINATOR_ASSIGN) {
        Winnow__V1__Assignment *m = winnow__v1__assignment__unpack(NULL, n, payload);
        CHECK(m && m->size == RANKS);
        player->rank = m->rank;
        player->epoch = m->epoch;
        player->assigns++;
        winnow__v1__assignment__free_unpacked(m, NULL);
        say_ready(player);
    } else if (field == COORDINATOR_PLAN) {
        on_plan(player, payload, n);
    } else if (field == COORDINATOR_LEAVE) {
        player->leaves++;
    }
    unlock();
}

static void on_done(struct rpc_stream *stream, const struct failure *end, void *context)
{
    struct player *player = context;

    (void)stream;
    lock();
    player->end = *end;
    player->ended++;
    unlock();
}

static void player_join(struct player *player, int port)
{
    Winnow__V1__WorkerHello hello = WINNOW__V1__WORKER_HELLO__INIT;
    const struct rpc_events events = {on_message, on_done, player};
    char target[64];

    snprintf(target, sizeof(target), "127.0.0.1:%d", port);
    CHECK_OK(rpc_client_open(&player->client, target, NULL));
    lock();
    CHECK_OK(rpc_stream_open(&player->stream, player->client, "/winnow.v1.Fleet/Join", 0, &events));
    hello.host = text("played");
    hello.build = text(player->build ? player->build : WINNOW_VERSION);
    hello.process = 4;
    send_message(player, WORKER_HELLO, &hello.base);
    unlock();
}

static void player_leave(struct player *player)
{
    if (player->client) {
        rpc_client_close(player->client);
        rpc_stream_unref(player->stream);
        player->client = NULL;
    }
}

/* ---- a service and its requests ---- */

struct seen {
    int progress, tokens, dones, ended;
    enum finish reason;
    struct failure failure;
    struct request_progress last;
    struct request_usage usage;
    uint32_t ids[256];
};

static void on_progress(struct request *request, const struct request_progress *progress)
{
    struct seen *seen = request->context;

    lock();
    seen->progress++;
    seen->last = *progress;
    unlock();
}

static bool on_token(struct request *request, uint32_t sample, const struct result_token *token,
                     bool stop)
{
    struct seen *seen = request->context;

    (void)sample;
    (void)stop;
    lock();
    seen->ids[seen->tokens++ % 256] = token->id;
    unlock();
    return false;
}

static void on_sample_done(struct request *request, const struct request_done *done)
{
    struct seen *seen = request->context;

    lock();
    seen->dones++;
    seen->reason = done->reason;
    seen->usage = done->usage;
    unlock();
}

static void on_ended(struct request *request, const struct failure *failure, int64_t retry_after_ms)
{
    struct seen *seen = request->context;

    (void)retry_after_ms;
    lock();
    seen->ended++;
    if (failure) {
        seen->failure = *failure;
    }
    unlock();
    request_free(request);
}

static const struct request_sink sink = {on_progress, on_token, on_sample_done, on_ended};

static struct request *make(struct service *service, struct seen *seen, uint32_t n_prompt,
                            uint32_t max_tokens, const char *id)
{
    struct request *request = calloc(1, sizeof(*request));

    CHECK(request);
    *seen = (struct seen){0};
    request->handle = service_next_handle(service);
    snprintf(request->request_id, sizeof(request->request_id), "%s", id);
    request->prompt = calloc(n_prompt, sizeof(uint32_t));
    request->n_prompt = n_prompt;
    method_defaults(&request->params, METHOD_FASTKV, &model);
    request->sampling = (struct sampling){.max_tokens = max_tokens, .top_p = 1};
    request->sampling.repetition_penalty = 1;
    request->n_samples = 1;
    request->arrived_ms = service_now();
    request->deadline_ms = INT64_MAX;
    request->sink = &sink;
    request->context = seen;
    return request;
}

static int ready_count, not_ready_count, hopeless_count;

static void on_ready(bool ready, void *context)
{
    (void)context;
    lock();
    ready_count += ready;
    not_ready_count += !ready;
    unlock();
}

static void on_hopeless(const struct failure *failure, void *context)
{
    (void)context;
    CHECK(strstr(failure->text, "local worker 0 gave up"));
    lock();
    hopeless_count++;
    unlock();
}

static struct service_config config_of(void)
{
    return (struct service_config){
        .model = &model,
        .tensor_parallel = RANKS,
        .dtype = DTYPE_F32,
        .max_context = 65536,
        .queue_requests = 10,
        .queue_tokens = 100000,
        .worker_listen = "127.0.0.1:0",
        .on_ready = on_ready,
        .on_hopeless = on_hopeless,
    };
}

struct stage {
    struct service *service;
    struct player players[4];
};

static int open_stage(void **state)
{
    static struct stage stage;
    struct service_config config = config_of();

    stage = (struct stage){0};
    ready_count = not_ready_count = hopeless_count = 0;
    CHECK_OK(service_open(&stage.service, &config));
    *state = &stage;
    return 0;
}

static int close_stage(void **state)
{
    struct stage *stage = *state;

    for (int i = 0; i < 4; i++) {
        player_leave(&stage->players[i]);
    }
    service_close(stage->service);
    return 0;
}

static void join_two(struct stage *stage)
{
    player_join(&stage->players[0], service_worker_port(stage->service));
    player_join(&stage->players[1], service_worker_port(stage->service));
    lock();
    CHECK(wait_for(&ready_count, 1));
    unlock();
}

static struct player *by_rank(struct stage *stage, uint32_t rank)
{
    return &stage->players[stage->players[0].rank == rank ? 0 : 1];
}

/* ---- tests ---- */

static void test_a_request_is_refused_until_a_group_is_ready_and_served_then(void **state)
{
    struct stage *stage = *state;
    struct seen seen;
    struct request *request = make(stage->service, &seen, 2000, 20, "");

    CHECK_FAILS(service_submit_take(stage->service, request), STATUS_UNAVAILABLE,
                "no worker group is ready");
    join_two(stage);
    CHECK(service_is_ready(stage->service) && service_is_alive(stage->service));
    CHECK_OK(service_submit_take(stage->service, request));
    lock();
    CHECK(wait_for(&seen.ended, 1));
    unlock();
    CHECK(seen.failure.code == STATUS_OK && seen.dones == 1 && seen.tokens == 20);
    CHECK(seen.reason == FINISH_LENGTH && seen.usage.completion_tokens == 20);
    CHECK(seen.usage.propagated_tokens == 400);
    for (int i = 0; i < 20; i++) {
        CHECK(seen.ids[i] == (uint32_t)i % 9);
    }
    CHECK(seen.progress >= 3 && seen.last.phase == PHASE_DECODE);
    CHECK(service_steps(stage->service) > 0);
}

static void test_a_request_without_a_token_survives_a_lost_rank(void **state)
{
    struct stage *stage = *state;
    struct seen seen;
    struct player *lost;

    join_two(stage);
    lock();
    stage->players[0].hold = stage->players[1].hold = true;
    unlock();
    CHECK_OK(service_submit_take(stage->service, make(stage->service, &seen, 5000, 20, "")));
    lock();
    CHECK(wait_for(&stage->players[0].plans, 1));
    lost = by_rank(stage, 1);
    unlock();
    player_leave(lost);
    lock();
    CHECK(wait_for(&not_ready_count, 1));
    CHECK(!seen.ended && seen.last.phase == PHASE_QUEUED && seen.last.queue_position == 1);
    by_rank(stage, 0)->hold = false;
    unlock();
    CHECK(!service_is_ready(stage->service));
    player_join(&stage->players[2], service_worker_port(stage->service));
    lock();
    CHECK(wait_for(&ready_count, 2));
    CHECK(wait_for(&seen.ended, 1));
    CHECK(seen.failure.code == STATUS_OK && seen.tokens == 20 && seen.dones == 1);
    unlock();
}

static void test_a_lost_rank_fails_who_has_a_token_and_a_new_one_serves_again(void **state)
{
    struct stage *stage = *state;
    struct seen seen;
    double begin;

    join_two(stage);
    CHECK_OK(service_submit_take(stage->service, make(stage->service, &seen, 500, 9000, "")));
    lock();
    CHECK(wait_for(&seen.tokens, 1));
    unlock();
    begin = service_now();
    player_leave(by_rank(stage, 1));
    lock();
    CHECK(wait_for(&seen.ended, 1));
    CHECK(service_now() - begin < 2000);
    CHECK(seen.failure.code == STATUS_UNAVAILABLE && seen.dones == 0);
    CHECK(strstr(seen.failure.text, "rank 1 of group 0 (played, process 4)"));
    CHECK(wait_for(&not_ready_count, 1));
    unlock();
    CHECK(!service_is_ready(stage->service));
    player_join(&stage->players[2], service_worker_port(stage->service));
    lock();
    CHECK(wait_for(&ready_count, 2));
    unlock();
    CHECK_OK(service_submit_take(stage->service, make(stage->service, &seen, 500, 5, "")));
    lock();
    CHECK(wait_for(&seen.ended, 1));
    CHECK(seen.failure.code == STATUS_OK && seen.tokens == 5);
    unlock();
}

static void test_a_rank_that_says_bye_is_named_as_told_to_stop(void **state)
{
    const Winnow__V1__WorkerBye bye = WINNOW__V1__WORKER_BYE__INIT;
    struct stage *stage = *state;
    struct seen seen;

    join_two(stage);
    CHECK_OK(service_submit_take(stage->service, make(stage->service, &seen, 500, 9000, "")));
    lock();
    CHECK(wait_for(&seen.tokens, 1));
    send_message(by_rank(stage, 1), WORKER_BYE, &bye.base);
    CHECK(wait_for(&seen.ended, 1));
    CHECK(seen.failure.code == STATUS_UNAVAILABLE);
    CHECK(strstr(seen.failure.text, "rank 1 of group 0 (played, process 4) was told to stop"));
    unlock();
}

static void test_a_service_whose_steps_do_not_end_is_not_alive(void **state)
{
    struct service_config config = config_of();
    struct stage stage = {0};
    struct seen seen;

    (void)state;
    ready_count = 0;
    config.stall_ms = 200;
    CHECK_OK(service_open(&stage.service, &config));
    join_two(&stage);
    lock();
    stage.players[0].hold = stage.players[1].hold = true;
    unlock();
    double idle = service_now();
    while (service_now() - idle < 2 * config.stall_ms) {
        CHECK(service_is_alive(stage.service)); /* there is nothing to do */
    }
    CHECK_OK(service_submit_take(stage.service, make(stage.service, &seen, 500, 9, "r")));
    lock();
    CHECK(wait_for(&stage.players[0].plans, 1));
    unlock();
    double begin = service_now();
    while (service_is_alive(stage.service)) {
        CHECK(service_now() - begin < WAIT_MS);
    }
    CHECK(service_abort(stage.service, "", "r"));
    while (!service_is_alive(stage.service)) {
        CHECK(service_now() - begin < 2 * WAIT_MS); /* nothing runs, so nothing is overdue */
    }
    close_stage((void *[]){&stage});
}

static void test_a_cancel_in_prefill_ends_the_request_at_once(void **state)
{
    struct stage *stage = *state;
    struct seen seen;
    struct request *request;
    uint64_t handle;

    join_two(stage);
    request = make(stage->service, &seen, 50000, 20, "");
    handle = request->handle;
    lock();
    stage->players[0].hold = stage->players[1].hold = true;
    unlock();
    CHECK_OK(service_submit_take(stage->service, request));
    lock();
    CHECK(wait_for(&stage->players[0].plans, 1));
    unlock();
    service_cancel(stage->service, handle);
    service_cancel(stage->service, handle + 1000);
    lock();
    CHECK(wait_for(&seen.ended, 1));
    CHECK(seen.failure.code == STATUS_CANCELLED && seen.tokens == 0 && seen.dones == 0);
    unlock();
}

static void test_a_request_id_lives_once_and_can_be_aborted(void **state)
{
    struct stage *stage = *state;
    struct seen seen[2];
    struct request *second;

    join_two(stage);
    lock();
    stage->players[0].hold = true;
    unlock();
    CHECK(!service_abort(stage->service, "", "mine"));
    CHECK_OK(service_submit_take(stage->service, make(stage->service, &seen[0], 100, 20, "mine")));
    second = make(stage->service, &seen[1], 100, 20, "mine");
    CHECK_FAILS(service_submit_take(stage->service, second), STATUS_INVALID,
                "request_id: \"mine\" is the name of a running request");
    CHECK(!service_abort(stage->service, "somebody", "mine"));
    CHECK(service_abort(stage->service, "", "mine"));
    lock();
    CHECK(wait_for(&seen[0].ended, 1));
    CHECK(seen[0].failure.code == STATUS_OK && seen[0].reason == FINISH_ABORTED);
    unlock();
    CHECK_OK(service_submit_take(stage->service, second));
    CHECK(service_abort(stage->service, "", "mine"));
    lock(); /* its sink writes to this frame until it has ended */
    CHECK(wait_for(&seen[1].ended, 1));
    CHECK(seen[1].reason == FINISH_ABORTED);
    unlock();
}

static void test_a_request_id_is_its_callers_own(void **state)
{
    struct stage *stage = *state;
    struct seen seen[2];
    struct request *requests[2];

    join_two(stage);
    lock();
    stage->players[0].hold = true;
    unlock();
    for (int i = 0; i < 2; i++) {
        requests[i] = make(stage->service, &seen[i], 100, 20, "same");
        snprintf(requests[i]->caller, sizeof(requests[i]->caller), i ? "bob" : "alice");
        CHECK_OK(service_submit_take(stage->service, requests[i]));
    }
    CHECK(!service_abort(stage->service, "", "same"));
    CHECK(service_abort(stage->service, "bob", "same"));
    lock();
    CHECK(wait_for(&seen[1].ended, 1) && seen[1].reason == FINISH_ABORTED);
    CHECK(!seen[0].ended);
    unlock();
    CHECK(service_abort(stage->service, "alice", "same"));
    lock();
    CHECK(wait_for(&seen[0].ended, 1) && seen[0].reason == FINISH_ABORTED);
    unlock();
}

struct asked {
    int replies;
    uint32_t n_groups, n_workers, running, unfinished;
    enum group_state group;
    enum worker_state worker;
    bool draining;
};

static void on_status(const struct service_status *status, void *context)
{
    struct asked *asked = context;

    lock();
    asked->n_groups = status->n_groups;
    asked->n_workers = status->groups[0].n_workers;
    asked->group = status->groups[0].state;
    asked->worker = status->groups[0].workers[0].state;
    asked->running = status->running_requests;
    asked->draining = status->draining;
    asked->replies++;
    unlock();
}

static void on_drained(uint32_t unfinished, void *context)
{
    struct asked *asked = context;

    lock();
    asked->unfinished = unfinished;
    asked->replies++;
    unlock();
}

static void test_a_drain_refuses_new_requests_and_fails_the_rest_in_time(void **state)
{
    struct stage *stage = *state;
    struct asked drain = {0};
    struct asked asked = {0};
    struct seen seen[2];
    struct request *late;

    join_two(stage);
    lock();
    stage->players[0].hold = true;
    unlock();
    CHECK_OK(service_submit_take(stage->service, make(stage->service, &seen[0], 100, 20, "")));
    service_status(stage->service, on_status, &asked);
    lock();
    CHECK(wait_for(&asked.replies, 1));
    CHECK(asked.n_groups == 1 && asked.n_workers == 2 && asked.running == 1);
    CHECK(asked.group == GROUP_READY && asked.worker == WORKER_STATE_READY && !asked.draining);
    unlock();
    service_drain(stage->service, 200, on_drained, &drain);
    late = make(stage->service, &seen[1], 100, 20, "");
    CHECK_FAILS(service_submit_take(stage->service, late), STATUS_UNAVAILABLE, "draining");
    request_free(late);
    lock();
    CHECK(wait_for(&drain.replies, 1));
    CHECK(drain.unfinished == 1 && seen[0].ended == 1);
    CHECK(strstr(seen[0].failure.text, "draining"));
    CHECK(wait_for(&not_ready_count, 1));
    unlock();
}

static void test_a_worker_of_another_build_is_told_so(void **state)
{
    struct stage *stage = *state;
    struct player *player = &stage->players[0];

    player->build = "0.0.1";
    player_join(player, service_worker_port(stage->service));
    lock();
    CHECK(wait_for(&player->ended, 1));
    CHECK(player->end.code == STATUS_INVALID && strstr(player->end.text, "build 0.0.1 differs"));
    unlock();
}

static void test_requests_still_running_at_the_end_are_failed(void **state)
{
    struct stage *stage = *state;
    struct service_config config = config_of();
    struct seen seen;

    join_two(stage);
    lock();
    stage->players[0].hold = true;
    unlock();
    CHECK_OK(service_submit_take(stage->service, make(stage->service, &seen, 100, 20, "")));
    service_close(stage->service);
    CHECK(seen.ended == 1 && strstr(seen.failure.text, "shutting down"));
    for (int i = 0; i < 2; i++) {
        player_leave(&stage->players[i]);
    }
    CHECK_OK(service_open(&stage->service, &config));
}

static void test_a_local_worker_that_cannot_start_is_hopeless(void **state)
{
    struct service_config config = config_of();
    struct service *service;

    (void)state;
    config.local = (struct service_local){.n = 1, .executable = "/bin/false", .model = "none"};
    CHECK_OK(service_open(&service, &config));
    lock();
    CHECK(wait_for(&hopeless_count, 1));
    unlock();
    service_close(service);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            test_a_request_is_refused_until_a_group_is_ready_and_served_then, open_stage,
            close_stage),
        cmocka_unit_test_setup_teardown(test_a_request_without_a_token_survives_a_lost_rank,
                                        open_stage, close_stage),
        cmocka_unit_test_setup_teardown(
            test_a_lost_rank_fails_who_has_a_token_and_a_new_one_serves_again, open_stage,
            close_stage),
        cmocka_unit_test_setup_teardown(test_a_rank_that_says_bye_is_named_as_told_to_stop,
                                        open_stage, close_stage),
        cmocka_unit_test(test_a_service_whose_steps_do_not_end_is_not_alive),
        cmocka_unit_test_setup_teardown(test_a_cancel_in_prefill_ends_the_request_at_once,
                                        open_stage, close_stage),
        cmocka_unit_test_setup_teardown(test_a_request_id_is_its_callers_own, open_stage,
                                        close_stage),
        cmocka_unit_test_setup_teardown(test_a_request_id_lives_once_and_can_be_aborted, open_stage,
                                        close_stage),
        cmocka_unit_test_setup_teardown(
            test_a_drain_refuses_new_requests_and_fails_the_rest_in_time, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(test_a_worker_of_another_build_is_told_so, open_stage,
                                        close_stage),
        cmocka_unit_test_setup_teardown(test_requests_still_running_at_the_end_are_failed,
                                        open_stage, close_stage),
        cmocka_unit_test_setup_teardown(test_a_local_worker_that_cannot_start_is_hopeless,
                                        open_stage, close_stage),
    };
    int failed;

    rpc_init();
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    rpc_fini();
    return failed;
}
