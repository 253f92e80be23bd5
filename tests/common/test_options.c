#include "common/options.h"
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct values {
    const char *listen, *config;
    int64_t threads, memory;
    double rate;
    bool trace;
    struct option_list files;
} values;

static const struct option table[] = {
    {"listen", OPTION_STRING, &values.listen, "HOST:PORT", "where to listen", 0, 0},
    {"config", OPTION_STRING, &values.config, "FILE", "more options", 0, 0},
    {"threads", OPTION_INT, &values.threads, "N", "threads", 1, 64},
    {"kv-memory", OPTION_BYTES, &values.memory, "BYTES", "memory", 0, 1e15},
    {"rate", OPTION_DOUBLE, &values.rate, "X", "a rate", 0, 1},
    {"enable-trace", OPTION_FLAG, &values.trace, NULL, "traces", 0, 0},
    {"file", OPTION_LIST, &values.files, "FILE", "documents", 0, 0},
};

static const char *words[2];
static int n_words;

static status parse(int argc, char **argv, enum options_outcome *outcome)
{
    struct options options = {
        .program = "test",
        .synopsis = "tests options",
        .table = table,
        .n = sizeof(table) / sizeof(table[0]),
        .positional = words,
        .max_positional = 2,
    };
    status st = options_parse(&options, argc, argv, outcome);

    n_words = options.n_positional;
    return st;
}

/* The arguments behind the program's name, ended by NULL. */
static status run(char *first, ...)
{
    char *argv[20] = {"test"};
    int argc = 1;
    enum options_outcome outcome;
    va_list rest;

    va_start(rest, first);
    for (char *word = first; word; word = va_arg(rest, char *)) {
        argv[argc++] = word;
    }
    va_end(rest);
    return parse(argc, argv, &outcome);
}

static int reset(void **state)
{
    (void)state;
    values = (struct values){.listen = "127.0.0.1:1", .threads = 2, .memory = 4096, .rate = 0.5};
    unsetenv("WINNOW_THREADS");
    unsetenv("WINNOW_KV_MEMORY");
    unsetenv("WINNOW_FILE");
    unsetenv("WINNOW_CONFIG");
    return 0;
}

static void test_defaults_stay_when_nothing_is_given(void **state)
{
    (void)state;
    CHECK_OK(run(NULL));
    CHECK(values.threads == 2 && values.memory == 4096 && values.rate == 0.5 && !values.trace);
    CHECK(strcmp(values.listen, "127.0.0.1:1") == 0);
}

static void test_values_of_every_type_are_understood(void **state)
{
    (void)state;
    CHECK_OK(run("--listen", "h:2", "--threads=64", "--kv-memory", "2G", "--rate", "0.25",
                 "--enable-trace", "one", "--file", "a", "--file=b", "--", "--two", NULL));
    CHECK(strcmp(values.listen, "h:2") == 0 && values.threads == 64);
    CHECK(values.memory == INT64_C(2) << 30 && values.rate == 0.25 && values.trace);
    CHECK(values.files.n == 2 && strcmp(values.files.values[1], "b") == 0);
    CHECK(n_words == 2 && strcmp(words[0], "one") == 0 && strcmp(words[1], "--two") == 0);
    CHECK_OK(run("--enable-trace=false", "--kv-memory=3k", NULL));
    CHECK(!values.trace && values.memory == 3072);
}

static void test_wrong_usage_is_explained(void **state)
{
    (void)state;
    CHECK_FAILS(run("--thread", "1", NULL), STATUS_INVALID, "unknown option --thread");
    CHECK_FAILS(run("-t", NULL), STATUS_INVALID, "unknown option -t");
    CHECK_FAILS(run("--threads", NULL), STATUS_INVALID, "--threads needs a value");
    CHECK_FAILS(run("--threads", "0", NULL), STATUS_INVALID, "--threads: 0 is not within 1..64");
    CHECK_FAILS(run("--threads", "65", NULL), STATUS_INVALID, "not within");
    CHECK_FAILS(run("--threads", "1x", NULL), STATUS_INVALID, "not a whole number");
    CHECK_FAILS(run("--threads", "99999999999999999999", NULL), STATUS_INVALID, "whole number");
    CHECK_FAILS(run("--kv-memory", "9223372036854775807G", NULL), STATUS_INVALID, "too large");
    CHECK_FAILS(run("--kv-memory", "-1", NULL), STATUS_INVALID, "not within");
    CHECK_FAILS(run("--kv-memory", "1T", NULL), STATUS_INVALID, "K, M or G");
    CHECK_FAILS(run("--rate", "nan", NULL), STATUS_INVALID, "not a number");
    CHECK_FAILS(run("--enable-trace=maybe", NULL), STATUS_INVALID, "not true or false");
    CHECK_FAILS(run("a", "b", "c", NULL), STATUS_INVALID, "unexpected argument \"c\"");
}

