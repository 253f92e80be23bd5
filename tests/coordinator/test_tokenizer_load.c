/* What a broken or unsupported tokenizer.json is told. */
#include "coordinator/tokenizer/internal.h"
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char base[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,"
    "\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"single_word\":false,\"lstrip\":false,"
    "\"rstrip\":false,\"normalized\":false,\"special\":true},"
    "{\"id\":6,\"content\":\"<end>\",\"single_word\":false,\"lstrip\":false,"
    "\"rstrip\":false,\"normalized\":true,\"special\":true}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
    "\"_\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"_\"}]},"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
    "{\"Regex\":\"x+\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"Digits\","
    "\"individual_digits\":true},{\"type\":\"Metaspace\",\"replacement\":\"_\","
    "\"prepend_scheme\":\"first\",\"split\":false},{\"type\":\"ByteLevel\","
    "\"add_prefix_space\":false,\"use_regex\":false}]},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
    "\"<unk>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],"
    "\"special_tokens\":{\"<unk>\":{\"id\":\"<unk>\",\"ids\":[0],\"tokens\":[\"<unk>\"]}}},"
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{"
    "\"String\":\"_\"},\"content\":\" \"},{\"type\":\"Metaspace\",\"replacement\":\"~\"},"
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"<unk>\","
    "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":true,"
    "\"byte_fallback\":true,\"ignore_merges\":false,"
    "\"vocab\":{\"<unk>\":0,\"a\":1,\"b\":2,\"ab\":3,\"_\":4,\"aba\":5},"
    "\"merges\":[\"a b\",[\"ab\",\"a\"]]}}";

static void check_fails(const char *json, size_t bytes, status code, const char *words)
{
    struct tokenizer *tokenizer = NULL;

    CHECK_FAILS(tokenizer_parse(&tokenizer, "t.json", json, bytes), code, words);
    CHECK(strncmp(status_text(), "t.json: ", 8) == 0);
}

/* The base with one stretch of it replaced. */
static char *with(const char *old, const char *new)
{
    const char *at = strstr(base, old);
    size_t size = sizeof(base) + strlen(new);
    char *out = malloc(size);

    if (!at) {
        fail_msg("the base has no %s", old);
    }
    CHECK(out != NULL);
    snprintf(out, size, "%.*s%s%s", (int)(at - base), base, new, at + strlen(old));
    return out;
}

struct change {
    const char *old, *new, *words;
};

static void check_changes(const struct change *changes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char *json = with(changes[i].old, changes[i].new);
        check_fails(json, strlen(json), STATUS_INVALID, changes[i].words);
        free(json);
    }
}

#define CHECK_CHANGES(changes) check_changes((changes), sizeof(changes) / sizeof((changes)[0]))

static void test_the_unchanged_text_loads(void **state)
{
    struct tokenizer *tokenizer;
    struct token_ids ids;

    (void)state;
    CHECK_OK(tokenizer_parse(&tokenizer, "t.json", base, strlen(base)));
    CHECK(tokenizer_size(tokenizer) == 7);
    CHECK(tokenizer_is_special(tokenizer, 0) && tokenizer_is_special(tokenizer, 6));
    CHECK(!tokenizer_is_special(tokenizer, 1) && !tokenizer_is_special(tokenizer, 7));
    CHECK_OK(tokenizer_encode(tokenizer, "aba", 3, true, &ids));
    CHECK(ids.n == 3 && ids.ids[0] == 0 && ids.ids[1] == 4 && ids.ids[2] == 5);
    free(ids.ids);
    tokenizer_free(tokenizer);
    tokenizer_free(NULL);
}

static void test_text_that_is_not_json_is_refused(void **state)
{
    (void)state;
    check_fails("", 0, STATUS_INVALID, "not JSON at byte 0 of 0");
    check_fails("{\"a\":", 5, STATUS_INVALID, "not JSON");
    check_fails("{} x", 4, STATUS_INVALID, "more text after the JSON value, at byte 3");
    check_fails("[]", 2, STATUS_INVALID, "is not an object");
    check_fails("{\"a\":\"\xff\"}", 9, STATUS_INVALID, "not valid UTF-8");
    check_fails("{\0}", 3, STATUS_INVALID, "not valid UTF-8");
    check_fails("{\"\\\\\\u0000\":1}", 13, STATUS_INVALID, "a \\u0000 at byte 4");
    check_fails("{}", 2, STATUS_INVALID, "model: is missing");
}

static void test_deep_nesting_is_refused(void **state)
{
    char deep[20000];

    (void)state;
    memset(deep, '[', sizeof(deep));
    check_fails(deep, sizeof(deep), STATUS_INVALID, "not JSON");
}

static void test_a_text_beyond_the_limit_is_refused(void **state)
{
    (void)state;
    check_fails("", (size_t)TOKENIZER_MAX_FILE + 1, STATUS_INVALID, "more than 67108864");
}

static void test_a_missing_file_is_named(void **state)
{
    struct tokenizer *tokenizer;

    (void)state;
    CHECK_FAILS(tokenizer_load(&tokenizer, "/nowhere/tokenizer.json"), STATUS_NOT_FOUND,
                "/nowhere/tokenizer.json");
}

static void test_a_broken_model_is_named(void **state)
{
    static const struct change changes[] = {
        {"\"type\":\"BPE\"", "\"type\":\"Unigram\"", "model: type Unigram is not supported"},
        {"\"type\":\"BPE\",", "", "model.type: is missing"},
        {"\"type\":\"BPE\"", "\"type\":7", "model.type: is not a string"},
        {"\"dropout\":null", "\"dropout\":0.1", "model.dropout: is not supported"},
        {"\"dropout\":null", "\"dropout\":null,\"dropout\":null", "model.dropout: is there twice"},
        {"\"continuing_subword_prefix\":null", "\"continuing_subword_prefix\":\"##\"",
         "model.continuing_subword_prefix: is not supported"},
        {"\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"",
         "model.end_of_word_suffix: is not supported"},
        {"\"fuse_unk\":true", "\"fuse_unk\":1", "model.fuse_unk: is not true or false"},
        {"\"byte_fallback\":true", "\"byte_fallback\":[]", "model.byte_fallback: is not"},
        {"\"ignore_merges\":false", "\"ignore_merges\":\"\"", "model.ignore_merges: is not"},
        {"\"unk_token\":\"<unk>\"", "\"unk_token\":\"?\"", "model.unk_token: is not in the"},
        {"\"vocab\":{", "\"vocab\":7,\"v\":{", "model.vocab: is not an object"},
        {"\"a\":1", "\"a\":1,\"a\":9", "model.vocab.a: is there twice"},
        {"\"a\":1", "\"a\":2", "id 2 is taken by another token"},
        {"\"a\":1", "\"a\":\"1\"", "model.vocab.a: is not a number"},
        {"\"a\":1", "\"a\":-1", "model.vocab.a: -1 is not a whole number"},
        {"\"a\":1", "\"a\":1.5", "model.vocab.a: 1.5 is not a whole number"},
        {"\"a\":1", "\"a\":4194304", "model.vocab.a: 4.1943e+06 is not a whole number"},
        {"\"a\":1", "\"a\":1e999", "model.vocab.a: inf is not a whole number"},
        {"\"merges\":[", "\"merges\":7,\"m\":[", "model.merges: is not a list"},
        {"\"merges\":[", "\"m\":[", "model.merges: is missing"},
        {"\"a b\"", "\"ab\"", "model.merges[0]: is not two tokens with a space"},
        {"\"a b\"", "\"a  b\"", "model.merges[0]: is not two tokens with a space"},
        {"\"a b\"", "7", "model.merges[0]: is neither a string nor two strings"},
        {"\"a b\"", "\"c b\"", "model.merges[0]: its left side is not in the vocabulary"},
        {"\"a b\"", "\"a c\"", "model.merges[0]: its right side is not in the vocabulary"},
        {"\"a b\"", "\"b a\"", "model.merges[0]: its result is not in the vocabulary"},
        {"[\"ab\",\"a\"]", "[\"ab\"]", "model.merges[1]: is not two strings"},
        {"[\"ab\",\"a\"]", "[\"ab\",\"a\",\"a\"]", "model.merges[1]: is not two strings"},
        {"[\"ab\",\"a\"]", "[\"ab\",7]", "model.merges[1]: is not two strings"},
    };

    (void)state;
    CHECK_CHANGES(changes);
}

static void test_broken_added_tokens_are_named(void **state)
{
    static const struct change changes[] = {
        {"\"added_tokens\":[", "\"added_tokens\":[7,", "added_tokens[0]: is not an object"},
        {"\"id\":0,", "", "added_tokens[0].id: is missing"},
        {"\"id\":0,", "\"id\":0,\"id\":0,", "added_tokens[0].id: is there twice"},
        {"\"id\":0,", "\"id\":1e9,", "added_tokens[0].id: 1e+09 is not a whole number"},
        {"\"id\":0,", "\"id\":1,", "added_tokens[0]: id is 1 here and 0 in the vocabulary"},
        {"\"id\":6,", "\"id\":5,", "added_tokens[1]: id 5 is taken by another token"},
        {"\"content\":\"<unk>\"", "\"content\":\"\"", "added_tokens[0]: content is empty"},
        {"\"content\":\"<unk>\"", "\"content\":1", "added_tokens[0].content: is not a string"},
        {"\"special\":true}", "\"s\":true}", "added_tokens[0].special: is missing"},
        {"\"single_word\":false,", "", "added_tokens[0].single_word: is missing"},
        {"\"lstrip\":false", "\"lstrip\":0", "added_tokens[0].lstrip: is not true or false"},
        {"\"rstrip\":false", "\"rstrip\":0", "added_tokens[0].rstrip: is not true or false"},
        {"\"normalized\":false", "\"n\":0", "added_tokens[0].normalized: is missing"},
        {"\"prepend\":\"_\"},",
         "\"prepend\":\"\"},{\"type\":\"Replace\",\"pattern\":{\"String\":"
         "\"<end>\"},\"content\":\"\"},",
         "added_tokens[1]: content is empty once normalized"},
    };

    (void)state;
    CHECK_CHANGES(changes);
}

static void test_unsupported_normalizers_are_named(void **state)
{
    static const struct change changes[] = {
        {"\"normalizer\":{", "\"normalizer\":7,\"n\":{", "normalizer: is not an object"},
        {"\"type\":\"Prepend\"", "\"type\":\"NFKC\"",
         "normalizer.normalizers[0]: type NFKC is not supported"},
        {"\"prepend\":", "\"p\":", "normalizer.normalizers[0].prepend: is missing"},
        {"\"normalizers\":[", "\"normalizers\":[7,", "normalizers[0]: is not an object"},
        {"\"normalizers\":[", "\"n\":[", "normalizer.normalizers: is missing"},
        {"{\"String\":\" \"}", "{\"Regex\":\" \"}",
         "normalizer.normalizers[1].pattern.String: is missing"},
        {"{\"String\":\" \"}", "{\"String\":\"\"}", "pattern: String is empty"},
        {"\"content\":\"_\"}]}", "\"c\":\"_\"}]}", "normalizers[1].content: is missing"},
    };

    (void)state;
    CHECK_CHANGES(changes);
}

static void test_unsupported_pre_tokenizers_are_named(void **state)
{
    static const struct change changes[] = {
        {"\"type\":\"Split\"", "\"type\":\"Punctuation\"",
         "pre_tokenizer.pretokenizers[0]: type Punctuation is not supported"},
        {"\"behavior\":\"Isolated\"", "\"behavior\":\"Odd\"", "behavior: Odd is not supported"},
        {"\"invert\":false", "\"i\":false", "pretokenizers[0].invert: is missing"},
        {"{\"Regex\":\"x+\"}", "{}", "pattern: has not exactly one of Regex and String"},
        {"{\"Regex\":\"x+\"}", "{\"Regex\":\"x\",\"String\":\"x\"}", "has not exactly one of"},
        {"{\"Regex\":\"x+\"}", "{\"String\":\"\"}", "pattern.String: is empty or longer"},
        {"\"x+\"", "\"(x\"", "is not a regular expression: missing closing parenthesis"},
        {"\"x+\"", "\"x*\"", "can match nothing at all"},
        {"\"x+\"", "\"\\\\w\"", "uses \\w, which is not supported"},
        {"\"x+\"", "\"x\\\\\"", "uses \\?, which is not supported"},
        {"\"x+\"", "\"\\\\p{L\"", "has \\p{ without }"},
        {"\"x+\"", "\"(?i)x\"", "uses a group (?i), which is not supported"},
        {"\"x+\"", "\"[a[b]]\"", "uses [ inside a class"},
        {"\"x+\"", "\"[a-z&&b]\"", "uses && inside a class"},
        {"\"x+\"", "\"[]a]\"", "has a class that begins with ]"},
        {"\"x+\"", "\"^x\"", "uses ^, which is not supported"},
        {"\"x+\"", "\"x$\"", "uses $, which is not supported"},
        {"\"x+\"", "\"x{,2}\"", "has { without a number"},
        {"\"x+\"", "\"x{1,2}+\"", "uses }+, which is not supported"},
        {"\"individual_digits\":true", "\"i\":1", "individual_digits: is missing"},
        {"\"replacement\":\"_\"", "\"replacement\":\"__\"", "replacement: is not one character"},
        {"\"prepend_scheme\":\"first\"", "\"prepend_scheme\":\"last\"",
         "prepend_scheme: last is not supported"},
        {"\"split\":false", "\"split\":0", "split: is not true or false"},
        {"\"add_prefix_space\":false", "\"a\":0", "add_prefix_space: is missing"},
        {"\"use_regex\":false", "\"use_regex\":0", "use_regex: is not true or false"},
        {"\"pretokenizers\":[", "\"p\":[", "pre_tokenizer.pretokenizers: is missing"},
        {"\"pretokenizers\":[", "\"pretokenizers\":[[],", "pretokenizers[0]: is not an object"},
    };

    (void)state;
    CHECK_CHANGES(changes);
}

static void test_unsupported_templates_are_named(void **state)
{
    static const struct change changes[] = {
        {"\"TemplateProcessing\"", "\"BertProcessing\"",
         "post_processor: type BertProcessing is not supported"},
        {"\"single\":[", "\"s\":[", "post_processor.single: is missing"},
        {"\"single\":[", "\"single\":[\"$A\",", "post_processor.single[0]: is not an object"},
        {"\"single\":[", "\"single\":[{},", "post_processor.single[0]: is not a special token"},
        {",{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}", "", "single: has no place for the text"},
        {"{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}", "{\"Sequence\":{}},{\"Sequence\":{}}",
         "single[2]: is not a special token or the one place"},
        {"\"ids\":[0]", "\"ids\":[9]", "ids[0]: 9 is not a whole number below 7"},
        {"\"ids\":[0]", "\"i\":[0]", "special_tokens.<unk>.ids: is missing"},
        {"\"ids\":[0]", "\"ids\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]", "is more than 16 tokens"},
        {"\"special_tokens\":{\"<unk>\"", "\"special_tokens\":{\"<x>\"", "<unk>: is missing"},
        {"\"post_processor\":{\"type\":\"TemplateProcessing\"",
         "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},"
         "{\"type\":\"RobertaProcessing\"}],\"t\":\"\"",
         "post_processor.processors[1]: type RobertaProcessing is not supported"},
    };

    (void)state;
    CHECK_CHANGES(changes);
}

static void test_unsupported_decoders_are_named(void **state)
{
    static const struct change changes[] = {
        {"{\"type\":\"Fuse\"}", "{\"type\":\"WordPiece\"}",
         "decoder.decoders[3]: type WordPiece is not supported"},
        {"{\"type\":\"Fuse\"}", "{\"type\":\"ByteFallback\"}", "ByteFallback twice"},
        {"{\"type\":\"Strip\"", "{\"type\":\"ByteFallback\"", "ByteFallback after Fuse"},
        {"{\"type\":\"Strip\"", "{\"type\":\"ByteLevel\"", "ByteLevel after Fuse"},
        {"{\"type\":\"Strip\"", "{\"type\":\"Replace\"", "Replace after Fuse"},
        {"{\"type\":\"Strip\"", "{\"type\":\"Metaspace\"", "Metaspace after Fuse"},
        {"{\"String\":\"_\"},\"content\":\" \"", "{\"String\":\"\"},\"content\":\" \"",
         "decoders[0].pattern: String is empty"},
        {"{\"String\":\"_\"},\"content\":\" \"", "{\"String\":\"_\"}", "content: is missing"},
        {"\"replacement\":\"~\"", "\"replacement\":\"\"", "replacement is not one character"},
        {"\"content\":\" \",\"start\"", "\"content\":\"ab\",\"start\"",
         "decoders[4]: content is not one character"},
        {"\"start\":1", "\"start\":-1", "decoders[4].start: -1 is not a whole number"},
        {"\"stop\":0", "\"s\":0", "decoders[4].stop: is missing"},
        {"\"decoders\":[", "\"decoders\":[[],", "decoder.decoders[0]: is not an object"},
    };

    (void)state;
    CHECK_CHANGES(changes);
}

/* n steps of one kind in place of the first of a chain. */
static void check_too_many(const char *first, int n)
{
    char steps[4096];
    size_t used = 0;

    for (int i = 0; i < n; i++) {
        used += (size_t)snprintf(steps + used, sizeof(steps) - used, "%s,", first);
    }
    snprintf(steps + used, sizeof(steps) - used, "%s", first);
    char *json = with(first, steps);
    check_fails(json, strlen(json), STATUS_INVALID, "is more than 16 steps");
    free(json);
}

static void test_long_chains_are_refused(void **state)
{
    (void)state;
    check_too_many("{\"type\":\"Prepend\",\"prepend\":\"_\"}", 16);
    check_too_many("{\"type\":\"Digits\",\"individual_digits\":true}", 16);
    check_too_many("{\"type\":\"Metaspace\",\"replacement\":\"~\"}", 16);
}

static void test_deep_sequences_are_refused(void **state)
{
    char *json = with("{\"type\":\"Prepend\",\"prepend\":\"_\"}",
                      "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Sequence\","
                      "\"normalizers\":[{\"type\":\"Sequence\",\"normalizers\":[{\"type\":"
                      "\"Sequence\",\"normalizers\":[{\"type\":\"Sequence\",\"normalizers\":[{"
                      "\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Sequence\","
                      "\"normalizers\":[{\"type\":\"Sequence\",\"normalizers\":[]}]}]}]}]}]}]}]}");

    (void)state;
    check_fails(json, strlen(json), STATUS_INVALID, "type Sequence is not supported");
    free(json);
}

static void test_an_object_with_too_many_fields_is_refused(void **state)
{
    char many[1024] = "{";
    size_t used = 1;

    (void)state;
    for (int i = 0; i < 65; i++) {
        used += (size_t)snprintf(many + used, sizeof(many) - used, "%s\"%d\":0", i ? "," : "", i);
    }
    used += (size_t)snprintf(many + used, sizeof(many) - used, "}");
    check_fails(many, used, STATUS_INVALID, "has more than 64 fields");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_unchanged_text_loads),
        cmocka_unit_test(test_text_that_is_not_json_is_refused),
        cmocka_unit_test(test_deep_nesting_is_refused),
        cmocka_unit_test(test_a_text_beyond_the_limit_is_refused),
        cmocka_unit_test(test_a_missing_file_is_named),
        cmocka_unit_test(test_a_broken_model_is_named),
        cmocka_unit_test(test_broken_added_tokens_are_named),
        cmocka_unit_test(test_unsupported_normalizers_are_named),
        cmocka_unit_test(test_unsupported_pre_tokenizers_are_named),
        cmocka_unit_test(test_unsupported_templates_are_named),
        cmocka_unit_test(test_unsupported_decoders_are_named),
        cmocka_unit_test(test_long_chains_are_refused),
        cmocka_unit_test(test_deep_sequences_are_refused),
        cmocka_unit_test(test_an_object_with_too_many_fields_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
