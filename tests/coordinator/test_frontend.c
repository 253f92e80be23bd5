/* What a GenerateRequest may say: every rule of the contract, at its limit and one past it. */
#include "coordinator/frontend_reply.h"
#include "coordinator/frontend_request.h"
#include "coordinator/message.h"
#include "tests/check.h"
#include "winnow/v1/inference.pb-c.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The case of a one-member oneof that is set is its field's number. */
#define SET(message, field, number, given)    \
    do {                                      \
        (message)._##field##_case = (number); \
        (message).field = (given);            \
    } while (0)

static struct model_config model;
static struct tokenizer *tokenizer;
static struct frontend_rules rules;
static uint32_t special_ids[] = {0, 1, 2};
static uint32_t punct_ids[] = {7, 9};

/* A request that is right; tests spoil one thing. */
static Winnow__V1__GenerateRequest m;
static Winnow__V1__Sampling sampling;
static Winnow__V1__Compression compression;
static Winnow__V1__TokenIds tokens;
static Winnow__V1__Trace trace;
static uint32_t ids[4] = {1, 2, 3, 4};

static struct request *request;
static struct stop_set stops;

static int set_up(void **state)
{
    (void)state;
    winnow__v1__generate_request__init(&m);
    winnow__v1__sampling__init(&sampling);
    winnow__v1__compression__init(&compression);
    winnow__v1__token_ids__init(&tokens);
    winnow__v1__trace__init(&trace);
    tokens.ids = ids;
    tokens.n_ids = 4;
    m.prompt_case = WINNOW__V1__GENERATE_REQUEST__PROMPT_TOKENS;
    m.tokens = &tokens;
    m.sampling = &sampling;
    m.compression = &compression;
    m.trace = &trace;
    rules = (struct frontend_rules){.model = &model,
                                    .tokenizer = tokenizer,
                                    .max_context = 1000,
                                    .default_method = METHOD_FASTKV,
                                    .enable_trace = true,
                                    .special_ids = {special_ids, 3},
                                    .punct_ids = {punct_ids, 2}};
    request = NULL;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    request_free(request);
    return 0;
}

static status decode(void)
{
    uint8_t *data = NULL;
    size_t bytes = 0;

    CHECK_OK(message_pack(&data, &bytes, &m.base));
    request_free(request);
    request = NULL;
    status st = frontend_request_decode(&rules, data, bytes, &request, &stops);
    free(data);
    return st;
}

static ProtobufCBinaryData text_of(const char *text)
{
    return (ProtobufCBinaryData){.len = strlen(text), .data = (uint8_t *)text};
}

static void use_text(const char *text)
{
    m.prompt_case = WINNOW__V1__GENERATE_REQUEST__PROMPT_TEXT;
    m.text = text_of(text);
}

static void test_a_bare_request_gets_the_defaults(void **state)
{
    (void)state;
    m.sampling = NULL;
    m.compression = NULL;
    m.trace = NULL;
    CHECK_OK(decode());
    CHECK(request->n_prompt == 4 && request->prompt[3] == 4 && request->n_samples == 1);
    CHECK(request->sampling.max_tokens == 256 && request->sampling.min_tokens == 0);
    CHECK(request->sampling.temperature == 0 && request->sampling.top_p == 1);
    CHECK(request->sampling.top_k == 0 && request->sampling.min_p == 0);
    CHECK(request->sampling.repetition_penalty == 1 && request->priority == 0);
    CHECK(request->params.method == METHOD_FASTKV && request->params.retain_rate == 0.1);
    CHECK(!request->ignore_eos && !request->trace && request->deadline_ms == INT64_MAX);
    CHECK(stops.n == 0 && request->n_stop_ids == 0 && strcmp(request->request_id, "") == 0);
    uint64_t seed = request->sampling.seed;
    CHECK_OK(decode());
    CHECK(request->sampling.seed != seed); /* drawn anew */
}

