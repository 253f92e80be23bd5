/* Encoding and decoding of small texts, streams at every split, and the cost of large texts. */
#include "coordinator/tokenizer/internal.h"
#include "tests/check.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tokenizer *load(const char *model)
{
    struct tokenizer *tokenizer;
    char path[512];

    snprintf(path, sizeof(path), "%s/tests/models/%s/tokenizer.json", WINNOW_SOURCE_DIR, model);
    CHECK_OK(tokenizer_load(&tokenizer, path));
    return tokenizer;
}

static void check_valid(const char *text, size_t bytes, bool valid)
{
    CHECK(utf8_is_valid(text, bytes) == valid);
}

static void test_utf8_is_checked(void **state)
{
    (void)state;
    check_valid("", 0, true);
    check_valid("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x9A\x80", 10, true);
    check_valid("a\0b", 3, false);
    check_valid("\xC0\xAF", 2, false);         /* longer than needed */
    check_valid("\xE0\x9F\xBF", 3, false);     /* likewise */
    check_valid("\xED\xA0\x80", 3, false);     /* a surrogate */
    check_valid("\xF4\x90\x80\x80", 4, false); /* beyond U+10FFFF */
    check_valid("\xF0\x8F\xBF\xBF", 4, false);
    check_valid("\xE2\x82", 2, false);
    check_valid("\x80", 1, false);
    check_valid("\xFF", 1, false);
}

static void test_bytes_and_their_characters_belong_together(void **state)
{
    (void)state;
    for (int byte = 0; byte < 256; byte++) {
        CHECK(byte_level_byte(byte_level_character((unsigned char)byte)) == byte);
    }
    CHECK(byte_level_character(' ') == 0x120 && byte_level_character('\n') == 0x10A);
    CHECK(byte_level_byte(' ') == -1 && byte_level_byte(0x144) == -1);
}

static void test_text_that_is_not_utf8_is_refused(void **state)
{
    struct tokenizer *tokenizer = load("needle-tiny");
    struct token_ids ids;

    (void)state;
    CHECK_FAILS(tokenizer_encode(tokenizer, "a\xff", 2, true, &ids), STATUS_INVALID,
                "not valid UTF-8");
    CHECK(ids.ids == NULL && ids.n == 0);
    CHECK_FAILS(tokenizer_encode(tokenizer, "a", (size_t)TOKENIZER_MAX_TEXT + 1, true, &ids),
                STATUS_INVALID, "more than 134217728");
    tokenizer_free(tokenizer);
}

static void test_unknown_ids_have_no_text(void **state)
{
    struct tokenizer *tokenizer = load("needle-tiny");
    const uint32_t ids[] = {97, 4000000000u, 98, tokenizer_size(tokenizer)};
    char *text;
    size_t bytes;

    (void)state;
    CHECK_OK(tokenizer_decode(tokenizer, ids, 4, false, &text, &bytes));
    CHECK(bytes == 2 && strcmp(text, "ab") == 0);
    free(text);
    CHECK_OK(tokenizer_decode(tokenizer, ids, 0, false, &text, &bytes));
    CHECK(bytes == 0 && text[0] == '\0');
    free(text);
    tokenizer_free(tokenizer);
}

/* Decodes ids [0, n) in a stream, joined; the caller frees it. */
static char *streamed(const struct tokenizer *tokenizer, const uint32_t *ids, size_t n,
                      size_t *bytes)
{
    struct text_buffer joined = {0};
    struct token_stream *stream;
    const char *piece;
    size_t size;

    CHECK_OK(token_stream_open(&stream, tokenizer, false));
    for (size_t i = 0; i < n; i++) {
        CHECK_OK(token_stream_push(stream, ids[i], &piece, &size));
        CHECK(utf8_is_text(piece, size));
        CHECK_OK(text_append(&joined, piece, size));
    }
    CHECK_OK(token_stream_finish(stream, &piece, &size));
    CHECK_OK(text_append(&joined, piece, size));
    token_stream_close(stream);
    *bytes = joined.bytes;
    CHECK_OK(text_append(&joined, "", 1));
    return joined.data;
}

/* Random ids, many of them single bytes, cut off after every id. */
static void check_every_split(const char *model)
{
    struct tokenizer *tokenizer = load(model);
    uint32_t seed = 1;
    uint32_t ids[24];

    for (int round = 0; round < 200; round++) {
        for (size_t i = 0; i < 24; i++) {
            seed = seed * 1664525 + 1013904223;
            ids[i] = (seed >> 16) % (round % 2 ? 270 : tokenizer_size(tokenizer));
        }
        for (size_t n = 0; n <= 24; n++) {
            size_t bytes;
            size_t expected_bytes;
            char *expected;
            CHECK_OK(tokenizer_decode(tokenizer, ids, n, false, &expected, &expected_bytes));
            char *joined = streamed(tokenizer, ids, n, &bytes);
            CHECK(bytes == expected_bytes && memcmp(joined, expected, bytes) == 0);
            free(joined);
            free(expected);
        }
    }
    tokenizer_free(tokenizer);
}

