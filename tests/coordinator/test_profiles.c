/* Head importance by name: what is read, what is refused, and that a name is never a path. */
#include "coordinator/profiles.h"
#include "tests/check.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const struct model_config model = {.name = "two-by-two", .layers = 2, .query_heads = 2};

static char dir[64];
static struct profiles *profiles;

static void write_file(const char *name, const char *text)
{
    char path[512];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    CHECK(fputs(text, file) >= 0);
    fclose(file);
}

static int make_folder(void **state)
{
    (void)state;
    profiles = NULL;
    snprintf(dir, sizeof(dir), "/tmp/winnow-profiles-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_folder(void **state)
{
    DIR *list = opendir(dir);

    (void)state;
    profiles_close(profiles);
    for (const struct dirent *entry = readdir(list); entry; entry = readdir(list)) {
        char path[512];
        snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
        unlink(path); /* not "." and ".." */
    }
    closedir(list);
    return rmdir(dir);
}

static status find(const char *name, const float **scores)
{
    return profiles_find(profiles, name, strlen(name), scores);
}

static void test_a_head_counts_as_the_mean_of_its_list(void **state)
{
    static const float expected[] = {0.5F, 0, 3, 1};
    const float *scores;

    (void)state;
    write_file("reason.json", "{\"0-0\": [0.25, 0.75], \"0-1\": [0], \"1-0\": [3, 3, 3], "
                              "\"1-1\": [1]}\n");
    write_file("other.model.json", "{\"0-0\": [1]}");
    write_file(".hidden.json", "not read");
    write_file("notes.txt", "not read");
    CHECK_OK(profiles_open(&profiles, dir, &model));
    CHECK_OK(find("reason", &scores));
    assert_memory_equal(scores, expected, sizeof(expected));
    CHECK_FAILS(find("other.model", &scores), STATUS_INVALID, "this server has: reason");
    CHECK_FAILS(find("reaso", &scores), STATUS_INVALID, "no profile \"reaso\"");
    CHECK_FAILS(find("notes", &scores), STATUS_INVALID, "no profile");
}

static void test_names_do_not_leave_the_folder(void **state)
{
    char name[256];
    const float *scores;

    (void)state;
    write_file("a.json", "{\"0-0\": [1], \"0-1\": [1], \"1-0\": [1], \"1-1\": [1]}");
    CHECK_OK(profiles_open(&profiles, dir, &model));
    CHECK_OK(find("a", &scores));
    CHECK_FAILS(find("../a", &scores), STATUS_INVALID, "no profile \"../a\"");
    CHECK_FAILS(find("./a", &scores), STATUS_INVALID, "no profile");
    snprintf(name, sizeof(name), "%s/a", dir);
    CHECK_FAILS(find(name, &scores), STATUS_INVALID, "no profile");
    memset(name, 'x', sizeof(name));
    CHECK_FAILS(profiles_find(profiles, name, sizeof(name), &scores), STATUS_INVALID,
                "has 256 bytes");
    CHECK_FAILS(find("a.json", &scores), STATUS_INVALID, "this server has: a");
}

static void test_broken_tables_are_named(void **state)
{
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"{\"0-0\": [1], \"1-0\": [1], \"0-1\": [1], \"1-1\": [1]}",
         "\"1-0\" is where \"0-1\" is expected"},
        {"{\"0-0\": [1], \"0-1\": [1], \"1-0\": [-1], \"1-1\": [1]}",
         "1-0: scores are finite and not negative"},
        {"{\"0-0\": [1], \"0-1\": [\"1\"], \"1-0\": [1], \"1-1\": [1]}", "0-1: scores are"},
        {"{\"0-0\": [1], \"0-1\": [1], \"1-0\": [1], \"1-1\": []}", "1-1: a list of scores"},
        {"{\"0-0\": 1, \"0-1\": [1], \"1-0\": [1], \"1-1\": [1]}", "0-0: a list of scores"},
        {"{\"0-0\": [1e39], \"0-1\": [1], \"1-0\": [1], \"1-1\": [1]}", "0-0: the scores are too"},
        {"{\"0-0\": [1]", "x.json"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_file("x.json", cases[i].text);
        CHECK_FAILS(profiles_open(&profiles, dir, &model), STATUS_INVALID, cases[i].words);
        assert_null(profiles);
    }
}

static void test_a_missing_folder_is_named(void **state)
{
    char path[128];

    (void)state;
    snprintf(path, sizeof(path), "%s/none", dir);
    CHECK_FAILS(profiles_open(&profiles, path, &model), STATUS_NOT_FOUND, "/none: ");
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_head_counts_as_the_mean_of_its_list),
        TEST(test_names_do_not_leave_the_folder),
        TEST(test_broken_tables_are_named),
        TEST(test_a_missing_folder_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
