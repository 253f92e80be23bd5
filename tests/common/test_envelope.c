#include "common/envelope.h"
#include "tests/check.h"
#include "winnow/v1/worker.pb-c.h"

#include <stdlib.h>
#include <string.h>

static void test_payloads_of_any_length_come_back(void **state)
{
    const size_t sizes[] = {0, 1, 127, 128, 300, 20000};
    uint8_t payload[20000];

    (void)state;
    memset(payload, 7, sizeof(payload));
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        uint8_t *data;
        const uint8_t *inner;
        size_t bytes;
        size_t inner_bytes;
        int field;
        CHECK_OK(envelope_wrap(&data, &bytes, WORKER_RESULT, payload, sizes[i]));
        CHECK_OK(envelope_open(&field, &inner, &inner_bytes, data, bytes));
        CHECK(field == WORKER_RESULT && inner_bytes == sizes[i]);
        CHECK(memcmp(inner, payload, inner_bytes) == 0);
        free(data);
    }
}

static void test_an_envelope_is_the_message_of_the_protocol(void **state)
{
    Winnow__V1__WorkerBeat beat = WINNOW__V1__WORKER_BEAT__INIT;
    uint8_t inner[32];
    uint8_t *data;
    size_t bytes;

    (void)state;
    beat.epoch = 3;
    beat.steps = 900;
    size_t inner_bytes = winnow__v1__worker_beat__pack(&beat, inner);
    CHECK_OK(envelope_wrap(&data, &bytes, WORKER_BEAT, inner, inner_bytes));
    Winnow__V1__WorkerMessage *message = winnow__v1__worker_message__unpack(NULL, bytes, data);
    assert_non_null(message);
    CHECK(message->message_case == WINNOW__V1__WORKER_MESSAGE__MESSAGE_BEAT);
    CHECK(message->beat->steps == 900);
    winnow__v1__worker_message__free_unpacked(message, NULL);
    free(data);
}

static void test_broken_envelopes_are_refused(void **state)
{
    const struct {
        uint8_t data[8];
        size_t bytes;
    } broken[] = {
        {{0}, 0},
        {{0x0a}, 1},
        {{0x0a, 5, 1}, 3},                   /* longer than the data */
        {{0x0a, 0, 1}, 3},                   /* shorter */
        {{0x08, 1}, 2},                      /* not length-delimited */
        {{0x0a, 0xff, 0xff, 0xff, 0xff}, 5}, /* an endless length */
        {{0x0a, 0x80}, 2},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
        const uint8_t *payload;
        size_t bytes;
        int field;
        CHECK_FAILS(envelope_open(&field, &payload, &bytes, broken[i].data, broken[i].bytes),
                    STATUS_INVALID, "envelope");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_payloads_of_any_length_come_back),
        cmocka_unit_test(test_an_envelope_is_the_message_of_the_protocol),
        cmocka_unit_test(test_broken_envelopes_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