static void test_streams_equal_the_whole_at_every_split(void **state)
{
    (void)state;
    check_every_split("needle-tiny");
    check_every_split("stories260k");
}

static void check_push(struct token_stream *stream, uint32_t id, const char *expected)
{
    const char *out;
    size_t bytes;

    CHECK_OK(token_stream_push(stream, id, &out, &bytes));
    CHECK(bytes == strlen(expected) && memcmp(out, expected, bytes) == 0);
}

static void test_an_incomplete_character_is_held_back(void **state)
{
    struct tokenizer *tokenizer = load("needle-tiny");
    struct token_stream *stream;
    const char *out;
    size_t bytes;

    (void)state;
    CHECK_OK(token_stream_open(&stream, tokenizer, true));
    check_push(stream, 'a', "a");
    check_push(stream, 0xE2, ""); /* ids below 256 are bytes in this vocabulary */
    check_push(stream, 0x82, "");
    check_push(stream, 0xAC, "\xE2\x82\xAC");
    check_push(stream, 0xE2, "");
    check_push(stream, 'b',
               "\xEF\xBF\xBD"
               "b");
    check_push(stream, 0xF0, "");
    check_push(stream, 0x9F, "");
    CHECK_OK(token_stream_finish(stream, &out, &bytes));
    CHECK(bytes == 3 && memcmp(out, "\xEF\xBF\xBD", 3) == 0);
    token_stream_close(stream);
    token_stream_close(NULL);
    tokenizer_free(tokenizer);
}

