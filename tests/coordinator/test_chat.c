/* Conversations as transformers renders them from the published templates. */
#include "common/file.h"
#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/chat_fingerprint.h"
#include "tests/check.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_EXPECTED = 1 << 20, MAX_MESSAGES = 16, MAX_PATH = 4096 };

/* The templates of expected.json; their texts are not part of this repository. */
static const struct {
    const char *name;
    uint64_t fingerprint;
} templates[] = {
    {"llama-2", 0x69526fb0ac2aab27U},        {"llama-3", 0xdb972290124c32baU},
    {"llama-3-always", 0xeaa00d059fb44fabU}, {"llama-3.1", 0xfce5228690e37ec5U},
    {"llama-3.2", 0x1eb9894b21a82437U},      {"mistral-v0.1", 0xaf7d320eb15c53f1U},
    {"mistral-v0.2", 0xf3000d19dd577d5aU},   {"mistral-v1", 0x22afe2d95a905b12U},
    {"mistral-v3", 0xc77d2df620eac4f9U},     {"mistral-v3-user", 0x4fcbf9b624fe1030U},
    {"mistral-tekken", 0x48364abb3aa2b4a0U}, {"mistral-tekken-user", 0x90f44d6ca0e5256bU},
    {"smollm2", 0x110dc1dadbc0ac2cU},
};

enum { N_TEMPLATES = sizeof(templates) / sizeof(templates[0]) };

static cJSON *expected;

static int read_expected(void **state)
{
    char *text;
    size_t bytes;

    (void)state;
    CHECK_OK(file_read(&text, &bytes, WINNOW_SOURCE_DIR "/tests/tokenizers/chat/expected.json",
                       MAX_EXPECTED));
    expected = cJSON_ParseWithLength(text, bytes);
    free(text);
    return expected ? 0 : -1;
}

static int free_expected(void **state)
{
    (void)state;
    cJSON_Delete(expected);
    return 0;
}

static const char *string_of(const cJSON *object, const char *key)
{
    return cJSON_GetObjectItem(object, key)->valuestring;
}

static struct chat_message message_of(const char *role, const char *content)
{
    return (struct chat_message){role, content, strlen(role), strlen(content)};
}

static size_t read_messages(struct chat_message *out, const cJSON *conversation)
{
    size_t n = 0;
    const cJSON *item;

    cJSON_ArrayForEach(item, conversation)
    {
        CHECK(n < MAX_MESSAGES);
        out[n++] = message_of(string_of(item, "role"), string_of(item, "content"));
    }
    return n;
}

static void check_conversation(const char *name, const struct chat *chat, int number,
                               const cJSON *wanted)
{
    struct chat_message messages[MAX_MESSAGES];
    const cJSON *all = cJSON_GetObjectItem(expected, "conversations");
    size_t n = read_messages(messages, cJSON_GetArrayItem(all, number));
    char *text = NULL;
    size_t bytes = 0;
    status st = chat_render(chat, messages, n, &text, &bytes);

    if (cJSON_IsNull(wanted)) {
        CHECK_FAILS(st, STATUS_INVALID, "].role is \"");
        return;
    }
    CHECK_OK(st);
    if (bytes != strlen(wanted->valuestring) ||
        (bytes && memcmp(text, wanted->valuestring, bytes) != 0)) {
        fail_msg("%s, conversation %d: \"%.*s\", expected \"%s\"", name, number, (int)bytes, text,
                 wanted->valuestring);
    }
    free(text);
}

static void test_conversations_are_rendered_as_by_transformers(void **state)
{
    const cJSON *all = cJSON_GetObjectItem(expected, "templates");

    (void)state;
    CHECK(cJSON_GetArraySize(all) == N_TEMPLATES);
    for (size_t i = 0; i < N_TEMPLATES; i++) {
        const cJSON *it = cJSON_GetObjectItemCaseSensitive(all, templates[i].name), *wanted;
        struct chat *chat;
        int number = 0;
        CHECK(it != NULL);
        CHECK_OK(
            chat_open(&chat, templates[i].fingerprint, string_of(it, "bos"), string_of(it, "eos")));
        CHECK(chat_name(chat) != NULL);
        cJSON_ArrayForEach(wanted, cJSON_GetObjectItem(it, "expected"))
        {
            check_conversation(templates[i].name, chat, number++, wanted);
        }
        CHECK(number > 30);
        chat_free(chat);
    }
}

/* Needs a folder with the published templates. */
static void test_published_templates_are_recognised(void **state)
{
    const char *data = getenv("WINNOW_TEST_DATA");
    int found = 0;

    (void)state;
    for (size_t i = 0; data && i < N_TEMPLATES; i++) {
        char path[MAX_PATH], *text;
        size_t bytes;
        uint64_t fingerprint;
        snprintf(path, sizeof(path), "%s/chat/%s.jinja", data, templates[i].name);
        if (access(path, R_OK) != 0) {
            continue;
        }
        CHECK_OK(file_read(&text, &bytes, path, CHAT_MAX_TEMPLATE));
        CHECK_OK(chat_fingerprint(&fingerprint, text, bytes));
        if (fingerprint != templates[i].fingerprint) {
            fail_msg("%s: fingerprint %016llx", path, (unsigned long long)fingerprint);
        }
        free(text);
        found++;
    }
    if (!found) {
        skip();
    }
}