static void test_every_field_arrives(void **state)
{
    ProtobufCBinaryData strings[] = {text_of("\n\n"), text_of("end")};
    uint32_t stop_ids[] = {7, 8};

    (void)state;
    m.request_id = text_of("id 1");
    SET(m, priority, 9, -5);
    SET(sampling, max_tokens, 1, 10);
    SET(sampling, min_tokens, 2, 10);
    SET(sampling, temperature, 3, 0.5F);
    SET(sampling, top_p, 4, 0.9F);
    SET(sampling, top_k, 5, 40);
    SET(sampling, min_p, 6, 1.0F);
    SET(sampling, seed, 10, 0);
    SET(sampling, ignore_eos, 13, 1);
    SET(sampling, repetition_penalty, 7, 1.0F); /* neutral values of what is not there yet */
    SET(sampling, frequency_penalty, 8, 0.0F);
    SET(sampling, n, 15, 1);
    sampling.stop = strings;
    sampling.n_stop = 2;
    sampling.stop_token_ids = stop_ids;
    sampling.n_stop_token_ids = 2;
    compression.method = WINNOW__V1__METHOD__METHOD_FULL;
    trace.selected_tokens = trace.step_logits = 1;
    CHECK_OK(decode());
    CHECK(strcmp(request->request_id, "id 1") == 0 && request->priority == -5);
    CHECK(request->sampling.max_tokens == 10 && request->sampling.min_tokens == 10);
    CHECK(request->sampling.temperature == 0.5F && request->sampling.top_p == 0.9F);
    CHECK(request->sampling.top_k == 40 && request->sampling.min_p == 1.0F);
    CHECK(request->sampling.seed == 0 && request->ignore_eos);
    CHECK(stops.n == 2 && stops.strings[1].bytes == 3 && request->stop_ids[1] == 8);
    CHECK(request->params.method == METHOD_FULL);
    CHECK(request->trace == (TRACE_SELECTED | TRACE_STEP_LOGITS));
}

static void test_text_is_tokenized_with_and_without_special_tokens(void **state)
{
    (void)state;
    use_text("hello");
    CHECK_OK(decode());
    uint32_t n = request->n_prompt;
    SET(m, add_special_tokens, 5, 0);
    CHECK_OK(decode());
    CHECK(request->n_prompt == 5 && n == 6); /* one token a byte, and BOS */
}

static void test_an_empty_prompt_is_invalid(void **state)
{
    Winnow__V1__Chat chat = WINNOW__V1__CHAT__INIT;

    (void)state;
    tokens.n_ids = 0;
    CHECK_FAILS(decode(), STATUS_INVALID, "tokens has no ids");
    m.prompt_case = WINNOW__V1__GENERATE_REQUEST__PROMPT__NOT_SET;
    CHECK_FAILS(decode(), STATUS_INVALID, "the prompt is empty");
    use_text("");
    CHECK_FAILS(decode(), STATUS_INVALID, "text has no characters");
    m.prompt_case = WINNOW__V1__GENERATE_REQUEST__PROMPT_CHAT;
    m.chat = &chat;
    CHECK_FAILS(decode(), STATUS_INVALID, "chat has no messages");
}

static void test_ids_are_below_the_vocabulary_size(void **state)
{
    uint32_t stop_id = (uint32_t)model.vocab;

    (void)state;
    ids[2] = (uint32_t)model.vocab - 1;
    CHECK_OK(decode());
    ids[2]++;
    CHECK_FAILS(decode(), STATUS_INVALID, "tokens.ids[2] is 512; the vocabulary has 512");
    ids[2] = 3;
    sampling.stop_token_ids = &stop_id;
    sampling.n_stop_token_ids = 1;
    CHECK_FAILS(decode(), STATUS_INVALID, "sampling.stop_token_ids[0]");
}

