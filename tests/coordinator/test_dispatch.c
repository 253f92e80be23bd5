/* What a worker's bytes become; the streams themselves are test_service.c's. */
#include "common/envelope.h"
#include "coordinator/dispatch.h"
#include "tests/check.h"
#include "winnow/v1/worker.pb-c.h"

#include <stdlib.h>

/* Opens an envelope of this kind around the payload. */
static status open_payload(struct worker_message *out, int field, const void *payload, size_t bytes)
{
    uint8_t *data;
    size_t n;

    CHECK_OK(envelope_wrap(&data, &n, field, payload, bytes));
    status st = worker_message_open(out, data, n);
    free(data);
    return st;
}

static status open_packed(struct worker_message *out, int field, const ProtobufCMessage *message)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *payload = malloc(bytes + 1);

    assert_non_null(payload);
    protobuf_c_message_pack(message, payload);
    status st = open_payload(out, field, payload, bytes);
    free(payload);
    return st;
}

static void test_garbage_of_every_kind_is_refused_by_name(void **state)
{
    static const struct {
        int field;
        const char *words;
    } kinds[] = {
        {WORKER_HELLO, "WorkerHello"}, {WORKER_READY, "WorkerReady"}, {WORKER_STORE, "StoreEntry"},
        {WORKER_RESULT, ""},           {WORKER_BEAT, "WorkerBeat"},   {WORKER_FAULT, "WorkerFault"},
        {WORKER_DRAIN + 1, "kind 9"},
    };
    static const uint8_t garbage[] = {0x0a, 0xff, 0x01};
    struct worker_message message;

    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        CHECK_FAILS(open_payload(&message, kinds[i].field, garbage, sizeof(garbage)),
                    STATUS_INVALID, kinds[i].words);
        worker_message_close(&message);
    }
    CHECK_FAILS(worker_message_open(&message, garbage, 0), STATUS_INVALID, "envelope");
    worker_message_close(&message);
}

static void test_texts_of_a_worker_are_cut_to_a_line(void **state)
{
    Winnow__V1__WorkerHello hello = WINNOW__V1__WORKER_HELLO__INIT;
    Winnow__V1__WorkerFault fault = WINNOW__V1__WORKER_FAULT__INIT;
    static uint8_t endless[1 << 20];
    struct worker_message message;

    (void)state;
    memset(endless, 'h', sizeof(endless));
    hello.host = (ProtobufCBinaryData){sizeof(endless), endless};
    hello.device = (ProtobufCBinaryData){8, (uint8_t *)"cpu\x1b[31m"};
    CHECK_OK(open_packed(&message, WORKER_HELLO, &hello.base));
    CHECK(strlen(message.hello.host) == SERVICE_TEXT - 1);
    CHECK(strcmp(message.hello.device, "cpu") == 0 && message.hello.fixed_rank == -1);
    worker_message_close(&message);
    fault.message = hello.host;
    CHECK_OK(open_packed(&message, WORKER_FAULT, &fault.base));
    CHECK(strlen(message.fault.text) == sizeof(message.fault.text) - 1);
    CHECK(message.fault.code == STATUS_INTERNAL); /* never "no failure" */
    worker_message_close(&message);
}

static void test_a_rendezvous_entry_has_limits(void **state)
{
    Winnow__V1__StoreEntry entry = WINNOW__V1__STORE_ENTRY__INIT;
    static uint8_t bytes[FLEET_MAX_VALUE + 1];
    const struct {
        size_t key, value;
        bool fits;
    } cases[] = {
        {1, 0, true},
        {FLEET_MAX_KEY, FLEET_MAX_VALUE, true},
        {0, 1, false},
        {FLEET_MAX_KEY + 1, 1, false},
        {1, FLEET_MAX_VALUE + 1, false},
    };
    struct worker_message message;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        entry.key = (ProtobufCBinaryData){cases[i].key, bytes};
        entry.value = (ProtobufCBinaryData){cases[i].value, bytes};
        status st = open_packed(&message, WORKER_STORE, &entry.base);
        CHECK(st == (cases[i].fits ? STATUS_OK : STATUS_INVALID));
        worker_message_close(&message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_garbage_of_every_kind_is_refused_by_name),
        cmocka_unit_test(test_texts_of_a_worker_are_cut_to_a_line),
        cmocka_unit_test(test_a_rendezvous_entry_has_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
