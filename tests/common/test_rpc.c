/* The C server and the C client in one process, over loopback. */
#include "common/rpc.h"
#include "tests/check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATIENCE_MS = 10000, SMALL = 1024, PIECES = 100, PIECE = 100000 };

/* ---- a server of small services ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int opened, done, cancelled, drained;
} seen = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0, 0};

static void count(int *what)
{
    pthread_mutex_lock(&seen.lock);
    ++*what;
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.lock);
}

/* False: it did not get there in time. */
static bool await(const int *what, int wanted)
{
    struct timespec until;
    int error = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_MS / 1000;
    pthread_mutex_lock(&seen.lock);
    while (*what < wanted && !error) {
        error = pthread_cond_timedwait(&seen.changed, &seen.lock, &until);
    }
    bool there = *what >= wanted;
    pthread_mutex_unlock(&seen.lock);
    return there;
}

static void on_done(struct rpc_call *call, bool cancelled, void *context)
{
    (void)call;
    (void)context;
    count(&seen.done);
    if (cancelled) {
        count(&seen.cancelled);
    }
}

static void on_drained(struct rpc_call *call, void *context)
{
    (void)call;
    (void)context;
    count(&seen.drained);
}

static void echo(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    (void)context;
    rpc_call_send(call, data, bytes);
    rpc_call_finish(call, STATUS_OK, NULL, NULL, 0);
}

static void echo_more(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    (void)context;
    rpc_call_send(call, data, bytes);
}

static void finish(struct rpc_call *call, void *context)
{
    (void)context;
    rpc_call_finish(call, STATUS_OK, NULL, NULL, 0);
}

static void pieces(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    static uint8_t piece[PIECE];

    (void)data;
    (void)bytes;
    (void)context;
    for (int i = 0; i < PIECES; i++) {
        uint8_t *copy = malloc(PIECE);
        memcpy(copy, piece, PIECE);
        memset(copy, i, 4);
        rpc_call_send(call, copy, PIECE);
        free(copy);
    }
    rpc_call_finish(call, STATUS_OK, NULL, NULL, 0);
}

static void fail_call(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    static const char *const trailing[] = {"retry-after-ms", "250", "Bad Key", "dropped"};
    char text[128];

    (void)context;
    snprintf(text, sizeof(text), "no room for \"%.*s\": 100%% \xc3\xa4", (int)bytes,
             (const char *)data);
    rpc_call_finish(call, STATUS_EXHAUSTED, text, trailing, 2);
    rpc_call_finish(call, STATUS_INTERNAL, "the first finish counts", NULL, 0);
    if (rpc_call_send(call, data, bytes)) {
        count(&seen.opened); /* a send behind the finish: the test looks for it */
    }
}

/* Keeps the call until the client or the server gives up. */
static void hold(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    (void)context;
    rpc_call_send(call, data, bytes);
    count(&seen.opened);
}

static void describe(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    const char *agent = rpc_call_metadata(call, "user-agent");
    char text[256];

    (void)data;
    (void)bytes;
    (void)context;
    snprintf(text, sizeof(text), "%s|%s|%s|%s", rpc_call_peer(call), agent ? "agent" : "none",
             rpc_call_metadata(call, "nothing") ? "something" : "nothing",
             rpc_call_time_left_ms(call) == INT64_MAX ? "never" : "soon");
    rpc_call_send(call, (const uint8_t *)text, strlen(text));
    rpc_call_finish(call, STATUS_OK, NULL, NULL, 0);
}

static void who(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    (void)data;
    (void)bytes;
    (void)context;
    CHECK(rpc_call_certificate(call) == NULL);
    rpc_call_send(call, (const uint8_t *)rpc_call_caller(call), strlen(rpc_call_caller(call)));
    rpc_call_finish(call, STATUS_OK, NULL, NULL, 0);
}

