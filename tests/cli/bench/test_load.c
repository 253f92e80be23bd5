/* Calls against a server in this process that answers, fails, sends rubbish or stays silent. */
#include "cli/bench/load.h"
#include "cli/interrupt.h"
#include "tests/check.h"
#include "winnow/v1/inference.pb-c.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum behaviour { ANSWER = 'a', FAIL = 'f', RUBBISH = 'r', SILENCE = 's', HALF = 'h' };

static struct {
    struct rpc_server *server;
    struct rpc_client *clients[2];
} world;

/* What the pack callback does. */
struct plan {
    const char *behaviours; /* one a request; the last goes on */
    size_t refuse_at;       /* this request cannot be packed; SIZE_MAX: all can */
    size_t signal_at;       /* SIGINT comes with this one */
};

static void send_tokens(struct rpc_call *call)
{
    uint32_t ids[] = {7};
    uint8_t data[64];
    Winnow__V1__GenerateResponse response;
    Winnow__V1__Tokens tokens;

    winnow__v1__generate_response__init(&response);
    winnow__v1__tokens__init(&tokens);
    response.event_case = WINNOW__V1__GENERATE_RESPONSE__EVENT_TOKENS;
    response.tokens = &tokens;
    tokens.ids = ids;
    tokens.n_ids = 1;
    rpc_call_send(call, data, winnow__v1__generate_response__pack(&response, data));
}

static void send_done(struct rpc_call *call)
{
    uint8_t data[128];
    Winnow__V1__GenerateResponse response;
    Winnow__V1__Done done;
    Winnow__V1__Usage usage;
    Winnow__V1__Timing timing;

    winnow__v1__generate_response__init(&response);
    winnow__v1__done__init(&done);
    winnow__v1__usage__init(&usage);
    winnow__v1__timing__init(&timing);
    response.event_case = WINNOW__V1__GENERATE_RESPONSE__EVENT_DONE;
    response.done = &done;
    done.usage = &usage;
    done.timing = &timing;
    rpc_call_send(call, data, winnow__v1__generate_response__pack(&response, data));
}

static void on_request(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    (void)context;
    switch (bytes ? (enum behaviour)data[0] : SILENCE) {
    case ANSWER:
        send_tokens(call);
        send_tokens(call);
        send_done(call);
        rpc_call_finish(call, STATUS_OK, NULL, NULL, 0);
        break;
    case FAIL:
        rpc_call_finish(call, STATUS_EXHAUSTED, "full", NULL, 0);
        break;
    case RUBBISH:
        rpc_call_send(call, (const uint8_t *)"\xff\xff", 2);
        break;
    case HALF:
        send_tokens(call);
        rpc_call_finish(call, STATUS_OK, NULL, NULL, 0);
        break;
    case SILENCE:
        break; /* the call hangs until it is cancelled */
    }
}

static int set_up(void **state)
{
    static const struct rpc_handler handler = {.path = "/winnow.v1.Inference/Generate",
                                               .on_message = on_request};
    const struct rpc_server_config config = {
        .listen = "127.0.0.1:0", .handlers = &handler, .n_handlers = 1, .completion_threads = 1};
    char address[64];

    (void)state;
    CHECK_OK(interrupt_open()); /* before any thread */
    rpc_init();
    CHECK_OK(rpc_server_start(&world.server, &config));
    snprintf(address, sizeof(address), "127.0.0.1:%d", rpc_server_port(world.server));
    for (int i = 0; i < 2; i++) {
        CHECK_OK(rpc_client_open(&world.clients[i], address, NULL));
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        rpc_client_close(world.clients[i]);
    }
    rpc_server_stop(world.server, 0);
    rpc_fini();
    interrupt_close();
    return 0;
}

static status pack(void *context, size_t i, uint8_t **data, size_t *bytes)
{
    const struct plan *plan = context;
    size_t n = strlen(plan->behaviours);

    if (i == plan->refuse_at) {
        return status_fail(STATUS_INVALID, "request %zu cannot be made", i);
    }
    if (i == plan->signal_at) {
        kill(getpid(), SIGINT);
    }
    uint8_t *request = malloc(1);
    if (!request) {
        return status_fail(STATUS_EXHAUSTED, "out of memory");
    }
    *request = (uint8_t)plan->behaviours[i < n ? i : n - 1];
    *data = request;
    *bytes = 1;
    return STATUS_OK;
}

