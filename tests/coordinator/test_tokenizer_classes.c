/* Which ids of a vocabulary are special, and which are punctuation. */
#include "coordinator/tokenizer/tokenizer.h"
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A sentencepiece-style vocabulary, where U+2581 stands for a space. */
static const char small[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
    "{\"id\":0,\"content\":\"<unk>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
    "\"normalized\":false,\"special\":true},"
    "{\"id\":1,\"content\":\"...\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
    "\"normalized\":false,\"special\":true}],"
    "\"normalizer\":null,\"pre_tokenizer\":null,\"post_processor\":null,"
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":["
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\\u2581\"},\"content\":\" \"},"
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"<unk>\","
    "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":true,"
    "\"byte_fallback\":true,\"ignore_merges\":false,\"vocab\":{\"<unk>\":0,\"...\":1,"
    "\"<0x21>\":2,\"<0xE2>\":3,\"a\":4,\",\":5,\"\\u2581\":6,\"\\u2581(\":7,\"?!\":8,\"'s\":9,"
    "\"\\u2014\":10,\"+=\":11,\"\\u20ac\":12,\"\\u3002\":13,\"1\":14,\"\\n;\\n\":15},"
    "\"merges\":[]}}";

static void check_ids(const struct token_ids *got, const uint32_t *expected, size_t n)
{
    assert_int_equal(got->n, n);
    assert_memory_equal(got->ids, expected, n * sizeof(*expected));
}

static void test_special_and_punctuation_ids_are_told_by_text(void **state)
{
    static const uint32_t special[] = {0, 1};
    static const uint32_t punct[] = {2, 5, 7, 8, 10, 11, 13, 15};
    struct tokenizer *tokenizer;
    struct token_ids ids;

    (void)state;
    CHECK_OK(tokenizer_parse(&tokenizer, "small", small, strlen(small)));
    CHECK_OK(tokenizer_specials(tokenizer, &ids));
    check_ids(&ids, special, 2);
    free(ids.ids);
    CHECK_OK(tokenizer_punctuation(tokenizer, &ids));
    check_ids(&ids, punct, 8);
    free(ids.ids);
    tokenizer_free(tokenizer);
}

static void test_every_punctuation_id_of_a_model_decodes_to_punctuation(void **state)
{
    struct tokenizer *tokenizer;
    struct token_ids ids;

    (void)state;
    CHECK_OK(
        tokenizer_load(&tokenizer, WINNOW_SOURCE_DIR "/tests/models/stories260k/tokenizer.json"));
    CHECK_OK(tokenizer_punctuation(tokenizer, &ids));
    CHECK(ids.n > 5);
    for (size_t i = 0; i < ids.n; i++) {
        char *text;
        size_t bytes;
        CHECK_OK(tokenizer_decode(tokenizer, &ids.ids[i], 1, false, &text, &bytes));
        CHECK(bytes > 0 && strpbrk(text, "abcdefghijklmnopqrstuvwxyz0123456789") == NULL);
        CHECK(i == 0 || ids.ids[i] > ids.ids[i - 1]);
        free(text);
    }
    free(ids.ids);
    tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_special_and_punctuation_ids_are_told_by_text),
        cmocka_unit_test(test_every_punctuation_id_of_a_model_decodes_to_punctuation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