static const struct rpc_handler handlers[] = {
    {.path = "/t/Who", .on_message = who, .on_done = on_done},
    {.path = "/t/Open", .on_message = who, .on_done = on_done, .access = RPC_ACCESS_OPEN},
    {.path = "/t/Admin", .on_message = who, .on_done = on_done, .access = RPC_ACCESS_ADMIN},
    {.path = "/t/Echo", .on_message = echo, .on_done = on_done},
    {.path = "/t/Small", .on_message = echo, .on_done = on_done, .max_message = SMALL},
    {.path = "/t/Pieces", .on_message = pieces, .on_done = on_done, .on_drained = on_drained},
    {.path = "/t/Fail", .on_message = fail_call, .on_done = on_done},
    {.path = "/t/Hold", .on_message = hold, .on_done = on_done, .on_drained = on_drained},
    {.path = "/t/Describe", .on_message = describe, .on_done = on_done},
    {.path = "/t/Talk",
     .on_message = echo_more,
     .on_half_close = finish,
     .on_done = on_done,
     .client_streaming = true},
};

static const struct rpc_server_config config = {
    .listen = "127.0.0.1:0",
    .handlers = handlers,
    .n_handlers = sizeof(handlers) / sizeof(handlers[0]),
    .completion_threads = 2,
    .max_message = 2 << 20,
};

static struct rpc_server *server;
static struct rpc_client *client;

static int set_up(void **state)
{
    char target[32];

    (void)state;
    seen.opened = seen.done = seen.cancelled = seen.drained = 0;
    CHECK_OK(rpc_server_start(&server, &config));
    snprintf(target, sizeof(target), "127.0.0.1:%d", rpc_server_port(server));
    CHECK_OK(rpc_client_open(&client, target, NULL));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    rpc_client_close(client);
    rpc_server_stop(server, 0);
    client = NULL;
    server = NULL;
    return 0;
}

/* ---- a client that counts ---- */

struct tally {
    int messages;
    size_t bytes;
    bool in_order;
    int over;
    struct failure end;
};

static void tally_message(struct rpc_stream *stream, const uint8_t *data, size_t bytes,
                          void *context)
{
    struct tally *tally = context;

    (void)stream;
    tally->in_order = tally->in_order && bytes && data[0] == (uint8_t)tally->messages;
    tally->bytes += bytes;
    count(&tally->messages);
}

static void tally_done(struct rpc_stream *stream, const struct failure *end, void *context)
{
    struct tally *tally = context;

    (void)stream;
    tally->end = *end;
    count(&tally->over);
}

static struct rpc_stream *open_call(struct tally *tally, const char *path, int64_t deadline_ms)
{
    struct rpc_events events = {tally_message, tally_done, tally};
    struct rpc_stream *stream = NULL;

    *tally = (struct tally){.in_order = true};
    CHECK_OK(rpc_stream_open(&stream, client, path, deadline_ms, &events));
    return stream;
}

static status unary(const char *path, const void *data, size_t bytes, char *reply, size_t size)
{
    uint8_t *out = NULL;
    size_t out_bytes = 0;
    status st = rpc_unary(client, path, PATIENCE_MS, data, bytes, &out, &out_bytes);

    if (!st) {
        CHECK(out_bytes < size);
        memcpy(reply, out, out_bytes);
        reply[out_bytes] = '\0';
        free(out);
    }
    return st;
}

/* ---- tests ---- */

static void test_a_unary_call_returns_what_the_handler_sent(void **state)
{
    char reply[64];

    (void)state;
    CHECK_OK(unary("/t/Echo", "hello", 5, reply, sizeof(reply)));
    CHECK(strcmp(reply, "hello") == 0);
    CHECK_OK(unary("/t/Echo", "", 0, reply, sizeof(reply)));
    CHECK(strcmp(reply, "") == 0);
    CHECK(await(&seen.done, 2) && seen.cancelled == 0);
}

