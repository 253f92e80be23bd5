#include "helpers_files.h"
#include "tests/check.h"
#include "worker/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A file in memory: the header, then zeros. */
static status parse(struct safetensors **out, const char *header, size_t data_bytes)
{
    size_t length = strlen(header);
    unsigned char *bytes = calloc(1, 8 + length + data_bytes);

    assert_non_null(bytes);
    for (int i = 0; i < 8; i++) {
        bytes[i] = (unsigned char)((uint64_t)length >> (8 * i));
    }
    for (size_t i = 0; i < length; i++) {
        bytes[8 + i] = (unsigned char)header[i];
    }
    *out = NULL;
    status st = safetensors_parse(out, "dir/x.safetensors", bytes, 8 + length + data_bytes);
    free(bytes); /* the tests below look at the description only */
    return st;
}

#define TENSOR(dtype, shape, offsets) \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void test_tensors_are_listed_by_name_with_dtype_shape_and_size(void **state)
{
    struct safetensors *file;

    (void)state;
    CHECK_OK(
        parse(&file,
              "{\"__metadata__\":{\"format\":\"pt\"},"
              "\"b\":" TENSOR("F32", "[2,3]",
                              "[4,28]") ","
                                        "\"a\":" TENSOR("BF16", "[2]",
                                                        "[0,4]") ","
                                                                 "\"empty\":" TENSOR(
                                                                     "I64", "[0,7]",
                                                                     "[4,4]") ","
                                                                              "\"scalar\":" TENSOR(
                                                                                  "F64", "[]",
                                                                                  "[28,36]") "}",
              36));
    assert_int_equal(safetensors_count(file), 4);
    assert_string_equal(safetensors_at(file, 0)->name, "a");
    const struct tensor *b = safetensors_find(file, "b");
    assert_non_null(b);
    assert_string_equal(b->dtype, "F32");
    assert_string_equal(b->path, "dir/x.safetensors");
    assert_int_equal(b->dims, 2);
    assert_int_equal(b->shape[0], 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->bytes, 24);
    assert_int_equal(safetensors_find(file, "empty")->bytes, 0);
    assert_int_equal(safetensors_find(file, "scalar")->bytes, 8);
    assert_null(safetensors_find(file, "c"));
    safetensors_close(file);
}

struct broken {
    const char *header;
    size_t data_bytes;
    const char *words;
};

