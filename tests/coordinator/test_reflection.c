#include "coordinator/reflection.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "tests/check.h"

#include <stdlib.h>
#include <string.h>

static struct reflection *reflection;

/* Asks with field `number` of the oneof set to `text`. */
static Grpc__Reflection__V1__ServerReflectionResponse *ask(int number, const char *text)
{
    uint8_t request[256], *reply = NULL;
    size_t bytes = strlen(text), reply_bytes = 0;

    CHECK(bytes < 128);
    request[0] = (uint8_t)(number << 3 | 2);
    request[1] = (uint8_t)bytes;
    memcpy(request + 2, text, bytes);
    CHECK_OK(reflection_answer(reflection, request, bytes + 2, &reply, &reply_bytes));
    Grpc__Reflection__V1__ServerReflectionResponse *response =
        grpc__reflection__v1__server_reflection_response__unpack(NULL, reply_bytes, reply);
    free(reply);
    CHECK(response != NULL);
    return response;
}

static void release(Grpc__Reflection__V1__ServerReflectionResponse *response)
{
    grpc__reflection__v1__server_reflection_response__free_unpacked(response, NULL);
}

static void check_files(int number, const char *text, int wanted)
{
    Grpc__Reflection__V1__ServerReflectionResponse *response = ask(number, text);

    if ((int)response->message_response_case != (wanted ? 4 : 7)) {
        fail_msg("%s: answer %d", text, (int)response->message_response_case);
    }
    if (wanted) {
        CHECK((int)response->file_descriptor_response->n_file_descriptor_proto == wanted);
    } else {
        CHECK(response->error_response->error_code == STATUS_NOT_FOUND);
    }
    release(response);
}

static void test_every_service_of_the_public_port_is_listed_and_no_other(void **state)
{
    static const char *const wanted[] = {
        "winnow.v1.Inference", "winnow.v1.Control", "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"};
    Grpc__Reflection__V1__ServerReflectionResponse *response = ask(7, "");
    Grpc__Reflection__V1__ListServiceResponse *list = response->list_services_response;

    (void)state;
    CHECK((int)response->message_response_case == 6 && list->n_service == 5);
    for (size_t i = 0; i < 5; i++) {
        int found = 0;
        for (size_t j = 0; j < 5; j++) {
            const ProtobufCBinaryData *name = &list->service[j]->name;
            found += name->len == strlen(wanted[i]) && !memcmp(name->data, wanted[i], name->len);
        }
        CHECK(found == 1);
    }
    release(response);
}

static void test_symbols_of_every_kind_are_found(void **state)
{
    (void)state;
    check_files(4, "winnow.v1.Inference", 1);
    check_files(4, "winnow.v1.Inference.Generate", 1);
    check_files(4, "winnow.v1.GenerateRequest", 1);
    check_files(4, "winnow.v1.GenerateRequest.text", 1);
    check_files(4, "winnow.v1.GenerateRequest.prompt", 1);
    check_files(4, "winnow.v1.Method", 1);
    check_files(4, "winnow.v1.METHOD_FASTKV", 1);
    check_files(4, "grpc.health.v1.HealthCheckResponse.ServingStatus", 1);
    check_files(4, "grpc.health.v1.HealthCheckResponse.SERVING", 1);
    check_files(4, "grpc.reflection.v1alpha.ExtensionRequest", 1);
}

static void test_files_are_found_by_name(void **state)
{
    (void)state;
    check_files(3, "winnow/v1/inference.proto", 1);
    check_files(3, "grpc/health/v1/health.proto", 1);
    check_files(3, "winnow/v1/worker.proto", 0);
    check_files(3, "", 0);
}

static void test_what_is_not_there_is_an_error_answer(void **state)
{
    (void)state;
    check_files(4, "", 0);
    check_files(4, "winnow.v1", 0);
    check_files(4, "winnow.v1.", 0);
    check_files(4, "winnow.v1.Nothing", 0);
    check_files(4, "winnow.v1.Inference.Nothing", 0);
    check_files(4, "winnow.v1.GenerateRequest.text.deeper", 0);
    check_files(4, "winnow.v1.Fleet", 0);
    check_files(5, "", 0); /* an extension */
    check_files(6, "winnow.v1.Nothing", 0);
    Grpc__Reflection__V1__ServerReflectionResponse *response = ask(9, "unknown field");
    CHECK(response->error_response->error_code == STATUS_INVALID);
    release(response);
}

static void test_extension_numbers_of_a_known_type_are_an_empty_list(void **state)
{
    Grpc__Reflection__V1__ServerReflectionResponse *response = ask(6, "winnow.v1.Model");

    (void)state;
    CHECK((int)response->message_response_case == 5);
    CHECK(response->all_extension_numbers_response->n_extension_number == 0);
    CHECK(response->all_extension_numbers_response->base_type_name.len == 15);
    CHECK(response->original_request != NULL);
    release(response);
}

static void test_bytes_that_are_no_request_are_refused(void **state)
{
    uint8_t *reply = NULL;
    size_t bytes;

    (void)state;
    CHECK_FAILS(reflection_answer(reflection, (const uint8_t *)"\xff\xff", 2, &reply, &bytes),
                STATUS_INVALID, "ServerReflectionRequest");
}

static int open_it(void **state)
{
    (void)state;
    return reflection_open(&reflection) ? 1 : 0;
}

static int close_it(void **state)
{
    (void)state;
    reflection_close(reflection);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_service_of_the_public_port_is_listed_and_no_other),
        cmocka_unit_test(test_symbols_of_every_kind_are_found),
        cmocka_unit_test(test_files_are_found_by_name),
        cmocka_unit_test(test_what_is_not_there_is_an_error_answer),
        cmocka_unit_test(test_extension_numbers_of_a_known_type_are_an_empty_list),
        cmocka_unit_test(test_bytes_that_are_no_request_are_refused),
    };

    return cmocka_run_group_tests(tests, open_it, close_it);
}