static void test_a_handler_knows_peer_metadata_and_deadline(void **state)
{
    char reply[256];

    (void)state;
    CHECK_OK(unary("/t/Describe", "", 0, reply, sizeof(reply)));
    CHECK(strncmp(reply, "ipv4:127.0.0.1:", 15) == 0);
    CHECK(strstr(reply, "|agent|nothing|soon"));
}

static void test_a_failure_crosses_with_its_sentence_and_the_first_finish_counts(void **state)
{
    char reply[64];

    (void)state;
    CHECK_FAILS(unary("/t/Fail", "x", 1, reply, sizeof(reply)), STATUS_EXHAUSTED,
                "no room for \"x\": 100% \xc3\xa4");
    CHECK(await(&seen.done, 1) && seen.opened == 0);
}

static void test_an_unknown_method_is_unimplemented(void **state)
{
    char reply[64];

    (void)state;
    CHECK_FAILS(unary("/t/Nothing", "x", 1, reply, sizeof(reply)), STATUS_UNIMPLEMENTED,
                "unknown method /t/Nothing");
}

static void test_messages_over_a_limit_are_refused(void **state)
{
    static uint8_t data[(2 << 20) + 1];
    char reply[SMALL + 1];

    (void)state;
    CHECK_OK(unary("/t/Small", data, SMALL, reply, sizeof(reply)));
    CHECK_FAILS(unary("/t/Small", data, SMALL + 1, reply, sizeof(reply)), STATUS_EXHAUSTED,
                "1025 bytes exceeds the limit of 1024");
    CHECK_FAILS(unary("/t/Fail", data, sizeof(data), reply, sizeof(reply)), STATUS_EXHAUSTED,
                "larger than max");
    CHECK(await(&seen.done, 3));
}

static void test_a_stream_arrives_in_order_and_whole(void **state)
{
    struct tally tally;
    struct rpc_stream *stream = open_call(&tally, "/t/Pieces", 0);

    (void)state;
    CHECK(rpc_stream_send(stream, (const uint8_t *)"x", 1));
    rpc_stream_half_close(stream);
    CHECK(await(&tally.over, 1));
    CHECK(tally.end.code == STATUS_OK && tally.messages == PIECES && tally.in_order);
    CHECK(tally.bytes == (size_t)PIECES * PIECE);
    rpc_stream_unref(stream);
}

static void test_both_sides_talk_until_the_client_is_done(void **state)
{
    struct tally tally;
    struct rpc_stream *stream = open_call(&tally, "/t/Talk", 0);

    (void)state;
    for (int i = 0; i < 50; i++) {
        uint8_t byte = (uint8_t)i;
        CHECK(rpc_stream_send(stream, &byte, 1));
    }
    CHECK(await(&tally.messages, 50));
    CHECK(!tally.over);
    rpc_stream_half_close(stream);
    CHECK(await(&tally.over, 1) && tally.end.code == STATUS_OK);
    CHECK(tally.messages == 50 && tally.in_order);
    CHECK(!rpc_stream_send(stream, (const uint8_t *)"x", 1));
    rpc_stream_unref(stream);
    CHECK(await(&seen.done, 1) && seen.cancelled == 0);
}

static void test_a_cancelled_call_ends_on_both_sides(void **state)
{
    struct tally tally;
    struct rpc_stream *stream = open_call(&tally, "/t/Hold", 0);

    (void)state;
    CHECK(rpc_stream_send(stream, (const uint8_t *)"", 0));
    CHECK(await(&tally.messages, 1) && await(&seen.drained, 1));
    rpc_stream_cancel(stream);
    CHECK(await(&tally.over, 1) && tally.end.code == STATUS_CANCELLED);
    CHECK(await(&seen.cancelled, 1) && seen.done == 1);
    rpc_stream_unref(stream);
}