static void test_a_broken_run_of_byte_tokens_is_one_mark_a_byte(void **state)
{
    struct tokenizer *tokenizer = load("stories260k");
    const uint32_t ids[] = {3 + 0xE2, 3 + 0x82, 3 + 'a'};
    char *text;
    size_t bytes;

    (void)state;
    CHECK_OK(tokenizer_decode(tokenizer, ids, 3, false, &text, &bytes));
    CHECK(strcmp(text, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD") == 0);
    free(text);
    tokenizer_free(tokenizer);
}

#define ADDED(id, content, flags) \
    "{\"id\":" id ",\"content\":\"" content "\"," flags ",\"special\":false}"

/* Bytes as tokens: ids are the bytes' places among the letters a to h and the space. */
static struct tokenizer *small(const char *added, const char *pre_tokenizer, const char *decoder)
{
    char json[2048];
    struct tokenizer *tokenizer;

    int n = snprintf(json, sizeof(json),
                     "{\"added_tokens\":[%s],\"pre_tokenizer\":%s,\"decoder\":%s,\"model\":{"
                     "\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"_\":4,\" \":5,"
                     "\"ab\":6,\"_a\":7},\"merges\":[\"a b\",\"_ a\"]}}",
                     added, pre_tokenizer, decoder);
    CHECK(n > 0 && (size_t)n < sizeof(json));
    CHECK_OK(tokenizer_parse(&tokenizer, "small", json, (size_t)n));
    return tokenizer;
}

/* The ids as digits, '*' for those above 9. */
static void check_encoding(const struct tokenizer *tokenizer, const char *text,
                           const char *expected)
{
    struct token_ids ids;
    char digits[64] = "";

    CHECK_OK(tokenizer_encode(tokenizer, text, strlen(text), true, &ids));
    CHECK(ids.n < sizeof(digits));
    for (size_t i = 0; i < ids.n; i++) {
        digits[i] = ids.ids[i] < 10 ? (char)('0' + ids.ids[i]) : '*';
        digits[i + 1] = '\0';
    }
    free(ids.ids);
    if (strcmp(digits, expected) != 0) {
        fail_msg("\"%s\" is %s, expected %s", text, digits, expected);
    }
}

static void test_added_tokens_take_spaces_and_stand_alone(void **state)
{
    struct tokenizer *t = small(
        ADDED("8", "cc",
              "\"single_word\":true,\"lstrip\":false,\"rstrip\":false,"
              "\"normalized\":false") "," ADDED("9", "dd",
                                                "\"single_word\":false,\"lstrip\":true,\"rstrip\":"
                                                "true,"
                                                "\"normalized\":true") "," ADDED("10", "ddd",
                                                                                 "\"single_word\":"
                                                                                 "false,\"lstrip\":"
                                                                                 "false,\"rstrip\":"
                                                                                 "false,"
                                                                                 "\"normalized\":"
                                                                                 "true"),
        "null", "null");

    (void)state;
    check_encoding(t, "cc", "8");
    check_encoding(t, "a cc b", "05851");
    check_encoding(t, "acc", "022"); /* no word of its own */
    check_encoding(t, "cca", "220");
    check_encoding(t, "a  dd  b", "091"); /* the spaces go with it */
    check_encoding(t, "a \n dd", "09");
    check_encoding(t, "dddd", "*3"); /* the longest of the leftmost */
    check_encoding(t, "ddd", "*");
    check_encoding(t, "a dd dd b", "0991");
    tokenizer_free(t);
}

static void test_characters_without_a_token_vanish(void **state)
{
    struct tokenizer *t = small("", "null", "null");

    (void)state;
    check_encoding(t, "abxab", "66");
    check_encoding(t, "x", "");
    check_encoding(t, "", "");
    tokenizer_free(t);
}

#define METASPACE(scheme, split)                                                 \
    "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"" scheme \
    "\",\"split\":" split "}"

static void test_prefix_spaces_follow_their_scheme(void **state)
{
    static const char token[] = ADDED("8", "cc",
                                      "\"single_word\":false,\"lstrip\":false,"
                                      "\"rstrip\":false,\"normalized\":false");
    struct tokenizer *always = small(token, METASPACE("always", "false"), "null");
    struct tokenizer *first = small(token, METASPACE("first", "false"), "null");
    struct tokenizer *never = small(token, METASPACE("never", "true"), "null");

    (void)state;
    check_encoding(always, "accb", "7841");
    check_encoding(first, "accb", "781");
    check_encoding(never, "accb", "081");
    check_encoding(always, " a b", "741");
    check_encoding(never, "ab ab", "646");
    tokenizer_free(always);
    tokenizer_free(first);
    tokenizer_free(never);
}

#define SPLIT(behavior, invert)                                                    \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"b|_\"},\"behavior\":\"" behavior \
    "\",\"invert\":" invert "}"

static void test_splits_keep_or_drop_what_they_match(void **state)
{
    struct tokenizer *isolated = small("", SPLIT("Isolated", "false"), "null");
    struct tokenizer *removed = small("", SPLIT("Removed", "false"), "null");
    struct tokenizer *kept = small("", SPLIT("Removed", "true"), "null");
    struct tokenizer *previous = small("", SPLIT("MergedWithPrevious", "false"), "null");
    struct tokenizer *next = small("", SPLIT("MergedWithNext", "false"), "null");
    struct tokenizer *contiguous = small("", SPLIT("Contiguous", "false"), "null");

    (void)state;
    check_encoding(isolated, "ab_a", "0140");
    check_encoding(removed, "ab_a", "00");
    check_encoding(kept, "ab_a", "14");
    check_encoding(previous, "ab_a", "640");
    check_encoding(next, "ab_a", "017");
    check_encoding(contiguous, "ab_a", "0140");
    tokenizer_free(isolated);
    tokenizer_free(removed);
    tokenizer_free(kept);
    tokenizer_free(previous);
    tokenizer_free(next);
    tokenizer_free(contiguous);
}

static void check_decoding(const char *decoder, const char *ids, const char *expected)
{
    struct tokenizer *t = small("", "null", decoder);
    uint32_t list[16];
    size_t n = strlen(ids);
    size_t bytes;

    for (size_t i = 0; i < n; i++) {
        list[i] = (uint32_t)(ids[i] - '0');
    }
    char *text;
    CHECK_OK(tokenizer_decode(t, list, n, false, &text, &bytes));
    char *joined = streamed(t, list, n, &bytes);
    if (strcmp(text, expected) != 0 || strcmp(joined, expected) != 0) {
        fail_msg("%s of %s is \"%s\", expected \"%s\"", decoder, ids, text, expected);
    }
    free(text);
    free(joined);
    tokenizer_free(t);
}

static void test_decoders_do_as_they_say(void **state)
{
    (void)state;
    check_decoding("null", "061", "a ab b");
    check_decoding("{\"type\":\"Fuse\"}", "061", "aabb");
    check_decoding("{\"type\":\"Metaspace\",\"replacement\":\"_\"}", "7147", "ab  a");
    check_decoding("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"never\"}",
                   "714", " ab ");
    check_decoding("{\"type\":\"Strip\",\"content\":\"a\",\"start\":1,\"stop\":1}", "060", "b");
    check_decoding("{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Strip\","
                   "\"content\":\"a\",\"start\":2,\"stop\":1}]}",
                   "0001000", "abaa");
    check_decoding("{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Strip\","
                   "\"content\":\"a\",\"start\":0,\"stop\":9}]}",
                   "0010000", "aab");
    check_decoding("{\"type\":\"ByteLevel\"}", "05", "a ");
}

/* Heap moves of merging one word of n letters. */
static uint64_t merging_work(const struct tokenizer *tokenizer, const char *text, size_t n)
{
    struct bpe bpe = {0};
    struct id_list ids = {0};

    CHECK_OK(bpe_encode(&bpe, &tokenizer->model, &tokenizer->vocab, (struct slice_of_text){text, n},
                        &ids));
    uint64_t work = bpe.heap_moves;
    bpe_fini(&bpe);
    free(ids.ids);
    return work;
}

static void test_a_long_word_costs_little_more_than_its_length(void **state)
{
    struct tokenizer *tokenizer = load("stories260k");
    static char text[1 << 20];
    size_t n = sizeof(text);
    uint32_t seed = 7;

    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        for (size_t i = 0; i < n; i++) {
            seed = seed * 1664525 + 1013904223;
            text[i] = (char)(kind ? 'a' + (seed >> 16) % 26 : 'e');
        }
        uint64_t small_work = merging_work(tokenizer, text, n / 64);
        uint64_t large_work = merging_work(tokenizer, text, n);
        /* n log n: 64 * 20 / 14 is 91; n squared would be 4096. */
        CHECK(large_work < 128 * (small_work + 64));
    }
    tokenizer_free(tokenizer);
}

/* Unicode's hardest stretches for the pattern: none may reach the limit of matching steps. */
static void test_long_stretches_do_not_exhaust_the_pattern(void **state)
{
    static const char *const units[] = {" ", "\n", " \n", "a", "1", "\xCC\x81", "'", "\t "};
    struct tokenizer *tokenizer = load("needle-tiny");
    struct text_buffer text = {0};
    struct token_ids ids;

    (void)state;
    for (size_t k = 0; k < sizeof(units) / sizeof(units[0]); k++) {
        text.bytes = 0;
        while (text.bytes < 200000) {
            CHECK_OK(text_append(&text, units[k], strlen(units[k])));
        }
        CHECK_OK(text_append(&text, "x", 1));
        CHECK_OK(tokenizer_encode(tokenizer, text.data, text.bytes, false, &ids));
        CHECK(ids.n > 0 && ids.n <= text.bytes);
        free(ids.ids);
    }
    text_fini(&text);
    tokenizer_free(tokenizer);
}

static void *encode_many(void *argument)
{
    const struct tokenizer *tokenizer = argument;
    const char text[] = "Once upon a time, there were 365 tales; it's \xE6\x97\xA5.";
    struct token_ids expected;

    CHECK_OK(tokenizer_encode(tokenizer, text, strlen(text), true, &expected));
    for (int i = 0; i < 200; i++) {
        struct token_ids ids;
        CHECK_OK(tokenizer_encode(tokenizer, text, strlen(text), true, &ids));
        CHECK(ids.n == expected.n);
        CHECK(memcmp(ids.ids, expected.ids, ids.n * sizeof(*ids.ids)) == 0);
        free(ids.ids);
    }
    free(expected.ids);
    return NULL;
}

static void test_threads_share_a_tokenizer(void **state)
{
    struct tokenizer *tokenizer = load("needle-tiny");
    pthread_t threads[4];

    (void)state;
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, encode_many, tokenizer) == 0);
    }
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8_is_checked),
        cmocka_unit_test(test_bytes_and_their_characters_belong_together),
        cmocka_unit_test(test_text_that_is_not_utf8_is_refused),
        cmocka_unit_test(test_unknown_ids_have_no_text),
        cmocka_unit_test(test_streams_equal_the_whole_at_every_split),
        cmocka_unit_test(test_an_incomplete_character_is_held_back),
        cmocka_unit_test(test_a_broken_run_of_byte_tokens_is_one_mark_a_byte),
        cmocka_unit_test(test_added_tokens_take_spaces_and_stand_alone),
        cmocka_unit_test(test_characters_without_a_token_vanish),
        cmocka_unit_test(test_prefix_spaces_follow_their_scheme),
        cmocka_unit_test(test_splits_keep_or_drop_what_they_match),
        cmocka_unit_test(test_decoders_do_as_they_say),
        cmocka_unit_test(test_a_long_word_costs_little_more_than_its_length),
        cmocka_unit_test(test_long_stretches_do_not_exhaust_the_pattern),
        cmocka_unit_test(test_threads_share_a_tokenizer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