static void test_text_must_be_utf8_without_nul(void **state)
{
    ProtobufCBinaryData stop = {.len = 2, .data = (uint8_t *)"a\0"};

    (void)state;
    use_text("ab\xff");
    CHECK_FAILS(decode(), STATUS_INVALID, "text is not valid UTF-8");
    m.text = (ProtobufCBinaryData){.len = 3, .data = (uint8_t *)"a\0b"};
    CHECK_FAILS(decode(), STATUS_INVALID, "text has a NUL at byte 1");
    use_text("\xed\xa0\x80"); /* a surrogate */
    CHECK_FAILS(decode(), STATUS_INVALID, "UTF-8");
    use_text("\xc0\x80"); /* an overlong NUL */
    CHECK_FAILS(decode(), STATUS_INVALID, "UTF-8");
    use_text("fine");
    sampling.stop = &stop;
    sampling.n_stop = 1;
    CHECK_FAILS(decode(), STATUS_INVALID, "sampling.stop has a NUL");
}

static void test_a_request_id_is_short_and_printable(void **state)
{
    char id[REQUEST_MAX_ID + 2];

    (void)state;
    memset(id, '~', sizeof(id));
    id[REQUEST_MAX_ID] = '\0';
    m.request_id = text_of(id);
    CHECK_OK(decode());
    CHECK(strlen(request->request_id) == REQUEST_MAX_ID);
    id[REQUEST_MAX_ID] = '~';
    m.request_id.len++;
    CHECK_FAILS(decode(), STATUS_INVALID, "request_id has 129 bytes");
    m.request_id = text_of("a\tb");
    CHECK_FAILS(decode(), STATUS_INVALID, "0x09");
    m.request_id = text_of("caf\xc3\xa9");
    CHECK_FAILS(decode(), STATUS_INVALID, "printable ASCII");
    m.request_id = (ProtobufCBinaryData){.len = 2, .data = (uint8_t *)"a\0"};
    CHECK_FAILS(decode(), STATUS_INVALID, "0x00");
}

static void test_sampling_numbers_have_ranges(void **state)
{
    static const float bad[][5] = {{-0.1F, 100.1F, NAN, INFINITY, -INFINITY}, /* temperature */
                                   {0, 1.1F, NAN, INFINITY, -1},              /* top_p */
                                   {-0.1F, 1.1F, NAN, INFINITY, -1},          /* min_p */
                                   {0, 101, NAN, INFINITY, -1},               /* repetition */
                                   {-2.1F, 2.1F, NAN, INFINITY, -INFINITY},   /* the other two */
                                   {-2.1F, 2.1F, NAN, INFINITY, -INFINITY}};

    (void)state;
    for (int i = 0; i < 5; i++) {
        winnow__v1__sampling__init(&sampling);
        SET(sampling, temperature, 3, bad[0][i]);
        CHECK_FAILS(decode(), STATUS_INVALID, "sampling.temperature");
        winnow__v1__sampling__init(&sampling);
        SET(sampling, top_p, 4, bad[1][i]);
        CHECK_FAILS(decode(), STATUS_INVALID, "sampling.top_p");
        winnow__v1__sampling__init(&sampling);
        SET(sampling, min_p, 6, bad[2][i]);
        CHECK_FAILS(decode(), STATUS_INVALID, "sampling.min_p");
        winnow__v1__sampling__init(&sampling);
        SET(sampling, repetition_penalty, 7, bad[3][i]);
        CHECK_FAILS(decode(), STATUS_INVALID, "sampling.repetition_penalty");
        winnow__v1__sampling__init(&sampling);
        SET(sampling, frequency_penalty, 8, bad[4][i]);
        CHECK_FAILS(decode(), STATUS_INVALID, "sampling.frequency_penalty");
        winnow__v1__sampling__init(&sampling);
        SET(sampling, presence_penalty, 9, bad[5][i]);
        CHECK_FAILS(decode(), STATUS_INVALID, "sampling.presence_penalty");
    }
}