static void test_a_deadline_ends_the_call_on_both_sides(void **state)
{
    struct tally tally;
    struct rpc_stream *stream = open_call(&tally, "/t/Hold", 100);

    (void)state;
    CHECK(rpc_stream_send(stream, (const uint8_t *)"", 0));
    rpc_stream_unref(stream); /* the call goes on without its owner */
    CHECK(await(&tally.over, 1) && tally.end.code == STATUS_DEADLINE);
    CHECK(await(&seen.cancelled, 1));
}

struct crowd {
    pthread_t thread;
    int right;
};

static void *echo_often(void *context)
{
    struct crowd *one = context;
    uint8_t *out = NULL;
    size_t bytes = 0;
    char text[32];

    for (int i = 0; i < 50; i++) {
        snprintf(text, sizeof(text), "%p %d", context, i);
        status st =
            rpc_unary(client, "/t/Echo", PATIENCE_MS, (uint8_t *)text, strlen(text), &out, &bytes);
        if (!st) {
            one->right += bytes == strlen(text) && memcmp(out, text, bytes) == 0;
            free(out);
        }
    }
    return NULL;
}

static void test_many_calls_at_a_time_do_not_mix(void **state)
{
    struct crowd crowd[16] = {{.right = 0}};
    struct tally tallies[200];
    struct rpc_stream *streams[200];

    (void)state;
    for (int i = 0; i < 200; i++) {
        streams[i] = open_call(&tallies[i], "/t/Talk", 0);
    }
    for (int i = 0; i < 16; i++) {
        CHECK(pthread_create(&crowd[i].thread, NULL, echo_often, &crowd[i]) == 0);
    }
    for (int i = 0; i < 200; i++) {
        CHECK(rpc_stream_send(streams[i], (const uint8_t *)"", 1));
        rpc_stream_half_close(streams[i]);
    }
    for (int i = 0; i < 16; i++) {
        pthread_join(crowd[i].thread, NULL);
        CHECK(crowd[i].right == 50);
    }
    for (int i = 0; i < 200; i++) {
        CHECK(await(&tallies[i].over, 1));
        CHECK(tallies[i].end.code == STATUS_OK && tallies[i].messages == 1);
        rpc_stream_unref(streams[i]);
    }
    CHECK(await(&seen.done, 200 + 16 * 50));
}

static status only_known(struct rpc_call *call, enum rpc_access access, void *context)
{
    const char *shown = rpc_call_metadata(call, "authorization");

    if (access == RPC_ACCESS_OPEN) {
        return STATUS_OK;
    }
    if (!shown || strcmp(shown, context) != 0) {
        return status_fail(STATUS_UNAUTHENTICATED, "not known");
    }
    rpc_call_set_caller(call, "carl");
    return access == RPC_ACCESS_ADMIN ? status_fail(STATUS_PERMISSION, "no") : STATUS_OK;
}

static void test_who_is_not_authorized_is_refused_before_anything_is_read(void **state)
{
    struct rpc_server_config guarded = config;
    struct rpc_identity identity = {.secret_file = NULL};
    char target[32], path[] = "/tmp/winnow_test_rpc_XXXXXX", reply[8] = "";
    static const char line[] = "me the-secret-of-this-test\n";

    (void)state;
    int fd = mkstemp(path);
    CHECK(fd >= 0 && write(fd, line, strlen(line)) == (ssize_t)strlen(line) && close(fd) == 0);
    rpc_server_stop(server, 0);
    guarded.authorize = only_known;
    guarded.context = "Bearer the-secret-of-this-test";
    CHECK_OK(rpc_server_start(&server, &guarded));
    snprintf(target, sizeof(target), "127.0.0.1:%d", rpc_server_port(server));
    for (int known = 0; known < 2; known++) {
        rpc_client_close(client);
        identity.secret_file = known ? path : NULL;
        CHECK_OK(rpc_client_open(&client, target, &identity));
        CHECK_OK(unary("/t/Open", "x", 1, reply, sizeof(reply)));
        CHECK(reply[0] == '\0');
        status st = unary("/t/Who", "x", 1, reply, sizeof(reply));
        CHECK(known ? st == STATUS_OK && strcmp(reply, "carl") == 0 : st == STATUS_UNAUTHENTICATED);
        CHECK_FAILS(unary("/t/Admin", "x", 1, reply, sizeof(reply)),
                    known ? STATUS_PERMISSION : STATUS_UNAUTHENTICATED, known ? "no" : "not known");
        CHECK_FAILS(unary("/t/None", "x", 1, reply, sizeof(reply)),
                    known ? STATUS_UNIMPLEMENTED : STATUS_UNAUTHENTICATED,
                    known ? "None" : "known");
    }
    CHECK(seen.done == 3); /* the handlers never hear of the others */
    CHECK(unlink(path) == 0);
}