static struct load_config config_of(struct plan *plan, size_t n, size_t max_running)
{
    return (struct load_config){.clients = world.clients,
                                .n_clients = 2,
                                .n = n,
                                .max_running = max_running,
                                .pack = pack,
                                .context = plan};
}

static void test_every_request_is_answered_and_no_more_run_than_may(void **state)
{
    struct plan plan = {"a", SIZE_MAX, SIZE_MAX};
    struct load_config config = config_of(&plan, 200, 7);
    struct load_outcome outcome;

    (void)state;
    CHECK_OK(load_run(&outcome, &config));
    CHECK(outcome.n == 200 && !outcome.interrupted && outcome.peak_running <= 7);
    CHECK(outcome.peak_running >= 1 && outcome.duration_s > 0 && outcome.cpu_s > 0);
    for (size_t i = 0; i < outcome.n; i++) {
        const struct record *r = &outcome.records[i];
        CHECK(record_ok(r) && r->n_tokens == 2 && r->n_gaps == 1);
        CHECK(r->sent_ms <= r->first_ms && r->first_ms <= r->end_ms && r->due_ms <= r->sent_ms);
    }
    load_free(&outcome);
}

static void test_nothing_is_sent_before_it_is_due(void **state)
{
    static const double due_s[] = {0, 0.01, 0.05, 0.05};
    struct plan plan = {"a", SIZE_MAX, SIZE_MAX};
    struct load_config config = config_of(&plan, 4, 4);
    struct load_outcome outcome;

    (void)state;
    config.due_s = due_s;
    CHECK_OK(load_run(&outcome, &config));
    for (size_t i = 0; i < 4; i++) {
        CHECK(outcome.records[i].due_ms == due_s[i] * 1000);
        CHECK(outcome.records[i].sent_ms >= due_s[i] * 1000);
    }
    load_free(&outcome);
}

static void test_each_way_to_fail_is_told_apart(void **state)
{
    struct plan plan = {"frhas", SIZE_MAX, SIZE_MAX};
    struct load_config config = config_of(&plan, 5, 5);
    struct load_outcome outcome;

    (void)state;
    config.deadline_ms = 2000; /* ends the silent one */
    CHECK_OK(load_run(&outcome, &config));
    const struct record *r = outcome.records;
    CHECK(r[0].code == STATUS_EXHAUSTED && strcmp(r[0].error, "full") == 0);
    CHECK(r[1].code == STATUS_INTERNAL && strstr(r[1].error, "is no response"));
    CHECK(r[2].code == STATUS_INTERNAL && strstr(r[2].error, "whole answer"));
    CHECK(record_ok(&r[3]));
    CHECK(r[4].code == STATUS_DEADLINE);
    load_free(&outcome);
}

static void test_a_request_that_cannot_be_made_ends_the_run(void **state)
{
    struct plan plan = {"s", 3, SIZE_MAX};
    struct load_config config = config_of(&plan, 10, 10);
    struct load_outcome outcome;

    (void)state;
    CHECK_FAILS(load_run(&outcome, &config), STATUS_INVALID, "request 3 cannot be made");
    CHECK(outcome.records == NULL);
}

static void test_an_interrupt_cancels_what_runs(void **state)
{
    struct plan plan = {"as", SIZE_MAX, 4};
    struct load_config config = config_of(&plan, 1000, 5);
    struct load_outcome outcome;

    (void)state;
    CHECK_OK(load_run(&outcome, &config));
    CHECK(outcome.interrupted && outcome.n == 1000);
    size_t cancelled = 0;
    for (size_t i = 1; i < outcome.n; i++) {
        const struct record *r = &outcome.records[i];
        CHECK(r->sent == r->over); /* none is left behind */
        cancelled += r->code == STATUS_CANCELLED ? 1 : 0;
    }
    CHECK(cancelled >= 4 && cancelled <= 5);
    load_free(&outcome);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_request_is_answered_and_no_more_run_than_may),
        cmocka_unit_test(test_nothing_is_sent_before_it_is_due),
        cmocka_unit_test(test_each_way_to_fail_is_told_apart),
        cmocka_unit_test(test_a_request_that_cannot_be_made_ends_the_run),
        cmocka_unit_test(test_an_interrupt_cancels_what_runs),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
