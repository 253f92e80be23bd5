#include "cli/answer.h"
#include "tests/check.h"

#include <stdlib.h>
#include <string.h>

static void add_tokens(struct answer *answer, uint32_t index, uint32_t id, const char *text,
                       size_t bytes)
{
    Winnow__V1__Tokens tokens;

    winnow__v1__tokens__init(&tokens);
    tokens.index = index;
    tokens.n_ids = 1;
    tokens.ids = &id;
    tokens.text.data = (uint8_t *)text;
    tokens.text.len = bytes;
    CHECK_OK(answer_tokens(answer, &tokens));
}

static void add_done(struct answer *answer, uint32_t index)
{
    Winnow__V1__Done done;
    Winnow__V1__Usage usage;
    Winnow__V1__Timing timing;

    winnow__v1__done__init(&done);
    winnow__v1__usage__init(&usage);
    winnow__v1__timing__init(&timing);
    done.index = index;
    done.finish_reason = WINNOW__V1__FINISH_REASON__FINISH_STOP_STRING;
    done.stop_string.data = (uint8_t *)"\n\n";
    done.stop_string.len = 2;
    done.seed = 18446744073709551615u;
    usage.prompt_tokens = 6000;
    usage.completion_tokens = 3;
    usage.propagated_tokens = 1200;
    usage.kv_tokens_kept = 600.5;
    usage.kv_bytes = 3 << 20;
    usage.kv_bytes_full = 30 << 20;
    timing.ttft_ms = 1500;
    timing.decode_ms = 100;
    timing.total_ms = 1600;
    done.usage = &usage;
    done.timing = &timing;
    CHECK_OK(answer_done(answer, &done));
}

static void test_json_holds_everything(void **state)
{
    struct answer answer;
    char *json;

    (void)state;
    answer_init(&answer, 1);
    add_tokens(&answer, 0, 7, "say \"", 5);
    add_tokens(&answer, 0, 4000000000u, "a\0\n\\", 4);
    CHECK(answer_check_complete(&answer) == STATUS_INTERNAL);
    add_done(&answer, 0);
    CHECK_OK(answer_check_complete(&answer));
    CHECK_OK(answer_json(&answer, &json));
    CHECK(strstr(json, "\"ids\":[7,4000000000]") != NULL);
    CHECK(strstr(json, "\"text\":\"say \\\"a\\u0000\\u000a\\\\\"") != NULL);
    CHECK(strstr(json, "\"finish_reason\":\"STOP_STRING\"") != NULL);
    CHECK(strstr(json, "\"stop_string\":\"\\u000a\\u000a\"") != NULL);
    CHECK(strstr(json, "\"seed\":18446744073709551615") != NULL);
    CHECK(strstr(json, "\"usage\":{\"prompt_tokens\":6000,\"completion_tokens\":3,"
                       "\"propagated_tokens\":1200,\"kv_tokens_kept\":600.5") != NULL);
    CHECK(strstr(json, "\"ttft_ms\":1500") != NULL);
    free(json);
    answer_fini(&answer);
}

static void test_logprobs_stand_beside_the_ids(void **state)
{
    uint32_t id = 7, top_ids[21] = {7, 9};
    float top_logprobs[21] = {-0.25F, -1.5F};
    Winnow__V1__Logprob logprob = WINNOW__V1__LOGPROB__INIT, *list[] = {&logprob};
    Winnow__V1__Tokens tokens = WINNOW__V1__TOKENS__INIT;
    struct answer answer;
    char *json;

    (void)state;
    logprob.id = id;
    logprob.logprob = -0.25F;
    logprob.n_top_ids = logprob.n_top_logprobs = 2;
    logprob.top_ids = top_ids;
    logprob.top_logprobs = top_logprobs;
    tokens.n_ids = tokens.n_logprobs = 1;
    tokens.ids = &id;
    tokens.logprobs = list;
    answer_init(&answer, 1);
    CHECK_OK(answer_tokens(&answer, &tokens));
    CHECK_OK(answer_json(&answer, &json));
    CHECK(strstr(json, "\"logprobs\":[{\"id\":7,\"logprob\":-0.25,\"top_ids\":[7,9],"
                       "\"top_logprobs\":[-0.25,-1.5]}]") != NULL);
    free(json);
    logprob.n_top_ids = logprob.n_top_logprobs = 21;
    CHECK_FAILS(answer_tokens(&answer, &tokens), STATUS_INTERNAL, "21 ids");
    answer_fini(&answer);
}

