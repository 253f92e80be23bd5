#include "common/file.h"
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char path[64];

static void write_file(const char *text)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fputs(text, file) >= 0, 1);
    assert_int_equal(fclose(file), 0);
}

static int make_path(void **state)
{
    (void)state;
    snprintf(path, sizeof(path), "/tmp/winnow_test_file_XXXXXX");
    int fd = mkstemp(path);
    return fd < 0 || close(fd) != 0;
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

static void test_a_file_is_read_whole_and_ends_with_a_nul(void **state)
{
    char *data;
    size_t bytes;

    (void)state;
    write_file("hello");
    CHECK_OK(file_read(&data, &bytes, path, 5));
    assert_int_equal(bytes, 5);
    assert_string_equal(data, "hello");
    free(data);
}

static void test_a_file_above_the_limit_is_refused(void **state)
{
    char *data;
    size_t bytes;

    (void)state;
    write_file("hello");
    CHECK_FAILS(file_read(&data, &bytes, path, 4), STATUS_INVALID, "limit of 4");
}

static void test_a_stamp_tells_other_contents_and_other_files(void **state)
{
    struct file_stamp first;
    struct file_stamp second;

    (void)state;
    write_file("hello");
    CHECK_OK(file_stamp_take(&first, path));
    CHECK_OK(file_stamp_take(&second, path));
    CHECK(file_stamp_same(&first, &second) && !first.for_everyone);
    write_file("hello!");
    CHECK_OK(file_stamp_take(&second, path));
    CHECK(!file_stamp_same(&first, &second));
    CHECK(chmod(path, 0644) == 0);
    CHECK_OK(file_stamp_take(&second, path));
    CHECK(second.for_everyone);
    CHECK_FAILS(file_stamp_take(&first, "/nowhere"), STATUS_NOT_FOUND, "/nowhere");
    CHECK_FAILS(file_stamp_take(&first, "/dev/null/x"), STATUS_INTERNAL, "/dev/null/x");
}

static void test_a_missing_file_is_not_found(void **state)
{
    const void *map;
    char *data;
    size_t bytes;

    (void)state;
    CHECK_FAILS(file_read(&data, &bytes, "/nonexistent/x", 4), STATUS_NOT_FOUND, "/nonexistent/x");
    CHECK_FAILS(file_map(&map, &bytes, "/nonexistent/x"), STATUS_NOT_FOUND, "/nonexistent/x");
}

static void test_a_directory_is_not_a_file(void **state)
{
    char *data;
    size_t bytes;

    (void)state;
    CHECK_FAILS(file_read(&data, &bytes, "/tmp", 4), STATUS_INVALID, "not a regular file");
}

static void test_a_mapping_has_the_contents_and_an_empty_file_has_none(void **state)
{
    const void *map;
    size_t bytes;

    (void)state;
    write_file("mapped");
    CHECK_OK(file_map(&map, &bytes, path));
    assert_int_equal(bytes, 6);
    assert_memory_equal(map, "mapped", 6);
    file_unmap(map, bytes);
    write_file("");
    CHECK_FAILS(file_map(&map, &bytes, path), STATUS_INVALID, "empty file");
}

static void test_paths_are_joined_with_one_slash_and_must_fit(void **state)
{
    char out[8];

    (void)state;
    CHECK_OK(file_join(out, sizeof(out), "ab", "cdef"));
    assert_string_equal(out, "ab/cdef");
    CHECK_OK(file_join(out, sizeof(out), "ab/", "c"));
    assert_string_equal(out, "ab/c");
    CHECK_FAILS(file_join(out, sizeof(out), "ab", "cdefg"), STATUS_INVALID, "longer than 7");
}

static void test_a_file_can_be_read_ahead(void **state)
{
    (void)state;
    write_file("hello");
    CHECK_OK(file_preload(path));
    CHECK_FAILS(file_preload("/nonexistent/file"), STATUS_NOT_FOUND, "/nonexistent/file");
    CHECK_FAILS(file_preload("/tmp"), STATUS_INVALID, "not a regular file");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_file_is_read_whole_and_ends_with_a_nul, make_path,
                                        remove_path),
        cmocka_unit_test_setup_teardown(test_a_file_above_the_limit_is_refused, make_path,
                                        remove_path),
        cmocka_unit_test_setup_teardown(test_a_stamp_tells_other_contents_and_other_files,
                                        make_path, remove_path),
        cmocka_unit_test(test_a_missing_file_is_not_found),
        cmocka_unit_test(test_a_directory_is_not_a_file),
        cmocka_unit_test_setup_teardown(test_a_mapping_has_the_contents_and_an_empty_file_has_none,
                                        make_path, remove_path),
        cmocka_unit_test(test_paths_are_joined_with_one_slash_and_must_fit),
        cmocka_unit_test(test_a_file_can_be_read_ahead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