static void test_an_identity_that_cannot_be_read_is_an_error(void **state)
{
    struct rpc_server_config broken = config;
    struct rpc_identity identity = {.tls = {.cert = "/nowhere", .key = "/nowhere"}};
    struct rpc_client *other;
    struct rpc_server *second;

    (void)state;
    CHECK_FAILS(rpc_client_open(&other, "127.0.0.1:1", &identity), STATUS_INVALID, "--tls-ca");
    identity.tls.ca = "/nowhere/ca";
    CHECK_FAILS(rpc_client_open(&other, "127.0.0.1:1", &identity), STATUS_NOT_FOUND, "/nowhere");
    identity.tls.cert = NULL;
    CHECK_FAILS(rpc_client_open(&other, "127.0.0.1:1", &identity), STATUS_INVALID, "together");
    identity = (struct rpc_identity){.secret_file = "/nowhere/secret"};
    CHECK_FAILS(rpc_client_open(&other, "127.0.0.1:1", &identity), STATUS_NOT_FOUND, "secret");
    broken.tls = (struct rpc_tls){.cert = "/nowhere/cert", .key = "/nowhere/key"};
    CHECK_FAILS(rpc_server_start(&second, &broken), STATUS_NOT_FOUND, "/nowhere/cert");
}

static void *stop_server(void *context)
{
    rpc_server_stop(context, PATIENCE_MS);
    return NULL;
}

static void test_a_stopping_server_lets_calls_end_in_its_grace(void **state)
{
    struct tally tally;
    struct rpc_stream *stream = open_call(&tally, "/t/Talk", 0);
    pthread_t stopper;
    char reply[8];

    (void)state;
    CHECK(rpc_stream_send(stream, (const uint8_t *)"", 1));
    CHECK(await(&tally.messages, 1));
    CHECK(pthread_create(&stopper, NULL, stop_server, server) == 0);
    status st = STATUS_OK;
    for (int i = 0; i < PATIENCE_MS && !st; i++) { /* until the news has arrived */
        usleep(1000);
        st = unary("/t/Echo", "x", 1, reply, sizeof(reply));
    }
    /* CANCELLED: the call crossed with the news. */
    CHECK(st == STATUS_UNAVAILABLE || st == STATUS_CANCELLED);
    CHECK(rpc_stream_send(stream, (const uint8_t *)"\1", 1));
    CHECK(await(&tally.messages, 2));
    rpc_stream_half_close(stream);
    CHECK(await(&tally.over, 1) && tally.end.code == STATUS_OK);
    pthread_join(stopper, NULL);
    server = NULL;
    rpc_stream_unref(stream);
}

