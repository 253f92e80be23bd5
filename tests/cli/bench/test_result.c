#include "cli/bench/result.h"
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char folder[64];
static char path[160];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/winnow_test_result_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

/* A result as a run would leave it. */
static cJSON *make(const struct result_options *options)
{
    Winnow__V1__Model model;

    winnow__v1__model__init(&model);
    model.name.data = (uint8_t *)"tiny \"1\"";
    model.name.len = 8;
    model.layers = 5;
    cJSON *object = result_create("serve", options, &model);
    CHECK(object != NULL);
    return object;
}

static const char *text_of(const cJSON *object, const char *key)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));

    if (!text) {
        fail_msg("%s is missing", key);
    }
    return text;
}

static void test_what_was_written_is_read_again(void **state)
{
    struct result_options options = {.save = true,
                                     .quiet = true,
                                     .dir = path,
                                     .filename = "r.json",
                                     .label = "a\nb",
                                     .metadata = {"who=me", "label=x=y"},
                                     .n_metadata = 2};
    char file[200];
    cJSON *again = NULL;

    (void)state;
    snprintf(path, sizeof(path), "%s/new", folder); /* is made */
    snprintf(file, sizeof(file), "%s/new/r.json", folder);
    cJSON *object = make(&options);
    CHECK(result_add_metadata(object, &options));
    CHECK_OK(result_deliver(object, &options, "stem"));
    cJSON_Delete(object);
    CHECK_OK(result_read(&again, file));
    CHECK(strcmp(text_of(again, "winnow_bench"), "serve") == 0);
    CHECK(strcmp(text_of(again, "model_id"), "tiny \"1\"") == 0);
    CHECK(strcmp(text_of(again, "label"), "a\nb") == 0);
    CHECK(strcmp(text_of(again, "who"), "me") == 0);
    CHECK(strcmp(text_of(again, "metadata_label"), "x=y") == 0); /* label was taken */
    cJSON_Delete(again);
    unlink(file);
    rmdir(path);
}

static void test_only_given_parameters_are_told(void **state)
{
    struct compression_options c;
    cJSON *object = cJSON_CreateObject();

    (void)state;
    compression_options_init(&c);
    c.capacity = 64;
    c.tsp_rate = 0.25;
    c.pooling = "avg";
    CHECK(result_add_compression(object, &c));
    const cJSON *o = cJSON_GetObjectItem(object, "compression");
    CHECK(cJSON_GetArraySize(o) == 3);
    CHECK(cJSON_GetObjectItem(o, "capacity")->valuedouble == 64);
    CHECK(cJSON_GetObjectItem(o, "tsp_rate")->valuedouble == 0.25);
    cJSON_Delete(object);
}

static void test_a_result_that_cannot_be_written_is_an_error(void **state)
{
    struct result_options options = {.save = true, .quiet = true, .dir = "/proc/no/such"};
    char name[300];

    (void)state;
    cJSON *object = make(&options);
    CHECK_FAILS(result_deliver(object, &options, "stem"), STATUS_INTERNAL, "/proc/no/such");
    options.dir = folder;
    options.filename = "no/such.json";
    CHECK_FAILS(result_deliver(object, &options, "stem"), STATUS_INTERNAL, "no/such.json");
    memset(name, 'x', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    options.filename = name;
    CHECK_FAILS(result_deliver(object, &options, "stem"), STATUS_INVALID, "name of the result");
    cJSON_Delete(object);
}

static void check_refused(const char *text, status code, const char *words)
{
    cJSON *object = NULL;

    snprintf(path, sizeof(path), "%s/x.json", folder);
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
    CHECK_FAILS(result_read(&object, path), code, words);
    CHECK(object == NULL);
    unlink(path);
}

static void test_what_is_no_result_is_refused(void **state)
{
    cJSON *object = NULL;

    (void)state;
    check_refused("", STATUS_INVALID, "not valid JSON");
    check_refused("[]", STATUS_INVALID, "not a JSON object");
    check_refused("{\"winnow_bench\": 5}", STATUS_INVALID, "not a result of winnow bench");
    CHECK_FAILS(result_read(&object, "/no/such.json"), STATUS_NOT_FOUND, "/no/such.json");
}

static void test_metadata_has_a_limit(void **state)
{
    struct result_options options = {.save = false};

    (void)state;
    for (int i = 0; i < RESULT_MAX_METADATA; i++) {
        CHECK_OK(result_options_add_metadata(&options, "a=b"));
    }
    CHECK_FAILS(result_options_add_metadata(&options, "a=b"), STATUS_INVALID, "more than 32");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_was_written_is_read_again),
        cmocka_unit_test(test_only_given_parameters_are_told),
        cmocka_unit_test(test_a_result_that_cannot_be_written_is_an_error),
        cmocka_unit_test(test_what_is_no_result_is_refused),
        cmocka_unit_test(test_metadata_has_a_limit),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
