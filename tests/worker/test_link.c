/* The link against a real server that plays the coordinator, over loopback. */
#include "common/envelope.h"
#include "common/rpc.h"
#include "tests/check.h"
#include "winnow/v1/worker.pb-c.h"
#include "worker/link.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SEEN = 64 };

struct seen {
    int field;
    uint8_t *payload;
    size_t bytes;
};

/* Everything the worker said, and the call to answer on. */
struct coordinator {
    struct rpc_server *server;
    struct rpc_handler handler;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct rpc_call *call;
    struct seen seen[MAX_SEEN];
    int n_seen;
};

static void on_message(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    struct coordinator *c = context;
    const uint8_t *payload;
    size_t n;
    int field;

    CHECK_OK(envelope_open(&field, &payload, &n, data, bytes));
    pthread_mutex_lock(&c->mutex);
    if (c->call != call) {
        if (c->call) {
            rpc_call_unref(c->call);
        }
        rpc_call_ref(call);
        c->call = call;
    }
    if (field != WORKER_BEAT && c->n_seen < MAX_SEEN) {
        struct seen *seen = &c->seen[c->n_seen++];
        seen->field = field;
        seen->payload = malloc(n + 1);
        memcpy(seen->payload, payload, n);
        seen->bytes = n;
        pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->mutex);
}

static void on_half_close(struct rpc_call *call, void *context)
{
    (void)context;
    rpc_call_finish(call, STATUS_OK, "", NULL, 0);
}

static void start(struct coordinator *c, int port)
{
    char listen[64];

    snprintf(listen, sizeof(listen), "127.0.0.1:%d", port);
    c->handler = (struct rpc_handler){.path = "/winnow.v1.Fleet/Join",
                                      .on_message = on_message,
                                      .on_half_close = on_half_close,
                                      .client_streaming = true,
                                      .context = c};
    const struct rpc_server_config config = {
        .listen = listen, .handlers = &c->handler, .n_handlers = 1, .completion_threads = 1};
    CHECK_OK(rpc_server_start(&c->server, &config));
}

static void stop(struct coordinator *c)
{
    pthread_mutex_lock(&c->mutex);
    if (c->call) {
        rpc_call_unref(c->call);
        c->call = NULL;
    }
    pthread_mutex_unlock(&c->mutex);
    rpc_server_stop(c->server, 0);
}

/* The n-th thing the worker said (heartbeats aside), which is of this kind. */
static const struct seen *expect(struct coordinator *c, int n, int field)
{
    pthread_mutex_lock(&c->mutex);
    while (c->n_seen <= n) {
        pthread_cond_wait(&c->changed, &c->mutex);
    }
    pthread_mutex_unlock(&c->mutex);
    CHECK(c->seen[n].field == field);
    return &c->seen[n];
}

static void say(struct coordinator *c, int field, const ProtobufCMessage *message)
{
    uint8_t payload[1024];
    uint8_t *data;
    size_t bytes;
    size_t n = protobuf_c_message_pack(message, payload);

    CHECK_OK(envelope_wrap(&data, &bytes, field, payload, n));
    CHECK(rpc_call_send(c->call, data, bytes));
    free(data);
}

static void say_assign(struct coordinator *c, uint64_t epoch)
{
    Winnow__V1__Assignment m = WINNOW__V1__ASSIGNMENT__INIT;

    m.rank = 1;
    m.size = 2;
    m.epoch = epoch;
    m.dtype.data = (uint8_t *)"bfloat16";
    m.dtype.len = 8;
    m.max_context = 77;
    say(c, COORDINATOR_ASSIGN, &m.base);
}

static void say_plan(struct coordinator *c, uint64_t epoch)
{
    Winnow__V1__Plan m = WINNOW__V1__PLAN__INIT;

    m.epoch = epoch;
    say(c, COORDINATOR_PLAN, &m.base);
}

static void say_leave(struct coordinator *c, uint64_t epoch)
{
    Winnow__V1__LeaveGroup m = WINNOW__V1__LEAVE_GROUP__INIT;

    m.epoch = epoch;
    say(c, COORDINATOR_LEAVE, &m.base);
}