static void test_counts_have_ranges(void **state)
{
    (void)state;
    SET(sampling, max_tokens, 1, 0);
    CHECK_FAILS(decode(), STATUS_INVALID, "max_tokens is 0");
    SET(sampling, max_tokens, 1, 5);
    SET(sampling, min_tokens, 2, 6);
    CHECK_FAILS(decode(), STATUS_INVALID, "min_tokens is 6, but max_tokens is 5");
    SET(sampling, min_tokens, 2, 5);
    SET(sampling, n, 15, 0);
    CHECK_FAILS(decode(), STATUS_INVALID, "sampling.n is 0");
    SET(sampling, n, 15, 65);
    CHECK_FAILS(decode(), STATUS_INVALID, "sampling.n is 65");
    SET(sampling, n, 15, 1);
    SET(sampling, logprobs, 14, 21);
    CHECK_FAILS(decode(), STATUS_INVALID, "sampling.logprobs is 21");
}

static void test_penalties_logprobs_and_samples_are_taken(void **state)
{
    (void)state;
    SET(sampling, n, 15, 64);
    SET(sampling, logprobs, 14, 20);
    SET(sampling, repetition_penalty, 7, 1.25F);
    SET(sampling, frequency_penalty, 8, -2.0F);
    SET(sampling, presence_penalty, 9, 2.0F);
    CHECK_OK(decode());
    CHECK(request->n_samples == 64 && request->sampling.logprobs == 21);
    CHECK(request->sampling.repetition_penalty == 1.25F);
    CHECK(request->sampling.frequency_penalty == -2.0F);
    CHECK(request->sampling.presence_penalty == 2.0F);
    SET(sampling, logprobs, 14, 0); /* the chosen token's alone */
    CHECK_OK(decode());
    CHECK(request->sampling.logprobs == 1);
    winnow__v1__sampling__init(&sampling);
    CHECK_OK(decode());
    CHECK(request->sampling.logprobs == 0 && request->n_samples == 1);
}

static void test_stop_strings_have_limits(void **state)
{
    char bytes[STOP_MAX_BYTES + 2];
    ProtobufCBinaryData strings[STOP_MAX_STRINGS + 1];
    uint32_t stop_ids[REQUEST_MAX_STOP_IDS + 1] = {0};

    (void)state;
    memset(bytes, 'x', sizeof(bytes));
    bytes[STOP_MAX_BYTES + 1] = '\0';
    for (int i = 0; i <= STOP_MAX_STRINGS; i++) {
        strings[i] = (ProtobufCBinaryData){.len = STOP_MAX_BYTES, .data = (uint8_t *)bytes};
    }
    sampling.stop = strings;
    sampling.n_stop = STOP_MAX_STRINGS;
    CHECK_OK(decode());
    CHECK(stops.n == STOP_MAX_STRINGS && stops.strings[15].bytes == STOP_MAX_BYTES);
    sampling.n_stop++;
    CHECK_FAILS(decode(), STATUS_INVALID, "sampling.stop has 17 strings");
    sampling.n_stop = 1;
    strings[0].len++;
    CHECK_FAILS(decode(), STATUS_INVALID, "sampling.stop[0] has 257 bytes");
    strings[0].len = 0;
    CHECK_FAILS(decode(), STATUS_INVALID, "sampling.stop[0] has 0 bytes");
    sampling.n_stop = 0;
    sampling.stop_token_ids = stop_ids;
    sampling.n_stop_token_ids = REQUEST_MAX_STOP_IDS;
    CHECK_OK(decode());
    sampling.n_stop_token_ids++;
    CHECK_FAILS(decode(), STATUS_INVALID, "sampling.stop_token_ids has 65 ids");
}

static void test_the_context_limit_counts_prompt_and_max_tokens(void **state)
{
    static uint32_t many[1001];

    (void)state;
    SET(sampling, max_tokens, 1, 996);
    CHECK_OK(decode());
    SET(sampling, max_tokens, 1, 997);
    CHECK_FAILS(decode(), STATUS_OUT_OF_RANGE,
                "a prompt of 4 tokens and max_tokens 997 exceed the context of 1000");
    SET(sampling, max_tokens, 1, UINT32_MAX);
    CHECK_FAILS(decode(), STATUS_OUT_OF_RANGE, "4294967295");
    SET(sampling, max_tokens, 1, 1);
    tokens.ids = many;
    tokens.n_ids = 999;
    CHECK_OK(decode());
    tokens.n_ids = 1001;
    CHECK_FAILS(decode(), STATUS_OUT_OF_RANGE, "a prompt of 1001 tokens");
}