static void check_refused(const char *config, const char *jinja, const char *words)
{
    const struct chat_message message = message_of("user", "hello");
    struct chat *chat;
    char *text;
    size_t bytes;

    CHECK_OK(
        chat_parse(&chat, config, config ? strlen(config) : 0, jinja, jinja ? strlen(jinja) : 0));
    CHECK(chat_name(chat) == NULL && strstr(chat_refusal(chat), words) != NULL);
    CHECK_FAILS(chat_render(chat, &message, 1, &text, &bytes), STATUS_UNIMPLEMENTED, words);
    CHECK(strstr(status_text(), "; send text instead") != NULL);
    chat_free(chat);
}

static void test_what_is_missing_broken_or_unknown_is_refused_with_the_way_out(void **state)
{
    (void)state;
    check_refused(NULL, NULL, "has no tokenizer_config.json");
    check_refused("{}", NULL, "has no chat_template");
    check_refused("{\"chat_template\":null}", NULL, "has no chat_template");
    check_refused("{\"chat_template\":[]}", NULL, "has no chat_template");
    check_refused("{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"x\"}]}", NULL,
                  "has no chat_template");
    check_refused("{\"chat_template\":", NULL, "tokenizer_config.json: not JSON");
    check_refused("{\"chat_template\":\"{{ x }}\"}", NULL, "not one that this server knows");
    check_refused("{\"chat_template\":\"{{ x \"}", NULL, "a tag does not end");
    check_refused("{}", "{% if x %}", "a block does not end");
    check_refused(NULL, "hello", "not one that this server knows");
}

static void test_a_template_without_its_tokens_is_refused(void **state)
{
    struct chat *chat;

    (void)state;
    CHECK_OK(chat_open(&chat, templates[0].fingerprint, "<s>", ""));
    CHECK(chat_name(chat) == NULL && strstr(chat_refusal(chat), "eos_token"));
    chat_free(chat);
    CHECK_OK(chat_open(&chat, templates[1].fingerprint, "", ""));
    CHECK(chat_name(chat) == NULL && strstr(chat_refusal(chat), "bos_token"));
    chat_free(chat);
}

/* Written here, in other words than the published one: it says the same. */
#define SMOLLM2                                                                             \
    "{#- ours -#}{% for message in messages %}{%if loop.first and messages[0]["             \
    "\\\"role\\\"]!='system'%}{{\\\"<|im_start|>system\\\\nYou are a helpful AI assistant " \
    "named SmolLM, trained by Hugging Face<|im_end|>\\n\\\"}}{% endif %}{{ '<|im_start|>'+" \
    "message['role']+'\\n'+message['content']+'<|im_end|>'+'\\n' }}{% endfor %}"            \
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\\n'}}{% endif %}"

static void check_smollm2(const char *config)
{
    const struct chat_message message = message_of("system", "S");
    static const char wanted[] = "<|im_start|>system\nS<|im_end|>\n<|im_start|>assistant\n";
    struct chat *chat;
    char *text;
    size_t bytes;

    CHECK_OK(chat_parse(&chat, config, strlen(config), NULL, 0));
    CHECK_OK(chat_render(chat, &message, 1, &text, &bytes));
    CHECK(bytes == strlen(wanted) && memcmp(text, wanted, bytes) == 0);
    free(text);
    chat_free(chat);
}

static void test_a_template_is_found_in_the_forms_that_configs_have(void **state)
{
    (void)state;
    check_smollm2("{\"chat_template\":\"" SMOLLM2 "\"}");
    check_smollm2("{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"x\"},"
                  "{\"name\":\"default\",\"template\":\"" SMOLLM2 "\"}],"
                  "\"bos_token\":{\"content\":\"<s>\"}}");
}

static void test_a_conversation_has_a_limit(void **state)
{
    static char content[1 << 20];
    struct chat_message messages[CHAT_MAX_RENDERED / sizeof(content)];
    struct chat *chat;
    char *text;
    size_t bytes;

    (void)state;
    memset(content, 'x', sizeof(content));
    for (size_t i = 0; i < sizeof(messages) / sizeof(messages[0]); i++) {
        messages[i] = (struct chat_message){"user", content, 4, sizeof(content)};
    }
    CHECK_OK(chat_open(&chat, templates[1].fingerprint, "<b>", ""));
    CHECK_FAILS(chat_render(chat, messages, sizeof(messages) / sizeof(messages[0]), &text, &bytes),
                STATUS_INVALID, "has more than");
    chat_free(chat);
}

static void test_roles_in_sentences_are_short_and_printable(void **state)
{
    const struct chat_message message =
        message_of("a\x1b[31m-role-that-goes-on-and-on-and-on", "x");
    struct chat *chat;
    char *text;
    size_t bytes;

    (void)state;
    CHECK_OK(chat_open(&chat, templates[0].fingerprint, "<s>", "</s>"));
    CHECK_FAILS(chat_render(chat, &message, 1, &text, &bytes), STATUS_INVALID,
                "role is \"a?[31m-role-that-goes-on...\"");
    chat_free(chat);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conversations_are_rendered_as_by_transformers),
        cmocka_unit_test(test_published_templates_are_recognised),
        cmocka_unit_test(test_what_is_missing_broken_or_unknown_is_refused_with_the_way_out),
        cmocka_unit_test(test_a_template_without_its_tokens_is_refused),
        cmocka_unit_test(test_a_template_is_found_in_the_forms_that_configs_have),
        cmocka_unit_test(test_a_conversation_has_a_limit),
        cmocka_unit_test(test_roles_in_sentences_are_short_and_printable),
    };

    return cmocka_run_group_tests(tests, read_expected, free_expected);
}