static const struct broken broken[] = {
    {"{\"a\":" TENSOR("F32", "[2]", "[0,8]") "}", 4,
     "dir/x.safetensors: tensor a: data_offsets: [0, 8] is outside the file's 4 bytes of data"},
    {"{\"a\":" TENSOR("F32", "[2]", "[0,8]") "}", 12, "4 bytes at the end belong to no tensor"},
    {"{\"a\":" TENSOR("F32", "[2]", "[0,4]") "}", 4,
     "tensor a: data_offsets: [0, 4] holds 4 bytes, dtype and shape need 8"},
    {"{\"a\":" TENSOR("F32", "[2]", "[8,0]") "}", 8, "data_offsets: [8, 0] is outside"},
    {"{\"a\":" TENSOR("F32", "[2]", "[0]") "}", 8, "data_offsets: not a list of two"},
    {"{\"a\":" TENSOR("F32", "[2]", "[-8,0]") "}", 8, "data_offsets: not a list of two"},
    {"{\"a\":" TENSOR("F32", "[2]", "[0,8.5]") "}", 8, "data_offsets: not a list of two"},
    {"{\"a\":" TENSOR("F32", "[2]", "[0,1e300]") "}", 8, "data_offsets: not a list of two"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "tensor a: data_offsets: missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "tensor a: shape: missing"},
    {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "tensor a: dtype: missing"},
    {"{\"a\":{\"dtype\":4,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype: not a string"},
    {"{\"a\":" TENSOR("F4", "[2]", "[0,8]") "}", 8, "tensor a: dtype: F4 is unknown"},
    {"{\"a\":" TENSOR("F32", "[-2]", "[0,8]") "}", 8, "shape: not a list of whole numbers"},
    {"{\"a\":" TENSOR("F32", "[\"2\"]", "[0,8]") "}", 8, "shape: not a list of whole numbers"},
    {"{\"a\":" TENSOR("F32", "7", "[0,8]") "}", 8, "shape: not a list"},
    {"{\"a\":" TENSOR("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "more than 8 dimensions"},
    {"{\"a\":" TENSOR("F32", "[4294967296,4294967296]", "[0,0]") "}", 0, "overflows"},
    {"{\"a\":" TENSOR("F32", "[4294967296,1073741824]", "[0,0]") "}", 0, "overflows"},
    {"{\"a\":" TENSOR("U8", "[4]", "[0,4]") ",\"b\":" TENSOR("U8", "[4]", "[2,6]") "}", 6,
     "tensor b: data_offsets: overlaps another tensor"},
    {"{\"a\":" TENSOR("U8", "[4]", "[0,4]") ",\"b\":" TENSOR("U8", "[4]", "[6,10]") "}", 10,
     "tensor b: data_offsets: unused bytes before it"},
    {"{\"a\":" TENSOR("U8", "[4]", "[0,4]") ",\"a\":" TENSOR("U8", "[4]", "[4,8]") "}", 8,
     "tensor a: name: is there twice"},
    {"{\"a\":[]}", 0, "tensor a: description: not an object"},
    {"[]", 0, "dir/x.safetensors: not a JSON object"},
    {"{\"a\":", 0, "dir/x.safetensors: not valid JSON at byte"},
    {"{} {}", 0, "text after the object"},
};

static void test_a_header_that_lies_is_refused_by_tensor_and_field(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
        struct safetensors *file;
        CHECK_FAILS(parse(&file, broken[i].header, broken[i].data_bytes), STATUS_INVALID,
                    broken[i].words);
        assert_null(file);
    }
}

static void test_a_file_too_short_for_its_header_is_refused(void **state)
{
    struct safetensors *file = NULL;
    unsigned char bytes[16] = {9, 0, 0, 0, 0, 0, 0, 0, '{', '}'};

    (void)state;
    CHECK_FAILS(safetensors_parse(&file, "x", bytes, 0), STATUS_INVALID, "0 bytes are too short");
    CHECK_FAILS(safetensors_parse(&file, "x", bytes, 7), STATUS_INVALID, "7 bytes are too short");
    CHECK_FAILS(safetensors_parse(&file, "x", bytes, 16), STATUS_INVALID,
                "x: header length: 9 is more than the file has");
    memset(bytes, 0xff, 8);
    CHECK_FAILS(safetensors_parse(&file, "x", bytes, 16), STATUS_INVALID,
                "header length: 18446744073709551615 is more than the file has");
}

static void test_the_header_may_not_exceed_its_limit(void **state)
{
    size_t total = 8 + SAFETENSORS_MAX_HEADER + 1;
    unsigned char *bytes = malloc(total);
    struct safetensors *file = NULL;
    uint32_t length = SAFETENSORS_MAX_HEADER + 1;

    (void)state;
    assert_non_null(bytes);
    memset(bytes, ' ', total);
    memset(bytes, 0, 8);
    bytes[8] = '{';
    bytes[9] = '}';
    memcpy(bytes, &length, sizeof(length));
    CHECK_FAILS(safetensors_parse(&file, "x", bytes, total), STATUS_INVALID, "limit of 16 MiB");
    length--;
    memcpy(bytes, &length, sizeof(length));
    CHECK_OK(safetensors_parse(&file, "x", bytes, total - 1));
    assert_int_equal(safetensors_count(file), 0);
    safetensors_close(file);
    free(bytes);
}

static void test_a_file_is_mapped_and_its_data_are_found(void **state)
{
    char *dir = make_directory();
    char path[512];
    struct safetensors *file;

    (void)state;
    write_safetensors(
        dir, "x.safetensors",
        "{\"a\":" TENSOR("U8", "[2]", "[4,6]") ",\"b\":" TENSOR("U8", "[4]", "[0,4]") "}",
        (const unsigned char[]){1, 2, 3, 4, 5, 6}, 6);
    snprintf(path, sizeof(path), "%s/x.safetensors", dir);
    CHECK_OK(safetensors_open(&file, path));
    assert_memory_equal(safetensors_find(file, "a")->data, "\5\6", 2);
    assert_memory_equal(safetensors_find(file, "b")->data, "\1\2\3\4", 4);
    safetensors_close(file);
    remove_directory(dir);
}

static void test_a_missing_file_is_not_found(void **state)
{
    struct safetensors *file;

    (void)state;
    CHECK_FAILS(safetensors_open(&file, "/nonexistent/x.safetensors"), STATUS_NOT_FOUND,
                "/nonexistent/x.safetensors");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors_are_listed_by_name_with_dtype_shape_and_size),
        cmocka_unit_test(test_a_header_that_lies_is_refused_by_tensor_and_field),
        cmocka_unit_test(test_a_file_too_short_for_its_header_is_refused),
        cmocka_unit_test(test_the_header_may_not_exceed_its_limit),
        cmocka_unit_test(test_a_file_is_mapped_and_its_data_are_found),
        cmocka_unit_test(test_a_missing_file_is_not_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