static void test_a_list_has_a_limit(void **state)
{
    char *argv[2 + OPTION_LIST_MAX] = {"test"};
    enum options_outcome outcome;

    (void)state;
    for (int i = 1; i <= OPTION_LIST_MAX + 1; i++) {
        argv[i] = "--file=x";
    }
    CHECK_OK(parse(OPTION_LIST_MAX + 1, argv, &outcome));
    CHECK_FAILS(parse(OPTION_LIST_MAX + 2, argv, &outcome), STATUS_INVALID, "more than");
}

static void put_file(char *path, const char *text)
{
    int fd = mkstemp(path);

    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static void test_command_line_beats_environment_beats_file(void **state)
{
    char path[] = "/tmp/winnow-test-options-XXXXXX";

    (void)state;
    put_file(path, "# comment\n\n threads = 3 # here\nkv-memory=5M\nrate = 0.75\nfile = f\n");
    setenv("WINNOW_THREADS", "4", 1);
    setenv("WINNOW_KV_MEMORY", "6M", 1);
    setenv("WINNOW_FILE", "e", 1);
    CHECK_OK(run("--config", path, "--threads", "5", "--file", "c1", "--file", "c2", NULL));
    CHECK(values.threads == 5 && values.memory == 6 << 20 && values.rate == 0.75);
    CHECK(values.files.n == 2 && strcmp(values.files.values[0], "c1") == 0);
    setenv("WINNOW_CONFIG", path, 1);
    setenv("WINNOW_THREADS", "", 1); /* counts as not set */
    CHECK_OK(run(NULL));
    CHECK(values.threads == 3 && values.files.n == 1 && strcmp(values.files.values[0], "e") == 0);
    unlink(path);
}

static void test_errors_in_the_file_name_file_and_line(void **state)
{
    char path[] = "/tmp/winnow-test-options-XXXXXX";

    (void)state;
    put_file(path, "threads = 3\nthread = 4\n");
    CHECK_FAILS(run("--config", path, NULL), STATUS_INVALID, ":2: unknown option \"thread\"");
    unlink(path);
    CHECK_FAILS(run("--config", path, NULL), STATUS_NOT_FOUND, path);
    memcpy(path + strlen(path) - 6, "XXXXXX", 6);
    put_file(path, "threads\n");
    CHECK_FAILS(run("--config", path, NULL), STATUS_INVALID, ":1: \"threads\" is not");
    unlink(path);
    setenv("WINNOW_THREADS", "many", 1);
    CHECK_FAILS(run(NULL), STATUS_INVALID, "environment variable for --threads");
}

static void test_help_and_version_are_outcomes(void **state)
{
    char *help[] = {"test", "--threads", "3", "--help"};
    char *version[] = {"test", "--version"};
    enum options_outcome outcome;

    (void)state;
    CHECK_OK(parse(4, help, &outcome));
    CHECK(outcome == OPTIONS_HELP && values.threads == 2);
    CHECK_OK(parse(2, version, &outcome));
    CHECK(outcome == OPTIONS_VERSION);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_defaults_stay_when_nothing_is_given, reset),
        cmocka_unit_test_setup(test_values_of_every_type_are_understood, reset),
        cmocka_unit_test_setup(test_wrong_usage_is_explained, reset),
        cmocka_unit_test_setup(test_a_list_has_a_limit, reset),
        cmocka_unit_test_setup(test_command_line_beats_environment_beats_file, reset),
        cmocka_unit_test_setup(test_errors_in_the_file_name_file_and_line, reset),
        cmocka_unit_test_setup(test_help_and_version_are_outcomes, reset),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
