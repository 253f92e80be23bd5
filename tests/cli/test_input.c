#include "cli/input.h"
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];

static void write_file(const char *data, size_t bytes)
{
    snprintf(path, sizeof(path), "/tmp/winnow_test_input_XXXXXX");
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK(write(fd, data, bytes) == (ssize_t)bytes);
    close(fd);
}

static void check_prompt(const char *document, const char *prompt, const char *expected)
{
    struct input_text text;

    if (document) {
        write_file(document, strlen(document));
    }
    CHECK_OK(input_prompt(&text, document ? path : NULL, prompt));
    if (strcmp(text.data, expected) != 0 || text.bytes != strlen(expected)) {
        fail_msg("the prompt is \"%s\", expected \"%s\"", text.data, expected);
    }
    free(text.data);
    if (document) {
        unlink(path);
    }
}

static void test_a_blank_line_parts_document_and_question(void **state)
{
    (void)state;
    check_prompt("doc", "why?", "doc\n\nwhy?");
    check_prompt("doc\n", "why?", "doc\n\nwhy?");
    check_prompt("doc\n\n", "why?", "doc\n\nwhy?");
    check_prompt("", "why?", "why?");
    check_prompt("doc\n", NULL, "doc\n");
    check_prompt(NULL, "why?", "why?");
    check_prompt(NULL, "", "");
}

static void test_long_documents_are_read_whole(void **state)
{
    size_t n = 100000;
    char *document = calloc(n + 1, 1);
    char *expected = calloc(n + 8, 1);

    (void)state;
    CHECK(document && expected);
    for (size_t i = 0; i < n; i++) {
        document[i] = (char)('a' + i % 26);
    }
    snprintf(expected, n + 8, "%s\n\nq", document);
    check_prompt(document, "q", expected);
    free(document);
    free(expected);
}

static void test_what_is_not_text_is_refused_by_name(void **state)
{
    struct input_text text;

    (void)state;
    CHECK_FAILS(input_read(&text, "/nowhere/doc.txt"), STATUS_NOT_FOUND, "/nowhere/doc.txt");
    CHECK_FAILS(input_read(&text, "/"), STATUS_INTERNAL, "/: ");
    write_file("a\xff", 2);
    CHECK_FAILS(input_prompt(&text, path, "x"), STATUS_INVALID, "not UTF-8 text");
    unlink(path);
    write_file("a\0b", 3);
    CHECK_FAILS(input_prompt(&text, path, "x"), STATUS_INVALID, "not UTF-8 text");
    unlink(path);
    CHECK_FAILS(input_prompt(&text, NULL, "\xff"), STATUS_INVALID, "--prompt: not UTF-8");
}

static void test_ids_may_be_parted_in_many_ways(void **state)
{
    struct input_ids ids = {0};

    (void)state;
    CHECK_OK(input_ids_parse(&ids, "x", " [1, 2,3]\n4294967295\t0"));
    CHECK(ids.n == 5 && ids.ids[0] == 1 && ids.ids[2] == 3);
    CHECK(ids.ids[3] == 4294967295u && ids.ids[4] == 0);
    free(ids.ids);
    ids = (struct input_ids){0};
    CHECK_OK(input_ids_parse(&ids, "x", ""));
    CHECK(ids.n == 0);
}

static void test_many_ids_are_all_there(void **state)
{
    struct input_ids ids = {0};
    char text[8 * 1000 + 1] = "";

    (void)state;
    for (int i = 0; i < 1000; i++) {
        snprintf(text + strlen(text), 8, "%d ", i);
    }
    CHECK_OK(input_ids_parse(&ids, "x", text));
    CHECK(ids.n == 1000 && ids.ids[999] == 999);
    free(ids.ids);
}

static void test_what_is_no_id_is_refused(void **state)
{
    static const char *const wrong[] = {
        "a", "1 -2", "1.5", "4294967296", "0x10", "1 2;", "99999999999999999999"};

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct input_ids ids = {0};
        CHECK_FAILS(input_ids_parse(&ids, "ids.txt", wrong[i]), STATUS_INVALID, "ids.txt: ");
        CHECK(strstr(status_text(), "is not a token id") != NULL);
        free(ids.ids);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_blank_line_parts_document_and_question),
        cmocka_unit_test(test_long_documents_are_read_whole),
        cmocka_unit_test(test_what_is_not_text_is_refused_by_name),
        cmocka_unit_test(test_ids_may_be_parted_in_many_ways),
        cmocka_unit_test(test_many_ids_are_all_there),
        cmocka_unit_test(test_what_is_no_id_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
