#include "common/json.h"
#include "tests/check.h"

static cJSON *parse(const char *text)
{
    cJSON *json = NULL;

    CHECK_OK(json_parse(&json, "f.json", text, strlen(text)));
    return json;
}

static void test_only_one_whole_object_is_accepted(void **state)
{
    cJSON *json = NULL;

    (void)state;
    cJSON_Delete(parse(" {\"a\": 1}\r\n\t "));
    CHECK_FAILS(json_parse(&json, "f.json", "{\"a\"}", 5), STATUS_INVALID,
                "f.json: not valid JSON");
    CHECK_FAILS(json_parse(&json, "f.json", "{\"a\":1} 2", 9), STATUS_INVALID, "at byte 8");
    CHECK_FAILS(json_parse(&json, "f.json", "[]", 2), STATUS_INVALID, "f.json: not a JSON object");
    CHECK_FAILS(json_parse(&json, "f.json", "", 0), STATUS_INVALID, "not valid JSON at byte 0");
    assert_null(json);
}

static void test_deep_nesting_is_refused_and_not_followed(void **state)
{
    char text[4096] = "{\"a\":";
    cJSON *json = NULL;

    (void)state;
    memset(text + 5, '[', sizeof(text) - 5);
    CHECK_FAILS(json_parse(&json, "f.json", text, sizeof(text)), STATUS_INVALID, "not valid JSON");
}

static void test_fields_are_read_by_type(void **state)
{
    cJSON *json = parse("{\"i\":7,\"d\":0.5,\"t\":true,\"s\":\"x\",\"n\":null}");
    struct json_reader r = {.object = json, .file = "f.json", .prefix = ""};

    (void)state;
    assert_int_equal(json_int(&r, "i", 0, 9), 7);
    assert_int_equal(json_int_or(&r, "n", 0, 9, 3), 3);
    assert_int_equal(json_int_or(&r, "absent", 0, 9, 4), 4);
    CHECK(json_number(&r, "d", 0, 1) == 0.5);
    CHECK(json_number_or(&r, "absent", 0, 1, 2) == 2);
    CHECK(json_bool_or(&r, "t", false));
    CHECK(!json_bool_or(&r, "n", false));
    assert_string_equal(json_string_or_null(&r, "s"), "x");
    assert_null(json_string_or_null(&r, "n"));
    assert_null(json_find(&r, "n"));
    CHECK_OK(r.st);
    cJSON_Delete(json);
}

static void test_the_first_failure_is_kept_with_file_and_field(void **state)
{
    cJSON *json = parse("{\"i\":10,\"s\":\"x\"}");
    struct json_reader r = {.object = json, .file = "f.json", .prefix = "inner."};

    (void)state;
    assert_int_equal(json_int(&r, "i", 1, 9), 1);
    CHECK(json_number(&r, "s", 2, 3) == 2);
    CHECK(!json_bool_or(&r, "s", false));
    CHECK_FAILS(r.st, STATUS_INVALID, "f.json: inner.i: 10 is not a whole number from 1 to 9");
    cJSON_Delete(json);
}

static void test_sizes_are_whole_and_exact(void **state)
{
    cJSON *json = parse("{\"a\":9007199254740992,\"b\":1e17,\"c\":-1,\"d\":0.5,\"e\":\"1\"}");
    uint64_t size = 0;

    (void)state;
    CHECK(json_get_size(cJSON_GetObjectItem(json, "a"), &size));
    CHECK(size == 9007199254740992u);
    CHECK(!json_get_size(cJSON_GetObjectItem(json, "b"), &size));
    CHECK(!json_get_size(cJSON_GetObjectItem(json, "c"), &size));
    CHECK(!json_get_size(cJSON_GetObjectItem(json, "d"), &size));
    CHECK(!json_get_size(cJSON_GetObjectItem(json, "e"), &size));
    CHECK(!json_get_size(NULL, &size));
    cJSON_Delete(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_one_whole_object_is_accepted),
        cmocka_unit_test(test_deep_nesting_is_refused_and_not_followed),
        cmocka_unit_test(test_fields_are_read_by_type),
        cmocka_unit_test(test_the_first_failure_is_kept_with_file_and_field),
        cmocka_unit_test(test_sizes_are_whole_and_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