static void say_store(struct coordinator *c, uint64_t epoch, char *key, char *value)
{
    Winnow__V1__StoreEntry m = WINNOW__V1__STORE_ENTRY__INIT;

    m.epoch = epoch;
    m.key.data = (uint8_t *)key;
    m.key.len = strlen(key);
    m.value.data = (uint8_t *)value;
    m.value.len = strlen(value);
    say(c, COORDINATOR_STORE, &m.base);
}

static void begin(struct coordinator *c, struct link **link)
{
    char target[64];

    *c = (struct coordinator){.mutex = PTHREAD_MUTEX_INITIALIZER,
                              .changed = PTHREAD_COND_INITIALIZER};
    rpc_init();
    start(c, 0);
    snprintf(target, sizeof(target), "127.0.0.1:%d", rpc_server_port(c->server));
    const struct link_config config = {.coordinator = target,
                                       .host = "here",
                                       .device = "cpu",
                                       .model_fingerprint = 42,
                                       .fixed_rank = -1,
                                       .cohort = "",
                                       .drain_ms = 60000};
    CHECK_OK(link_open(link, &config));
}

static void end(struct coordinator *c, struct link *link)
{
    link_close(link);
    stop(c);
    for (int i = 0; i < c->n_seen; i++) {
        free(c->seen[i].payload);
    }
    rpc_fini();
}

static struct link_event next(struct link *link, enum link_kind kind)
{
    struct link_event event;

    link_next(link, &event);
    CHECK(event.kind == kind);
    return event;
}

static void test_a_worker_says_hello_and_is_assigned(void **state)
{
    struct coordinator c;
    struct link *link;

    (void)state;
    begin(&c, &link);
    const struct seen *seen = expect(&c, 0, WORKER_HELLO);
    Winnow__V1__WorkerHello *hello =
        winnow__v1__worker_hello__unpack(NULL, seen->bytes, seen->payload);
    CHECK(hello && hello->model_fingerprint == 42 && hello->host.len == 4);
    winnow__v1__worker_hello__free_unpacked(hello, NULL);
    say_assign(&c, 5);
    struct link_event event = next(link, LINK_ASSIGN);
    CHECK(event.assign.epoch == 5 && event.assign.rank == 1 && event.assign.max_context == 77);
    CHECK(event.assign.dtype == DTYPE_BF16);
    end(&c, link);
}

static void test_leaving_drops_plans_that_wait(void **state)
{
    struct coordinator c;
    struct link *link;

    (void)state;
    begin(&c, &link);
    expect(&c, 0, WORKER_HELLO);
    say_plan(&c, 1); /* before any assignment: of no epoch, dropped */
    say_assign(&c, 1);
    next(link, LINK_ASSIGN);
    say_plan(&c, 1);
    free(next(link, LINK_PLAN).plan);
    say_leave(&c, 9); /* another epoch's: ignored */
    say_plan(&c, 1);
    say_plan(&c, 1);
    free(next(link, LINK_PLAN).plan);
    say_leave(&c, 1);
    struct link_event event;
    do { /* the second plan may have been taken before the leave came */
        link_next(link, &event);
        free(event.plan);
    } while (event.kind == LINK_PLAN);
    CHECK(event.kind == LINK_LEAVE);
    end(&c, link);
}