static void test_methods_are_checked(void **state)
{
    Winnow__V1__FastKV fastkv = WINNOW__V1__FAST_KV__INIT;
    Winnow__V1__HeadKV headkv = WINNOW__V1__HEAD_KV__INIT;

    (void)state;
    compression.method = (Winnow__V1__Method)99;
    CHECK_FAILS(decode(), STATUS_INVALID, "compression.method is 99");
    compression.method = WINNOW__V1__METHOD__METHOD_FULL;
    compression.fastkv = &fastkv;
    CHECK_FAILS(decode(), STATUS_INVALID, "compression.fastkv is set, but the method is FULL");
    compression.method = WINNOW__V1__METHOD__METHOD_UNSPECIFIED; /* the server's: FASTKV */
    CHECK_OK(decode());
    compression.budget_case = WINNOW__V1__COMPRESSION__BUDGET_RETAIN_RATE;
    compression.retain_rate = NAN;
    CHECK_FAILS(decode(), STATUS_INVALID, "compression.retain_rate");
    compression.budget_case = WINNOW__V1__COMPRESSION__BUDGET_CAPACITY;
    compression.capacity = 64;
    fastkv.tsp_case = WINNOW__V1__FAST_KV__TSP_TSP_RATE;
    fastkv.tsp_rate = 0.5;
    CHECK_FAILS(decode(), STATUS_INVALID, "contradicts");
    compression.fastkv = NULL;
    compression.method = WINNOW__V1__METHOD__METHOD_HEADKV;
    compression.headkv = &headkv;
    headkv.profile = text_of("\xff");
    CHECK_FAILS(decode(), STATUS_INVALID, "compression.headkv.profile is not valid UTF-8");
    headkv.profile = text_of("reason");
    CHECK_FAILS(decode(), STATUS_UNIMPLEMENTED, "this server has no profiles");
    float score = 1;
    headkv.head_scores = &score;
    headkv.n_head_scores = 1;
    CHECK_FAILS(decode(), STATUS_INVALID, "profile and head_scores contradict each other");
    headkv.profile = text_of("");
    CHECK_FAILS(decode(), STATUS_INVALID, "compression.headkv.head_scores has 1 values");
    headkv.n_head_scores = 0;
    CHECK_FAILS(decode(), STATUS_INVALID, "HEADKV needs a score for each of the model's");
}

static void test_a_trace_needs_the_servers_permission(void **state)
{
    (void)state;
    trace.prompt_logits = 1;
    CHECK_OK(decode());
    rules.enable_trace = false;
    CHECK_FAILS(decode(), STATUS_PERMISSION, "--enable-trace");
    trace.prompt_logits = 0;
    CHECK_OK(decode());
}

static void test_without_a_tokenizer_only_tokens_are_served(void **state)
{
    ProtobufCBinaryData stop = text_of("x");

    (void)state;
    rules.tokenizer = NULL;
    CHECK_OK(decode());
    sampling.stop = &stop;
    sampling.n_stop = 1;
    CHECK_FAILS(decode(), STATUS_INVALID, "sampling.stop: this model has no tokenizer.json");
    sampling.n_stop = 0;
    use_text("hello");
    CHECK_FAILS(decode(), STATUS_INVALID, "text: this model has no tokenizer.json");
}

