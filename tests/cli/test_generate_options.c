#include "cli/generate_options.h"
#include "tests/check.h"
#include "winnow/v1/inference.pb-c.h"

#include <stdlib.h>
#include <string.h>

#define MAX_WORDS 64

static status parse(struct generate_options *out, const char *const *words)
{
    char *argv[MAX_WORDS] = {"generate"};
    enum options_outcome outcome;
    int n = 1;

    for (; words[n - 1]; n++) {
        argv[n] = (char *)words[n - 1];
    }
    return generate_options_parse(out, n, argv, &outcome);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static Winnow__V1__GenerateRequest *packed(const char *const *words)
{
    struct generate_options options;
    uint8_t *data;
    size_t bytes;

    CHECK_OK(parse(&options, words));
    CHECK_OK(generate_options_pack(&options, &data, &bytes));
    Winnow__V1__GenerateRequest *request = winnow__v1__generate_request__unpack(NULL, bytes, data);
    free(data);
    CHECK(request != NULL);
    return request;
}

static bool is(const ProtobufCBinaryData *data, const char *text)
{
    return data->len == strlen(text) && memcmp(data->data, text, data->len) == 0;
}

static void test_what_is_not_given_is_not_sent(void **state)
{
    Winnow__V1__GenerateRequest *r = packed(WORDS("--prompt", "why?"));

    (void)state;
    CHECK(r->prompt_case == WINNOW__V1__GENERATE_REQUEST__PROMPT_TEXT && is(&r->text, "why?"));
    CHECK(r->_add_special_tokens_case == 0 && r->_priority_case == 0 && r->request_id.len == 0);
    const Winnow__V1__Sampling *s = r->sampling;
    CHECK(s->_max_tokens_case == 0 && s->_min_tokens_case == 0 && s->_temperature_case == 0);
    CHECK(s->_top_p_case == 0 && s->_top_k_case == 0 && s->_min_p_case == 0 && s->_n_case == 0);
    CHECK(s->_seed_case == 0 && s->_ignore_eos_case == 0 && s->n_stop == 0);
    CHECK(s->_repetition_penalty_case == 0 && s->_frequency_penalty_case == 0);
    const Winnow__V1__Compression *c = r->compression;
    CHECK(c->method == 0 && c->budget_case == 0 && c->_window_case == 0 && c->_kernel_case == 0);
    CHECK(c->pooling == 0 && c->granularity == 0 && c->fastkv == NULL);
    winnow__v1__generate_request__free_unpacked(r, NULL);
}

static void test_sampling_options_arrive(void **state)
{
    Winnow__V1__GenerateRequest *r = packed(WORDS(
        "--prompt", "x", "--max-tokens", "9", "--min-tokens", "2", "--temperature", "0", "--top-p",
        "0.5", "--top-k", "0", "--min-p", "0.25", "--seed", "77", "--samples", "3", "--ignore-eos",
        "--stop", "a", "--stop", "b", "--stop-id", "5", "--stop-id", "6,7", "--repetition-penalty",
        "1.5", "--frequency-penalty", "-1", "--presence-penalty", "0.5", "--logprobs", "0"));
    const Winnow__V1__Sampling *s = r->sampling;

    (void)state;
    CHECK(s->_max_tokens_case && s->max_tokens == 9 && s->_min_tokens_case && s->min_tokens == 2);
    CHECK(s->_temperature_case && s->temperature == 0 && s->_top_p_case && s->top_p == 0.5F);
    CHECK(s->_top_k_case && s->top_k == 0 && s->_min_p_case && s->min_p == 0.25F);
    CHECK(s->_seed_case && s->seed == 77 && s->_n_case && s->n == 3);
    CHECK(s->_ignore_eos_case && s->ignore_eos);
    CHECK(s->n_stop == 2 && is(&s->stop[0], "a") && is(&s->stop[1], "b"));
    CHECK(s->n_stop_token_ids == 3 && s->stop_token_ids[2] == 7);
    CHECK(s->repetition_penalty == 1.5F && s->frequency_penalty == -1);
    CHECK(s->presence_penalty == 0.5F && s->_logprobs_case && s->logprobs == 0);
    winnow__v1__generate_request__free_unpacked(r, NULL);
}

static void test_compression_options_arrive(void **state)
{
    Winnow__V1__GenerateRequest *r = packed(
        WORDS("--prompt", "x", "--method", "fastkv", "--retain-rate", "0.4", "--window", "32",
              "--kernel", "5", "--pooling", "avg", "--granularity", "q", "--group-reduce", "max",
              "--reduce-stage", "post", "--tsp-layer", "0", "--tsp-rate", "0.3"));
    const Winnow__V1__Compression *c = r->compression;

    (void)state;
    CHECK(c->method == WINNOW__V1__METHOD__METHOD_FASTKV);
    CHECK(c->budget_case == WINNOW__V1__COMPRESSION__BUDGET_RETAIN_RATE && c->retain_rate == 0.4);
    CHECK(c->window == 32 && c->kernel == 5);
    CHECK(c->pooling == WINNOW__V1__POOLING__POOLING_AVG);
    CHECK(c->granularity == WINNOW__V1__GRANULARITY__GRANULARITY_Q);
    CHECK(c->group_reduce == WINNOW__V1__GROUP_REDUCE__GROUP_MAX);
    CHECK(c->reduce_stage == WINNOW__V1__REDUCE_STAGE__REDUCE_POST);
    const Winnow__V1__FastKV *own = c->fastkv;
    CHECK(own && own->_tsp_layer_case && own->tsp_layer == 0 &&
          own->tsp_case == WINNOW__V1__FAST_KV__TSP_TSP_RATE && own->tsp_rate == 0.3);
    winnow__v1__generate_request__free_unpacked(r, NULL);

    r = packed(WORDS("--prompt", "x", "--capacity", "512", "--tsp-len", "1024", "--priority", "-3",
                     "--request-id", "r1", "--special=false"));
    own = r->compression->fastkv;
    CHECK(r->compression->capacity == 512 && own && own->tsp_len == 1024 &&
          own->tsp_case == WINNOW__V1__FAST_KV__TSP_TSP_LEN);
    CHECK(r->priority == -3 && is(&r->request_id, "r1"));
    CHECK(r->_add_special_tokens_case && !r->add_special_tokens);
    winnow__v1__generate_request__free_unpacked(r, NULL);
}

static void test_a_chat_is_sent_as_messages(void **state)
{
    Winnow__V1__GenerateRequest *r = packed(WORDS("--prompt", "why?", "--chat"));

    (void)state;
    CHECK(r->prompt_case == WINNOW__V1__GENERATE_REQUEST__PROMPT_CHAT && r->chat->n_messages == 1);
    CHECK(is(&r->chat->messages[0]->role, "user"));
    CHECK(is(&r->chat->messages[0]->content, "why?") && r->_add_special_tokens_case == 0);
    winnow__v1__generate_request__free_unpacked(r, NULL);
    r = packed(WORDS("--prompt", "why?", "--chat", "--system", "Be brief."));
    CHECK(r->chat->n_messages == 2 && is(&r->chat->messages[0]->role, "system"));
    CHECK(is(&r->chat->messages[0]->content, "Be brief."));
    CHECK(is(&r->chat->messages[1]->content, "why?"));
    winnow__v1__generate_request__free_unpacked(r, NULL);
}

static void test_contradictions_are_wrong_usage(void **state)
{
    struct generate_options o;

    (void)state;
    CHECK_FAILS(parse(&o, WORDS(NULL)), STATUS_INVALID, "give --file, --prompt or --tokens-file");
    CHECK_FAILS(parse(&o, WORDS("--prompt", "x", "--tokens-file", "y")), STATUS_INVALID,
                "--tokens-file goes without");
    CHECK_FAILS(parse(&o, WORDS("--chat", "--tokens-file", "y")), STATUS_INVALID,
                "--chat goes without --tokens-file");
    CHECK_FAILS(parse(&o, WORDS("--prompt", "x", "--system", "y")), STATUS_INVALID,
                "--system goes with --chat");
    CHECK_FAILS(parse(&o, WORDS("--prompt", "x", "--chat", "--system", "\xff")), STATUS_INVALID,
                "--system: not UTF-8");
    CHECK_FAILS(parse(&o, WORDS("--prompt", "x", "--capacity", "9", "--retain-rate", "0.1")),
                STATUS_INVALID, "--retain-rate or --capacity");
    CHECK_FAILS(parse(&o, WORDS("--prompt", "x", "--tsp-len", "9", "--tsp-rate", "0.1")),
                STATUS_INVALID, "--tsp-rate or --tsp-len");
    CHECK_FAILS(parse(&o, WORDS("--prompt", "x", "--method", "BEST")), STATUS_INVALID,
                "no method \"BEST\"");
    CHECK_FAILS(parse(&o, WORDS("--prompt", "x", "--pooling", "min")), STATUS_INVALID,
                "--pooling is max or avg");
    CHECK_FAILS(parse(&o, WORDS("--prompt", "x", "--granularity", "v")), STATUS_INVALID,
                "--granularity is");
    CHECK_FAILS(parse(&o, WORDS("--prompt", "x", "--group-reduce", "min")), STATUS_INVALID,
                "--group-reduce is");
    CHECK_FAILS(parse(&o, WORDS("--prompt", "x", "--reduce-stage", "mid")), STATUS_INVALID,
                "--reduce-stage is");
    CHECK_FAILS(parse(&o, WORDS("--prompt", "x", "--retain-rate", "1.5")), STATUS_INVALID,
                "--retain-rate");
}

static void test_input_that_cannot_be_read_is_an_error(void **state)
{
    struct generate_options o;
    uint8_t *data;
    size_t bytes;

    (void)state;
    CHECK_OK(parse(&o, WORDS("--file", "/nowhere/doc.txt")));
    CHECK_FAILS(generate_options_pack(&o, &data, &bytes), STATUS_NOT_FOUND, "/nowhere/doc.txt");
    CHECK_OK(parse(&o, WORDS("--tokens-file", "/nowhere/ids")));
    CHECK_FAILS(generate_options_pack(&o, &data, &bytes), STATUS_NOT_FOUND, "/nowhere/ids");
    CHECK_OK(parse(&o, WORDS("--prompt", "x", "--stop-id", "seven")));
    CHECK_FAILS(generate_options_pack(&o, &data, &bytes), STATUS_INVALID, "--stop-id");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_not_given_is_not_sent),
        cmocka_unit_test(test_sampling_options_arrive),
        cmocka_unit_test(test_compression_options_arrive),
        cmocka_unit_test(test_a_chat_is_sent_as_messages),
        cmocka_unit_test(test_contradictions_are_wrong_usage),
        cmocka_unit_test(test_input_that_cannot_be_read_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
