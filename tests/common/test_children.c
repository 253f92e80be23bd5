#include "common/children.h"
#include "common/clock.h"
#include "tests/check.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char folder[] = "/tmp/test_children.XXXXXX";
static const char *const environment[] = {"PATH=/usr/bin:/bin", NULL};

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int drop_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

/* Children that run a line of shell. */
static struct children *open_shells(int n, int first, const char *line)
{
    const char *arguments[] = {"-c", line};
    const struct children_config config = {.executable = "/bin/sh",
                                           .n = n,
                                           .first = first,
                                           .arguments = arguments,
                                           .n_arguments = 2,
                                           .environment = environment};
    struct children *children;

    CHECK_OK(children_open(&children, &config));
    return children;
}

/* The number in a file that a child writes, once it is there; removes the file. */
static long await_number(struct children *children, const char *name)
{
    const struct timespec pause = {.tv_nsec = 5 * 1000000L};
    char path[128];
    long number = 0;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    for (int i = 0; i < 4000 && number == 0; i++) {
        char line[32];
        FILE *file = fopen(path, "r");
        if (file && fgets(line, sizeof(line), file) && strchr(line, '\n')) { /* all of it */
            number = strtol(line, NULL, 10);
        }
        if (file) {
            fclose(file);
        }
        children_tick(children, clock_ms());
        nanosleep(&pause, NULL);
    }
    CHECK(number > 0 && unlink(path) == 0);
    return number;
}

static void test_each_child_is_told_its_number(void **state)
{
    char line[256];

    (void)state;
    snprintf(line, sizeof(line), "echo $$ > %s/child{n}; exec sleep 100", folder);
    struct children *children = open_shells(2, 3, line);
    long third = await_number(children, "child3");
    long fourth = await_number(children, "child4");
    CHECK(third != fourth && kill((pid_t)third, 0) == 0 && kill((pid_t)fourth, 0) == 0);
    children_close(children);
    CHECK(kill((pid_t)third, 0) != 0 && kill((pid_t)fourth, 0) != 0);
}

static void test_a_child_that_is_killed_starts_again_and_its_end_is_told(void **state)
{
    char line[256];
    char cause[64];
    int number;

    (void)state;
    snprintf(line, sizeof(line), "echo $$ > %s/child; exec sleep 100", folder);
    struct children *children = open_shells(1, 0, line);
    long before = await_number(children, "child");
    CHECK(!children_cause(children, before + 1, cause, sizeof(cause), clock_ms()));
    children_kill(children, before);
    while (!children_cause(children, before, cause, sizeof(cause), clock_ms())) {
        /* it is on its way */
    }
    CHECK(strcmp(cause, "was killed by signal 9") == 0);
    CHECK(!children_gave_up(children, &number));
    CHECK(await_number(children, "child") != before);
    children_close(children);
}

static void test_a_child_that_fails_gave_up(void **state)
{
    struct children *children = open_shells(1, 5, "exit 1");
    int number = -1;

    (void)state;
    do {
        children_tick(children, clock_ms());
    } while (!children_gave_up(children, &number));
    CHECK(number == 5);
    children_close(children);
}

static void test_what_ignores_a_request_to_end_is_killed(void **state)
{
    char line[256];

    (void)state;
    snprintf(line, sizeof(line), "trap '' TERM; echo $$ > %s/child; while :; do sleep 1; done",
             folder);
    struct children *children = open_shells(1, 0, line);
    long pid = await_number(children, "child");
    children_close(children);
    CHECK(kill((pid_t)pid, 0) != 0);
}

static void test_limits_are_kept(void **state)
{
    struct children *children;
    struct children_config config = {
        .executable = "/bin/true", .n = CHILDREN_MAX + 1, .environment = environment};

    (void)state;
    CHECK_FAILS(children_open(&children, &config), STATUS_INVALID, "at most 64");
    config = (struct children_config){.executable = "/bin/true",
                                      .n_arguments = CHILDREN_MAX_ARGUMENTS + 1,
                                      .environment = environment};
    CHECK_FAILS(children_open(&children, &config), STATUS_INVALID, "at most 64 with 256");
    children_close(NULL);
}

static void test_a_program_beside_this_one_is_found(void **state)
{
    char path[512];

    (void)state;
    CHECK_OK(children_find_program(path, sizeof(path), "common_test_children"));
    CHECK(path[0] == '/' && strstr(path, "/common_test_children"));
    CHECK_FAILS(children_find_program(path, sizeof(path), "no-such-program"), STATUS_NOT_FOUND,
                "no-such-program");
    CHECK_FAILS(children_find_program(path, 4, "common_test_children"), STATUS_INTERNAL,
                "cannot find");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_child_is_told_its_number),
        cmocka_unit_test(test_a_child_that_is_killed_starts_again_and_its_end_is_told),
        cmocka_unit_test(test_a_child_that_fails_gave_up),
        cmocka_unit_test(test_what_ignores_a_request_to_end_is_killed),
        cmocka_unit_test(test_limits_are_kept),
        cmocka_unit_test(test_a_program_beside_this_one_is_found),
    };

    return cmocka_run_group_tests(tests, make_folder, drop_folder);
}
