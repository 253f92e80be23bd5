#include "common/keyring.h"
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];
static char replacement[80];

/* Puts another file in its place, as careful writers do: so no two look the same. */
static void write_bytes(const char *text, size_t bytes)
{
    FILE *file = fopen(replacement, "wb");

    assert_non_null(file);
    CHECK(fwrite(text, 1, bytes, file) == bytes && fclose(file) == 0);
    CHECK(rename(replacement, path) == 0);
}

static void write_file(const char *text)
{
    write_bytes(text, strlen(text));
}

static int make_path(void **state)
{
    (void)state;
    snprintf(path, sizeof(path), "/tmp/winnow_test_keyring_XXXXXX");
    int fd = mkstemp(path);
    snprintf(replacement, sizeof(replacement), "%s.new", path);
    return fd < 0 || close(fd) != 0;
}

static int remove_path(void **state)
{
    (void)state;
    (void)unlink(path);
    return 0;
}

static void test_a_secret_is_found_with_its_name_and_no_other_is(void **state)
{
    struct keyring_owner owner;
    struct keyring *ring;

    (void)state;
    write_file("# comment\n\n alice\tone-secret \r\nroot two-secret admin\nalice three-secret");
    CHECK_OK(keyring_open(&ring, path, true));
    CHECK(keyring_find(ring, "one-secret", &owner));
    CHECK(strcmp(owner.name, "alice") == 0 && !owner.admin);
    CHECK(keyring_find(ring, "two-secret", &owner));
    CHECK(strcmp(owner.name, "root") == 0 && owner.admin);
    CHECK(keyring_find(ring, "three-secret", &owner) && strcmp(owner.name, "alice") == 0);
    const char *const strangers[] = {"", "one-secre", "one-secretx", "alice", "comment", "admin"};
    for (size_t i = 0; i < sizeof(strangers) / sizeof(strangers[0]); i++) {
        CHECK(!keyring_find(ring, strangers[i], &owner));
    }
    keyring_close(ring);
}

static void test_the_first_secret_is_what_a_client_says(void **state)
{
    char first[KEYRING_MAX_SECRET + 1];
    struct keyring *ring;

    (void)state;
    write_file("\nalone-and-long-enough\nother-and-long-enough\n");
    CHECK_OK(keyring_open(&ring, path, false));
    keyring_first(ring, first);
    CHECK(strcmp(first, "alone-and-long-enough") == 0);
    write_file("name another-long-secret\n");
    keyring_first(ring, first);
    CHECK(strcmp(first, "another-long-secret") == 0);
    keyring_close(ring);
}

static void test_a_broken_or_missing_file_changes_nothing(void **state)
{
    struct keyring_owner owner;
    struct keyring *ring;

    (void)state;
    write_file("a first-of-all-secrets\n");
    CHECK_OK(keyring_open(&ring, path, true));
    write_file("a\n");
    CHECK(keyring_find(ring, "first-of-all-secrets", &owner));
    CHECK(unlink(path) == 0);
    CHECK(keyring_find(ring, "first-of-all-secrets", &owner));
    write_file("b second-of-all-secrets\n");
    CHECK(!keyring_find(ring, "first-of-all-secrets", &owner));
    CHECK(keyring_find(ring, "second-of-all-secrets", &owner));
    CHECK(strcmp(owner.name, "b") == 0);
    keyring_close(ring);
}

static void test_what_is_no_list_of_secrets_is_refused(void **state)
{
    char secret[KEYRING_MAX_SECRET + 16] = "a ";
    char name[KEYRING_MAX_NAME + 16] = "";
    struct keyring *ring;

    (void)state;
    memset(secret + 2, 'x', KEYRING_MAX_SECRET + 1);
    memset(name, 'n', KEYRING_MAX_NAME + 1);
    snprintf(name + KEYRING_MAX_NAME + 1, 8, " s");
    const struct {
        const char *text, *words;
    } broken[] = {
        {"", "no secret"},
        {"# only a comment\n", "no secret"},
        {"alone\n", "line 1: a line is NAME SECRET"},
        {"\na b admin c\n", "line 2"},
        {"a b emperor\n", "or NAME SECRET admin"},
        {"a same\nb same\n", "line 2: the secret has another line"},
        {"a \xc3\xa4\n", "printable"},
        {"\x01 b\n", "name is not"},
        {secret, "the secret is not 1 to 256"},
        {name, "the name is not 1 to 64"},
    };
    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
        write_file(broken[i].text);
        CHECK_FAILS(keyring_open(&ring, path, true), STATUS_INVALID, broken[i].words);
    }
    write_bytes("a b\0c\n", 6);
    CHECK_FAILS(keyring_open(&ring, path, true), STATUS_INVALID, "not a text file");
    secret[2 + KEYRING_MAX_SECRET] = '\0';
    write_file(secret);
    CHECK_OK(keyring_open(&ring, path, true));
    keyring_close(ring);
    CHECK_FAILS(keyring_open(&ring, "/nowhere/at/all", true), STATUS_NOT_FOUND, "/nowhere");
}

static void test_the_number_of_secrets_and_the_file_have_limits(void **state)
{
    char *text = calloc(1, KEYRING_MAX_FILE + 2);
    struct keyring *ring;
    size_t used = 0;

    (void)state;
    assert_non_null(text);
    for (int i = 0; i < KEYRING_MAX_KEYS; i++) {
        used += (size_t)snprintf(text + used, KEYRING_MAX_FILE - used, "n%d %016d\n", i, i);
    }
    write_bytes(text, used);
    CHECK_OK(keyring_open(&ring, path, true));
    keyring_close(ring);
    used += (size_t)snprintf(text + used, KEYRING_MAX_FILE - used, "one too-many\n");
    write_bytes(text, used);
    CHECK_FAILS(keyring_open(&ring, path, true), STATUS_INVALID, "more than 1024 secrets");
    memset(text, '\n', KEYRING_MAX_FILE + 1);
    write_bytes(text, KEYRING_MAX_FILE + 1);
    CHECK_FAILS(keyring_open(&ring, path, true), STATUS_INVALID, "more than the limit");
    free(text);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_path, remove_path)
    const struct CMUnitTest tests[] = {
        TEST(test_a_secret_is_found_with_its_name_and_no_other_is),
        TEST(test_the_first_secret_is_what_a_client_says),
        TEST(test_a_broken_or_missing_file_changes_nothing),
        TEST(test_what_is_no_list_of_secrets_is_refused),
        TEST(test_the_number_of_secrets_and_the_file_have_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