static void test_keys_of_the_rendezvous_are_relayed(void **state)
{
    struct coordinator c;
    struct link *link;
    void *value;
    size_t bytes;

    (void)state;
    begin(&c, &link);
    expect(&c, 0, WORKER_HELLO);
    say_assign(&c, 3);
    next(link, LINK_ASSIGN);
    struct comm_store store = link_store(link);
    CHECK_OK(store.set(store.context, "mine", "abc", 3));
    const struct seen *seen = expect(&c, 1, WORKER_STORE);
    Winnow__V1__StoreEntry *entry =
        winnow__v1__store_entry__unpack(NULL, seen->bytes, seen->payload);
    CHECK(entry && entry->epoch == 3 && entry->value.len == 3);
    winnow__v1__store_entry__free_unpacked(entry, NULL);
    say_store(&c, 2, "theirs", "old"); /* another epoch's: ignored */
    say_store(&c, 3, "theirs", "xyz");
    CHECK_OK(store.get(store.context, "theirs", 5000, &value, &bytes));
    CHECK(bytes == 3 && memcmp(value, "xyz", 3) == 0);
    free(value);
    CHECK_FAILS(store.get(store.context, "nobody's", 20, &value, &bytes), STATUS_UNAVAILABLE,
                "nobody's");
    say_leave(&c, 3);
    next(link, LINK_LEAVE);
    CHECK_FAILS(store.get(store.context, "nobody's", 20000, &value, &bytes), STATUS_UNAVAILABLE,
                "dissolved");
    end(&c, link);
}

static void test_a_worker_comes_back_to_a_new_coordinator(void **state)
{
    struct coordinator c;
    struct link *link;

    (void)state;
    begin(&c, &link);
    expect(&c, 0, WORKER_HELLO);
    say_assign(&c, 1);
    next(link, LINK_ASSIGN);
    link_loaded(link, 1, 2);
    int port = rpc_server_port(c.server);
    stop(&c);
    next(link, LINK_LEAVE);
    start(&c, port);
    const struct seen *seen = expect(&c, 1, WORKER_HELLO);
    Winnow__V1__WorkerHello *hello =
        winnow__v1__worker_hello__unpack(NULL, seen->bytes, seen->payload);
    CHECK(hello && hello->loaded_rank == 1 && hello->loaded_size == 2);
    winnow__v1__worker_hello__free_unpacked(hello, NULL);
    say_assign(&c, 2);
    CHECK(next(link, LINK_ASSIGN).assign.epoch == 2);
    end(&c, link);
}

static void test_a_stopped_link_says_bye_and_frees_its_reader(void **state)
{
    struct coordinator c;
    struct link *link;

    (void)state;
    begin(&c, &link);
    expect(&c, 0, WORKER_HELLO);
    link_stop(link);
    next(link, LINK_STOP);
    expect(&c, 1, WORKER_BYE);
    end(&c, link);
}

/* A rank that loads learns later that its group was lost and another formed. */
static void test_a_rendezvous_ends_with_its_epoch_though_the_next_is_assigned(void **state)
{
    struct coordinator c;
    struct link *link;
    void *value;
    size_t bytes;

    (void)state;
    begin(&c, &link);
    expect(&c, 0, WORKER_HELLO);
    say_assign(&c, 1);
    next(link, LINK_ASSIGN);
    const struct comm_store store = link_store(link);
    CHECK(!store.over(store.context));
    say_leave(&c, 1);
    say_assign(&c, 2);
    CHECK_FAILS(store.get(store.context, "address of rank 0", 60000, &value, &bytes),
                STATUS_UNAVAILABLE, "dissolved");
    next(link, LINK_LEAVE);
    next(link, LINK_ASSIGN);
    CHECK(!store.over(store.context));
    end(&c, link);
}

static void test_a_link_that_drains_says_so_and_stops_when_the_group_is_left(void **state)
{
    struct coordinator c;
    struct link *link;

    (void)state;
    begin(&c, &link);
    expect(&c, 0, WORKER_HELLO);
    link_drain(link);
    expect(&c, 1, WORKER_DRAIN);
    say_leave(&c, 0);
    next(link, LINK_STOP);
    expect(&c, 2, WORKER_BYE);
    end(&c, link);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_worker_says_hello_and_is_assigned),
        cmocka_unit_test(test_leaving_drops_plans_that_wait),
        cmocka_unit_test(test_keys_of_the_rendezvous_are_relayed),
        cmocka_unit_test(test_a_worker_comes_back_to_a_new_coordinator),
        cmocka_unit_test(test_a_stopped_link_says_bye_and_frees_its_reader),
        cmocka_unit_test(test_a_rendezvous_ends_with_its_epoch_though_the_next_is_assigned),
        cmocka_unit_test(test_a_link_that_drains_says_so_and_stops_when_the_group_is_left),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