static void test_contradictions_and_chat_are_refused(void **state)
{
    Winnow__V1__Chat chat = WINNOW__V1__CHAT__INIT;
    Winnow__V1__ChatMessage message = WINNOW__V1__CHAT_MESSAGE__INIT, *list = &message;

    (void)state;
    SET(m, add_special_tokens, 5, 0);
    CHECK_OK(decode());
    SET(m, add_special_tokens, 5, 1);
    CHECK_FAILS(decode(), STATUS_INVALID, "add_special_tokens contradicts");
    message.role = text_of("user");
    message.content = text_of("hello");
    chat.messages = &list;
    chat.n_messages = 1;
    m.prompt_case = WINNOW__V1__GENERATE_REQUEST__PROMPT_CHAT;
    m.chat = &chat;
    CHECK_FAILS(decode(), STATUS_INVALID, "contradicts a chat prompt");
    SET(m, add_special_tokens, 5, 0);
    CHECK_FAILS(decode(), STATUS_UNIMPLEMENTED, "send text instead");
    message.content = text_of("\xff");
    CHECK_FAILS(decode(), STATUS_INVALID, "chat.messages.content is not valid UTF-8");
}

static void test_a_chat_is_rendered_and_encoded_as_it_is(void **state)
{
    Winnow__V1__Chat chat = WINNOW__V1__CHAT__INIT;
    Winnow__V1__ChatMessage message = WINNOW__V1__CHAT_MESSAGE__INIT, *list = &message;
    struct chat *llama3, *llama2;
    struct token_ids wanted;
    static const char text[] = "<b><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
                               "<|start_header_id|>assistant<|end_header_id|>\n\n";

    (void)state;
    CHECK_OK(chat_open(&llama3, 0xdb972290124c32baU, "<b>", ""));
    CHECK_OK(chat_open(&llama2, 0x69526fb0ac2aab27U, "<b>", "<e>"));
    message.role = text_of("user");
    message.content = text_of(" hello ");
    chat.messages = &list;
    chat.n_messages = 1;
    m.prompt_case = WINNOW__V1__GENERATE_REQUEST__PROMPT_CHAT;
    m.chat = &chat;
    rules.chat = llama3;
    CHECK_OK(tokenizer_encode(tokenizer, text, strlen(text), false, &wanted));
    CHECK_OK(decode());
    CHECK(request->n_prompt == wanted.n);
    CHECK(memcmp(request->prompt, wanted.ids, wanted.n * sizeof(*wanted.ids)) == 0);
    free(wanted.ids);
    rules.chat = llama2;
    message.role = text_of("system");
    CHECK_FAILS(decode(), STATUS_INVALID, "the chat renders no text");
    message.role = text_of("assistant");
    CHECK_FAILS(decode(), STATUS_INVALID, "chat.messages[0].role is \"assistant\"");
    chat_free(llama3);
    chat_free(llama2);
}

static void test_bytes_that_are_no_request_are_refused(void **state)
{
    const struct {
        const char *bytes;
        size_t n;
    } bad[] = {{"\xff", 1}, {"\x0a\xff\xff\xff\xff\x0f", 6}, {"\x32\x02\x08", 3}, {"\x07", 1}};

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        CHECK_FAILS(frontend_request_decode(&rules, (const uint8_t *)bad[i].bytes, bad[i].n,
                                            &request, &stops),
                    STATUS_INVALID, "are no GenerateRequest");
        request_free(request);
        request = NULL;
    }
}

static void test_a_message_of_tiny_parts_runs_out_of_its_budget(void **state)
{
    enum { N = 1 << 20 };
    uint8_t *data = malloc(2 * N + 16);
    size_t at = 0;

    (void)state;
    if (!data) {
        fail_msg("out of memory");
        return;
    }
    data[at++] = 0x22; /* chat, with a length of 2 * N in four bytes */
    for (int i = 0; i < 4; i++) {
        data[at++] = (uint8_t)(((2 * N) >> (7 * i)) & 0x7F) | (i < 3 ? 0x80 : 0);
    }
    for (int i = 0; i < N; i++) { /* empty messages: two bytes each */
        data[at++] = 0x0a;
        data[at++] = 0x00;
    }
    CHECK_FAILS(frontend_request_decode(&rules, data, at, &request, &stops), STATUS_EXHAUSTED,
                "too many small parts");
    request_free(request);
    request = NULL;
    free(data);
}

