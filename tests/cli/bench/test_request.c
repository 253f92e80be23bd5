#include "cli/bench/request.h"
#include "tests/check.h"

#include <math.h>
#include <stdlib.h>

static Winnow__V1__GenerateRequest *pack(const struct request_spec *spec)
{
    uint8_t *data = NULL;
    size_t bytes = 0;

    CHECK_OK(request_pack(spec, &data, &bytes));
    Winnow__V1__GenerateRequest *request = winnow__v1__generate_request__unpack(NULL, bytes, data);
    free(data);
    CHECK(request != NULL);
    return request;
}

static void test_ids_lengths_and_method_are_sent(void **state)
{
    static const uint32_t ids[] = {1, 300, 2};
    struct compression_options compression;

    (void)state;
    compression_options_init(&compression);
    compression.method = "FASTKV";
    compression.tsp_rate = 0.5;
    struct request_spec spec = {.ids = ids,
                                .n_ids = 3,
                                .max_tokens = 7,
                                .ignore_eos = true,
                                .temperature = 0,
                                .seed = 5,
                                .compression = &compression};
    Winnow__V1__GenerateRequest *r = pack(&spec);
    CHECK(r->prompt_case == WINNOW__V1__GENERATE_REQUEST__PROMPT_TOKENS);
    CHECK(r->tokens->n_ids == 3 && r->tokens->ids[1] == 300);
    CHECK(r->sampling->max_tokens == 7 && r->sampling->ignore_eos && r->sampling->seed == 5);
    CHECK(r->sampling->_temperature_case && r->sampling->temperature == 0);
    CHECK(r->compression->method == WINNOW__V1__METHOD__METHOD_FASTKV);
    CHECK(r->compression->fastkv && r->compression->fastkv->tsp_rate == 0.5);
    winnow__v1__generate_request__free_unpacked(r, NULL);
}

static void test_another_method_goes_without_fastkvs_parameters(void **state)
{
    struct compression_options compression;

    (void)state;
    compression_options_init(&compression);
    compression.method = "FASTKV";
    compression.tsp_rate = 0.5;
    compression.window = 16;
    struct request_spec spec = {.text = "why?",
                                .bytes = 4,
                                .max_tokens = 1,
                                .temperature = (double)NAN,
                                .compression = &compression,
                                .method = METHOD_SNAPKV};
    Winnow__V1__GenerateRequest *r = pack(&spec);
    CHECK(r->prompt_case == WINNOW__V1__GENERATE_REQUEST__PROMPT_TEXT && r->text.len == 4);
    CHECK(r->compression->method == WINNOW__V1__METHOD__METHOD_SNAPKV);
    CHECK(r->compression->fastkv == NULL && r->compression->window == 16);
    CHECK(r->sampling->_temperature_case == 0 && r->sampling->_ignore_eos_case == 0);
    winnow__v1__generate_request__free_unpacked(r, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids_lengths_and_method_are_sent),
        cmocka_unit_test(test_another_method_goes_without_fastkvs_parameters),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
