#include "cli/print.h"
#include "tests/check.h"

#include <stdlib.h>
#include <string.h>

static void check_harmless(const char *text, size_t bytes, bool lines, const char *expected)
{
    char *harmless = print_harmless(text, bytes, lines);

    if (!harmless || strcmp(harmless, expected) != 0) {
        fail_msg("harmless is \"%s\", expected \"%s\"", harmless ? harmless : "", expected);
    }
    free(harmless);
}

static void test_plain_text_stays_as_it_is(void **state)
{
    (void)state;
    check_harmless("", 0, true, "");
    check_harmless("caf\xC3\xA9 \xE6\x97\xA5\xF0\x9F\x9A\x80\n\tx", 16, true,
                   "caf\xC3\xA9 \xE6\x97\xA5\xF0\x9F\x9A\x80\n\tx");
}

static void test_what_a_terminal_obeys_is_spelled_out(void **state)
{
    (void)state;
    check_harmless("\x1b]0;x\x07", 6, true, "\\x1b]0;x\\x07");
    check_harmless("a\rb\x7F", 4, true, "a\\x0db\\x7f");
    check_harmless("a\0b", 3, true, "a\\x00b");
    check_harmless("\xC2\x9B"
                   "31m",
                   5, true, "<U+009B>31m");
    check_harmless("\xE2\x80\xAEtxt", 6, true, "<U+202E>txt");
    check_harmless("\xE2\x81\xA6", 3, true, "<U+2066>");
}

static void test_bytes_that_are_no_text_become_question_marks(void **state)
{
    (void)state;
    check_harmless("a\x9B\xFF"
                   "b",
                   4, true, "a??b");
    check_harmless("\xE2\x82", 2, true, "?");
}

static void test_a_sentence_stays_on_one_line(void **state)
{
    (void)state;
    check_harmless("a\nb\tc", 5, false, "a\\x0ab\\x09c");
}

static void test_codes_have_their_grpc_names(void **state)
{
    (void)state;
    CHECK(strcmp(print_status_name(STATUS_INVALID), "INVALID_ARGUMENT") == 0);
    CHECK(strcmp(print_status_name(STATUS_DEADLINE), "DEADLINE_EXCEEDED") == 0);
    CHECK(strcmp(print_status_name(STATUS_EXHAUSTED), "RESOURCE_EXHAUSTED") == 0);
    CHECK(strcmp(print_status_name(STATUS_UNAUTHENTICATED), "UNAUTHENTICATED") == 0);
    CHECK(strcmp(print_status_name((status)99), "UNKNOWN") == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_text_stays_as_it_is),
        cmocka_unit_test(test_what_a_terminal_obeys_is_spelled_out),
        cmocka_unit_test(test_bytes_that_are_no_text_become_question_marks),
        cmocka_unit_test(test_a_sentence_stays_on_one_line),
        cmocka_unit_test(test_codes_have_their_grpc_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
