/* Encodings and decodings that the Hugging Face library computed from the same files. */
#include "common/file.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "tests/check.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_GOLDEN (16 << 20)

static void check_ids(const char *name, int line, const cJSON *expected,
                      const struct token_ids *ids)
{
    size_t n = (size_t)cJSON_GetArraySize(expected);
    const cJSON *item = expected->child;

    if (ids->n != n) {
        fail_msg("%s line %d: %zu ids, expected %zu", name, line, ids->n, n);
    }
    for (size_t i = 0; i < n; i++, item = item->next) {
        if (ids->ids[i] != (uint32_t)item->valuedouble) {
            fail_msg("%s line %d: id %zu is %u, expected %.0f", name, line, i, ids->ids[i],
                     item->valuedouble);
        }
    }
}

/* cJSON cuts a string at NUL, so that one travels as U+F8FE. */
static void hide_nul(char *line, size_t n)
{
    for (char *at; (at = memmem(line, n, "\\u0000", 6)) != NULL;) {
        at[2] = 'F';
        at[3] = '8';
        at[4] = 'F';
        at[5] = 'E';
    }
}

static const char *reveal_nul(const cJSON *golden, const char *key, size_t *bytes)
{
    char *text = cJSON_GetObjectItem(golden, key)->valuestring;
    size_t n = strlen(text);

    for (char *at; (at = memmem(text, n, "\xEF\xA3\xBE", 3)) != NULL;) {
        *at = '\0';
        memmove(at + 1, at + 3, (size_t)(text + n - at) - 3);
        n -= 2;
    }
    *bytes = n;
    return text;
}

static void check_text(const char *name, int line, const char *what, const char *expected,
                       size_t expected_bytes, const char *text, size_t bytes)
{
    if (expected_bytes != bytes || memcmp(expected, text, bytes) != 0) {
        fail_msg("%s line %d: %s \"%.*s\", expected \"%.*s\"", name, line, what, (int)bytes, text,
                 (int)expected_bytes, expected);
    }
}

/* One id after another gives what all at once give, whole characters each time. */
static void check_stream(const char *name, int line, const struct tokenizer *tokenizer,
                         const struct token_ids *ids, bool skip, const char *expected,
                         size_t expected_bytes)
{
    struct token_stream *stream;
    char joined[1 << 16];
    size_t used = 0;
    const char *out;
    size_t bytes;

    CHECK_OK(token_stream_open(&stream, tokenizer, skip));
    for (size_t i = 0; i <= ids->n; i++) {
        if (i < ids->n) {
            CHECK_OK(token_stream_push(stream, ids->ids[i], &out, &bytes));
        } else {
            CHECK_OK(token_stream_finish(stream, &out, &bytes));
        }
        CHECK(memchr(out, 0, bytes) || utf8_is_valid(out, bytes));
        CHECK(used + bytes < sizeof(joined));
        memcpy(joined + used, out, bytes);
        used += bytes;
    }
    token_stream_close(stream);
    check_text(name, line, "streamed", expected, expected_bytes, joined, used);
}

static void check_line(const char *name, int line, const struct tokenizer *tokenizer,
                       const cJSON *golden)
{
    size_t text_bytes;
    const char *text = reveal_nul(golden, "text", &text_bytes);
    struct token_ids ids;
    struct token_ids with;
    char *decoded;
    size_t bytes;

    CHECK_OK(tokenizer_encode(tokenizer, text, text_bytes, false, &ids));
    check_ids(name, line, cJSON_GetObjectItem(golden, "ids"), &ids);
    CHECK_OK(tokenizer_encode(tokenizer, text, text_bytes, true, &with));
    check_ids(name, line, cJSON_GetObjectItem(golden, "ids_with_template"), &with);
    for (int skip = 0; skip < 2; skip++) {
        const char *key = skip ? "decoded_skip_special" : "decoded";
        size_t expected_bytes;
        const char *expected = reveal_nul(golden, key, &expected_bytes);
        CHECK_OK(tokenizer_decode(tokenizer, ids.ids, ids.n, skip, &decoded, &bytes));
        check_text(name, line, key, expected, expected_bytes, decoded, bytes);
        free(decoded);
        check_stream(name, line, tokenizer, &ids, skip, expected, expected_bytes);
    }
    free(ids.ids);
    free(with.ids);
}

static void check_golden(const char *name, const char *tokenizer_path, const char *golden_path)
{
    struct tokenizer *tokenizer;
    char *text;
    size_t bytes;
    int line = 0;

    CHECK_OK(tokenizer_load(&tokenizer, tokenizer_path));
    CHECK_OK(file_read(&text, &bytes, golden_path, MAX_GOLDEN));
    for (char *at = text; *at;) {
        char *end = strchr(at, '\n');
        size_t n = end ? (size_t)(end - at) : strlen(at);
        hide_nul(at, n);
        cJSON *golden = cJSON_ParseWithLength(at, n);
        line++;
        if (!golden) {
            fail_msg("%s line %d is not JSON", name, line);
        }
        check_line(name, line, tokenizer, golden);
        cJSON_Delete(golden);
        at += n + (end != NULL);
    }
    CHECK(line >= 500);
    free(text);
    tokenizer_free(tokenizer);
}

static void check_bundled(const char *name)
{
    char tokenizer[512];
    char golden[512];

    snprintf(tokenizer, sizeof(tokenizer), "%s/tests/models/%s/tokenizer.json", WINNOW_SOURCE_DIR,
             name);
    snprintf(golden, sizeof(golden), "%s/tests/tokenizers/%s/golden.jsonl", WINNOW_SOURCE_DIR,
             name);
    check_golden(name, tokenizer, golden);
}

static void check_outside(const char *name)
{
    const char *data = getenv("WINNOW_TEST_DATA");
    char tokenizer[512];
    char golden[512];

    snprintf(tokenizer, sizeof(tokenizer), "%s/tokenizers/%s/tokenizer.json", data ? data : "",
             name);
    snprintf(golden, sizeof(golden), "%s/tokenizers/%s/golden.jsonl", data ? data : "", name);
    if (!data || access(golden, R_OK) != 0) {
        skip();
    }
    check_golden(name, tokenizer, golden);
}

static void test_needle_tiny_is_reproduced(void **state)
{
    (void)state;
    check_bundled("needle-tiny");
}

static void test_stories260k_is_reproduced(void **state)
{
    (void)state;
    check_bundled("stories260k");
}

static void test_llama2_is_reproduced(void **state)
{
    (void)state;
    check_outside("llama2");
}

static void test_llama3_is_reproduced(void **state)
{
    (void)state;
    check_outside("llama3");
}

static void test_mistral_v1_is_reproduced(void **state)
{
    (void)state;
    check_outside("mistral-v1");
}

static void test_mistral_v3_is_reproduced(void **state)
{
    (void)state;
    check_outside("mistral-v3");
}

static void test_mistral_tekken_is_reproduced(void **state)
{
    (void)state;
    check_outside("mistral-tekken");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_needle_tiny_is_reproduced),
        cmocka_unit_test(test_stories260k_is_reproduced),
        cmocka_unit_test(test_llama2_is_reproduced),
        cmocka_unit_test(test_llama3_is_reproduced),
        cmocka_unit_test(test_mistral_v1_is_reproduced),
        cmocka_unit_test(test_mistral_v3_is_reproduced),
        cmocka_unit_test(test_mistral_tekken_is_reproduced),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
