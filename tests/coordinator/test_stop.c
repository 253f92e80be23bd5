#include "coordinator/stop.h"
#include "tests/check.h"

#include <stdio.h>
#include <string.h>

static struct stop_set set;

static void add(const char *string)
{
    struct stop_string *stop = &set.strings[set.n++];

    stop->bytes = (unsigned short)strlen(string);
    memcpy(stop->text, string, stop->bytes);
}

/* Pushes `text` in pieces of `size`; what came out joined, and the string that was found. */
static void run(const char *text, size_t size, char *out, int *found)
{
    struct stop_text it;
    const char *piece;
    size_t bytes, used = 0;

    stop_text_init(&it);
    for (size_t at = 0; at < strlen(text) && it.found < 0; at += size) {
        size_t n = strlen(text) - at < size ? strlen(text) - at : size;
        CHECK_OK(stop_text_push(&it, &set, true, text + at, n, &piece, &bytes));
        memcpy(out + used, piece, bytes);
        used += bytes;
    }
    if (it.found < 0) {
        stop_text_finish(&it, &piece, &bytes);
        memcpy(out + used, piece, bytes);
        used += bytes;
    }
    out[used] = '\0';
    *found = it.found;
    stop_text_fini(&it);
}

static void check(const char *text, const char *wanted, int wanted_found)
{
    char out[256];
    int found;

    for (size_t size = 1; size <= strlen(text); size++) {
        run(text, size, out, &found);
        if (strcmp(out, wanted) != 0 || found != wanted_found) {
            fail_msg("\"%s\" in pieces of %zu: \"%s\", %d", text, size, out, found);
        }
    }
}

static int reset(void **state)
{
    (void)state;
    memset(&set, 0, sizeof(set));
    return 0;
}

static void test_a_stop_string_is_found_across_pieces_and_left_out(void **state)
{
    (void)state;
    add("\n\n");
    add("END");
    check("one EN two END three", "one EN two ", 1);
    check("one\ntwo\n\nthree", "one\ntwo", 0);
    check("nothing here EN", "nothing here EN", -1);
}

static void test_the_first_to_be_complete_counts_and_of_those_the_longest(void **state)
{
    (void)state;
    add("abcd");
    add("c");
    add("bc");
    check("xabcd", "xa", 2);
}

static void test_a_beginning_that_repeats_itself_is_found(void **state)
{
    (void)state;
    add("aab");
    check("aaaab", "aa", 0);
    check("aaaa", "aaaa", -1);
}

static void test_only_what_may_begin_a_stop_string_is_held_back(void **state)
{
    struct stop_text it;
    const char *piece;
    size_t bytes;

    (void)state;
    add("STOP");
    stop_text_init(&it);
    CHECK_OK(stop_text_push(&it, &set, true, "go ST", 5, &piece, &bytes));
    CHECK(bytes == 3 && it.found < 0);
    CHECK_OK(stop_text_push(&it, &set, true, "AR", 2, &piece, &bytes));
    CHECK(bytes == 4 && memcmp(piece, "STAR", 4) == 0);
    CHECK_OK(stop_text_push(&it, &set, false, "STOP", 4, &piece, &bytes)); /* not watched */
    CHECK(bytes == 4 && it.found < 0);
    stop_text_finish(&it, &piece, &bytes);
    CHECK(bytes == 0);
    stop_text_fini(&it);
}

static void test_an_unwatched_piece_may_begin_what_a_later_one_ends(void **state)
{
    struct stop_text it;
    const char *piece;
    size_t bytes;

    (void)state;
    add("ab");
    add("abc");
    stop_text_init(&it);
    CHECK_OK(stop_text_push(&it, &set, false, "xab", 3, &piece, &bytes));
    CHECK(bytes == 1 && it.found < 0);
    CHECK_OK(stop_text_push(&it, &set, true, "cab", 3, &piece, &bytes));
    CHECK(bytes == 0 && it.found == 1); /* not "ab", which ended where none may */
    stop_text_fini(&it);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_a_stop_string_is_found_across_pieces_and_left_out, reset),
        cmocka_unit_test_setup(test_the_first_to_be_complete_counts_and_of_those_the_longest,
                               reset),
        cmocka_unit_test_setup(test_a_beginning_that_repeats_itself_is_found, reset),
        cmocka_unit_test_setup(test_only_what_may_begin_a_stop_string_is_held_back, reset),
        cmocka_unit_test_setup(test_an_unwatched_piece_may_begin_what_a_later_one_ends, reset),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