static void test_unset_lists_of_ids_are_those_of_the_tokenizer(void **state)
{
    const uint32_t own[] = {4};
    Winnow__V1__TokenIds none = WINNOW__V1__TOKEN_IDS__INIT;
    Winnow__V1__FastGen message = WINNOW__V1__FAST_GEN__INIT;
    struct method_params params;

    (void)state;
    method_defaults(&params, METHOD_FASTGEN, &model);
    frontend_request_token_classes(&params, &rules, NULL);
    CHECK(params.fg_special_ids == special_ids && params.n_fg_special_ids == 3);
    CHECK(params.fg_punct_ids == punct_ids && params.n_fg_punct_ids == 2);
    method_defaults(&params, METHOD_FASTGEN, &model);
    params.fg_special_ids = own;
    params.n_fg_special_ids = 1;
    message.fg_special_ids = &none; /* a list that is there counts, an empty one as well */
    frontend_request_token_classes(&params, &rules, &message);
    CHECK(params.fg_special_ids == own && params.n_fg_special_ids == 1);
    CHECK(params.fg_punct_ids == punct_ids && params.n_fg_punct_ids == 2);
    method_defaults(&params, METHOD_H2O, &model);
    frontend_request_token_classes(&params, &rules, NULL);
    CHECK(params.n_fg_special_ids == 0 && params.n_fg_punct_ids == 0);
}

static const Winnow__V1__Compression *described(const Winnow__V1__Model *reply, enum method method)
{
    for (size_t i = 0; i < reply->n_methods; i++) {
        if ((int)reply->methods[i]->method == (int)method) {
            return reply->methods[i];
        }
    }
    return NULL;
}

/* Every supported method once, with its own message where it has one. */
static void check_methods(const Winnow__V1__Model *reply)
{
    size_t n = 0;

    for (int m = METHOD_FULL; m < METHOD_COUNT; m++) {
        const Winnow__V1__Compression *it = described(reply, (enum method)m);
        CHECK((it != NULL) == method_supported((enum method)m));
        n += it != NULL;
    }
    assert_int_equal(reply->n_methods, n);
    const Winnow__V1__Compression *gem = described(reply, METHOD_GEMFILTER);
    CHECK(gem->gemfilter->filter_layer == 2 && gem->gemfilter->gem_kernel == 5);
    CHECK(gem->gemfilter->gem_keep_last && gem->retain_rate == 0.1);
    const Winnow__V1__Compression *pyramid = described(reply, METHOD_PYRAMIDINFER);
    CHECK(pyramid->pyramidinfer->pi_recent_ratio == 0.2);
    CHECK(pyramid->pyramidinfer->pi_decay_ratio == 0.7);
    CHECK(pyramid->pyramidinfer->pi_min_context == 64 && pyramid->pyramidinfer->pi_sinks == 4);
    CHECK(pyramid->pyramidinfer->pi_distance_weight == 1.2);
}

static void test_the_model_is_described_with_every_supported_method(void **state)
{
    struct frontend_packed packed = {NULL, 0};

    (void)state;
    CHECK_OK(frontend_reply_model(&packed, &rules, DTYPE_F32, 2));
    Winnow__V1__Model *reply = winnow__v1__model__unpack(NULL, packed.bytes, packed.data);
    if (!reply) {
        fail_msg("not a Model");
        return;
    }
    CHECK(reply->layers == 5 && reply->kv_heads == 2 && reply->max_context == 1000);
    CHECK(reply->tensor_parallel == 2 && reply->n_eos_ids >= 1 && reply->n_methods >= 2);
    CHECK((int)reply->default_method == METHOD_FASTKV);
    CHECK((int)reply->methods[1]->method == METHOD_FASTKV);
    CHECK(reply->methods[1]->fastkv->tsp_rate == 0.2 && reply->methods[1]->retain_rate == 0.1);
    check_methods(reply);
    winnow__v1__model__free_unpacked(reply, NULL);
    free(packed.data);
}