static void test_a_server_that_goes_away_is_unavailable_and_may_come_back(void **state)
{
    struct tally tally;
    struct rpc_stream *stream = open_call(&tally, "/t/Hold", 0);
    struct rpc_server_config again = config;
    char listen[32], reply[8];

    (void)state;
    snprintf(listen, sizeof(listen), "127.0.0.1:%d", rpc_server_port(server));
    CHECK(rpc_stream_send(stream, (const uint8_t *)"", 0));
    CHECK(await(&seen.opened, 1));
    rpc_server_stop(server, 0);
    CHECK(seen.cancelled == 1);
    CHECK(await(&tally.over, 1));
    CHECK(tally.end.code == STATUS_UNAVAILABLE || tally.end.code == STATUS_CANCELLED);
    CHECK(strlen(tally.end.text) > 0);
    rpc_stream_unref(stream);
    status st = unary("/t/Echo", "x", 1, reply, sizeof(reply));
    CHECK(st == STATUS_UNAVAILABLE && strlen(status_text()) > 0);

    again.listen = listen;
    CHECK_OK(rpc_server_start(&server, &again));
    for (int i = 0; st && i < 100; i++) {
        usleep(50000); /* attempts to connect are paced */
        st = unary("/t/Echo", "x", 1, reply, sizeof(reply));
    }
    CHECK(st == STATUS_OK);
}

static void test_a_client_may_close_with_calls_under_way(void **state)
{
    struct tally tally;
    struct rpc_stream *stream = open_call(&tally, "/t/Hold", 0);

    (void)state;
    CHECK(rpc_stream_send(stream, (const uint8_t *)"", 0));
    CHECK(await(&seen.opened, 1));
    rpc_client_close(client);
    client = NULL;
    CHECK(tally.over == 1 && tally.end.code == STATUS_CANCELLED);
    CHECK(!rpc_stream_send(stream, (const uint8_t *)"x", 1));
    rpc_stream_unref(stream);
    CHECK(await(&seen.cancelled, 1));
}

static void test_an_address_that_cannot_be_used_is_an_error(void **state)
{
    struct rpc_server_config other = config;
    struct rpc_server *second;
    char listen[32];

    (void)state;
    snprintf(listen, sizeof(listen), "127.0.0.1:%d", rpc_server_port(server));
    other.listen = listen;
    CHECK_FAILS(rpc_server_start(&second, &other), STATUS_UNAVAILABLE, "in use");
    other.listen = "127.0.0.1";
    CHECK_FAILS(rpc_server_start(&second, &other), STATUS_INVALID, "not HOST:PORT");
    other.listen = "::1:0";
    CHECK_FAILS(rpc_server_start(&second, &other), STATUS_INVALID, "not HOST:PORT");
    other.listen = "127.0.0.1:80x";
    CHECK_FAILS(rpc_server_start(&second, &other), STATUS_INVALID, "not HOST:PORT");
    other.listen = "192.0.2.1:0";
    CHECK_FAILS(rpc_server_start(&second, &other), STATUS_UNAVAILABLE, "192.0.2.1:0");
}

static int init(void **state)
{
    (void)state;
    rpc_init();
    return 0;
}

static int fini(void **state)
{
    (void)state;
    rpc_fini();
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_unary_call_returns_what_the_handler_sent),
        TEST(test_a_handler_knows_peer_metadata_and_deadline),
        TEST(test_a_failure_crosses_with_its_sentence_and_the_first_finish_counts),
        TEST(test_an_unknown_method_is_unimplemented),
        TEST(test_messages_over_a_limit_are_refused),
        TEST(test_a_stream_arrives_in_order_and_whole),
        TEST(test_both_sides_talk_until_the_client_is_done),
        TEST(test_a_cancelled_call_ends_on_both_sides),
        TEST(test_a_deadline_ends_the_call_on_both_sides),
        TEST(test_many_calls_at_a_time_do_not_mix),
        TEST(test_who_is_not_authorized_is_refused_before_anything_is_read),
        TEST(test_an_identity_that_cannot_be_read_is_an_error),
        TEST(test_a_stopping_server_lets_calls_end_in_its_grace),
        TEST(test_a_server_that_goes_away_is_unavailable_and_may_come_back),
        TEST(test_a_client_may_close_with_calls_under_way),
        TEST(test_an_address_that_cannot_be_used_is_an_error),
    };

    return cmocka_run_group_tests(tests, init, fini);
}