static void test_several_samples_stand_in_a_list(void **state)
{
    struct answer answer;
    char *json;

    (void)state;
    answer_init(&answer, 2);
    add_tokens(&answer, 1, 2, "b", 1);
    add_tokens(&answer, 0, 1, "a", 1);
    add_done(&answer, 1);
    CHECK_FAILS(answer_check_complete(&answer), STATUS_INTERNAL, "without an end");
    add_done(&answer, 0);
    CHECK_OK(answer_check_complete(&answer));
    CHECK_OK(answer_json(&answer, &json));
    CHECK(strncmp(json, "{\"samples\":[{\"ids\":[1],\"text\":\"a\"", 33) == 0);
    CHECK(strstr(json, "\"completion_tokens\":6") != NULL);
    free(json);
    answer_fini(&answer);
}

static void test_the_summary_tells_what_was_saved(void **state)
{
    struct answer answer;
    char *summary;

    (void)state;
    answer_init(&answer, 1);
    add_done(&answer, 0);
    CHECK_OK(answer_summary(&answer, &summary));
    const char *expected =
        "prompt: 6000 tokens, 1200 propagated; KV kept: 3.0 MiB of 30.0 MiB (10.0 %)\n"
        "answer: 3 tokens (STOP_STRING), the first after 1.50 s, then 20.0 tokens/s; total "
        "1.60 s\n";
    if (strcmp(summary, expected) != 0) {
        fail_msg("the summary is \"%s\"", summary);
    }
    free(summary);
    answer_fini(&answer);
}

static void test_an_end_may_say_nothing_but_its_reason(void **state)
{
    struct answer answer;
    Winnow__V1__Done done;
    char *json;

    (void)state;
    winnow__v1__done__init(&done);
    done.finish_reason = (Winnow__V1__FinishReason)77; /* of a newer server */
    answer_init(&answer, 1);
    CHECK_OK(answer_done(&answer, &done));
    CHECK_OK(answer_json(&answer, &json));
    CHECK(strstr(json, "\"text\":\"\",\"finish_reason\":\"UNSPECIFIED\",\"stop_string\":\"\"") !=
          NULL);
    free(json);
    answer_fini(&answer);
}

static void test_what_breaks_the_contract_is_refused(void **state)
{
    struct answer answer;
    Winnow__V1__Tokens tokens;
    Winnow__V1__Done done;

    (void)state;
    winnow__v1__tokens__init(&tokens);
    winnow__v1__done__init(&done);
    answer_init(&answer, 1);
    tokens.index = 1;
    done.index = 1;
    CHECK_FAILS(answer_tokens(&answer, &tokens), STATUS_INTERNAL, "sent sample 1 of 1");
    CHECK_FAILS(answer_done(&answer, &done), STATUS_INTERNAL, "sent sample 1 of 1");
    tokens.index = 0;
    tokens.text.data = (uint8_t *)"\xff";
    tokens.text.len = 1;
    CHECK_FAILS(answer_tokens(&answer, &tokens), STATUS_INTERNAL, "not UTF-8");
    add_done(&answer, 0);
    done.index = 0;
    CHECK_FAILS(answer_done(&answer, &done), STATUS_INTERNAL, "ended sample 0 twice");
    answer_fini(&answer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_holds_everything),
        cmocka_unit_test(test_logprobs_stand_beside_the_ids),
        cmocka_unit_test(test_several_samples_stand_in_a_list),
        cmocka_unit_test(test_the_summary_tells_what_was_saved),
        cmocka_unit_test(test_an_end_may_say_nothing_but_its_reason),
        cmocka_unit_test(test_what_breaks_the_contract_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