static void test_a_done_message_carries_its_trace(void **state)
{
    const uint32_t kept[] = {0, 5, 9};
    const struct trace_head heads[2] = {{.head = 0, .n_kept = 3, .kept = kept},
                                        {.head = 1, .n_kept = 2, .kept = kept}};
    const struct trace_layer layers[2] = {{0, 10, 2, heads}, {1, 3, 1, heads}};
    const float logits[2] = {0.5F, -1.0F};
    const float *const steps[1] = {logits};
    struct request_done done = {
        .reason = FINISH_STOP_STRING,
        .seed = 7,
        .usage = {.prompt_tokens = 10, .kv_tokens_kept = 2.5},
        .timing = {.total_ms = 12},
        .trace = {2, layers, 3, kept, 2, logits, 1, steps},
    };
    struct stop_string stop = {3, "end"};
    struct frontend_packed packed = {NULL, 0};

    (void)state;
    CHECK_OK(frontend_reply_done(&packed, &done, &stop));
    Winnow__V1__GenerateResponse *reply =
        winnow__v1__generate_response__unpack(NULL, packed.bytes, packed.data);
    if (!reply || reply->event_case != WINNOW__V1__GENERATE_RESPONSE__EVENT_DONE) {
        fail_msg("not a GenerateResponse with Done");
        return;
    }
    const Winnow__V1__TraceResult *got = reply->done->trace;
    CHECK(reply->done->seed == 7 && reply->done->usage->kv_tokens_kept == 2.5);
    CHECK(reply->done->stop_string.len == 3 && got->n_layers == 2 && got->layers[0]->n_heads == 2);
    CHECK(got->layers[1]->heads[0]->n_kept == 3 && got->layers[1]->heads[0]->kept[2] == 9);
    CHECK(got->n_propagated == 3 && got->n_prompt_logits == 2 && got->n_step_logits == 1);
    CHECK(got->step_logits[0]->values[1] == -1.0F);
    winnow__v1__generate_response__free_unpacked(reply, NULL);
    free(packed.data);
}

static int load(void **state)
{
    const char *dir = WINNOW_SOURCE_DIR "/tests/models/needle-tiny";

    (void)state;
    CHECK_OK(model_config_load(&model, dir));
    CHECK_OK(
        tokenizer_load(&tokenizer, WINNOW_SOURCE_DIR "/tests/models/needle-tiny/tokenizer.json"));
    return 0;
}

static int unload(void **state)
{
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_bare_request_gets_the_defaults),
        TEST(test_every_field_arrives),
        TEST(test_text_is_tokenized_with_and_without_special_tokens),
        TEST(test_an_empty_prompt_is_invalid),
        TEST(test_ids_are_below_the_vocabulary_size),
        TEST(test_text_must_be_utf8_without_nul),
        TEST(test_a_request_id_is_short_and_printable),
        TEST(test_sampling_numbers_have_ranges),
        TEST(test_counts_have_ranges),
        TEST(test_penalties_logprobs_and_samples_are_taken),
        TEST(test_stop_strings_have_limits),
        TEST(test_the_context_limit_counts_prompt_and_max_tokens),
        TEST(test_methods_are_checked),
        TEST(test_a_trace_needs_the_servers_permission),
        TEST(test_without_a_tokenizer_only_tokens_are_served),
        TEST(test_contradictions_and_chat_are_refused),
        TEST(test_a_chat_is_rendered_and_encoded_as_it_is),
        TEST(test_bytes_that_are_no_request_are_refused),
        TEST(test_a_message_of_tiny_parts_runs_out_of_its_budget),
        TEST(test_unset_lists_of_ids_are_those_of_the_tokenizer),
        TEST(test_the_model_is_described_with_every_supported_method),
        TEST(test_a_done_message_carries_its_trace),
    };

    return cmocka_run_group_tests(tests, load, unload);
}
