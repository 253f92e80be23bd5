#include "tests/check.h"
#include "worker/convert.h"

#include <math.h>
#include <string.h>

static void test_every_float16_becomes_its_exact_float32(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        uint16_t half = (uint16_t)h;
        int exponent = (int)(h >> 10 & 31);
        double fraction = h & 0x3ff;
        double expected = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        float value;
        convert(&value, DTYPE_F32, &half, DTYPE_F16, 1);
        if (exponent == 31) {
            CHECK(fraction != 0 ? isnan(value) : isinf(value));
        } else {
            CHECK(fabs((double)value) == expected);
        }
        CHECK(!!signbit(value) == (h >> 15));
    }
}

static void test_every_bfloat16_survives_the_way_to_float32_and_back(void **state)
{
    (void)state;
    for (uint32_t b = 0; b < 0x10000; b++) {
        uint16_t in = (uint16_t)b;
        uint16_t out;
        float value;
        convert(&value, DTYPE_F32, &in, DTYPE_BF16, 1);
        convert(&out, DTYPE_BF16, &value, DTYPE_F32, 1);
        if (isnan(value)) {
            CHECK((out & 0x7fff) > 0x7f80);
        } else {
            assert_int_equal(out, in);
        }
    }
}

static uint16_t rounded(uint32_t bits)
{
    uint16_t out;

    convert(&out, DTYPE_BF16, &bits, DTYPE_F32, 1);
    return out;
}

static void test_bfloat16_takes_the_nearest_and_ties_to_even(void **state)
{
    (void)state;
    assert_int_equal(rounded(0x3f800000), 0x3f80);
    assert_int_equal(rounded(0x3f807fff), 0x3f80);
    assert_int_equal(rounded(0x3f808000), 0x3f80); /* a tie, down to even */
    assert_int_equal(rounded(0x3f808001), 0x3f81);
    assert_int_equal(rounded(0x3f818000), 0x3f82); /* a tie, up to even */
    assert_int_equal(rounded(0xbf818000), 0xbf82);
    assert_int_equal(rounded(0x7f7fffff), 0x7f80); /* the largest float is infinite there */
    assert_int_equal(rounded(0x00000001), 0x0000);
    assert_int_equal(rounded(0x7f800001), 0x7fc0); /* NaN */
}

static void test_float16_becomes_bfloat16_by_way_of_float32(void **state)
{
    const uint16_t halves[] = {0x3c00, 0x3c04, 0x3c0c, 0xc000, 0x0001};
    const uint16_t expected[] = {0x3f80, 0x3f80, 0x3f82, 0xc000, 0x3380};
    uint16_t out[5];

    (void)state;
    convert(out, DTYPE_BF16, halves, DTYPE_F16, 5);
    assert_memory_equal(out, expected, sizeof(out));
}

static void test_every_float16_survives_the_way_to_float32_and_back(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        uint16_t in = (uint16_t)h;
        uint16_t out;
        float value;
        convert(&value, DTYPE_F32, &in, DTYPE_F16, 1);
        convert(&out, DTYPE_F16, &value, DTYPE_F32, 1);
        if (isnan(value)) {
            CHECK((out & 0x7fff) > 0x7c00);
        } else {
            assert_int_equal(out, in);
        }
    }
}

static void test_float16_takes_the_nearest_and_ties_to_even(void **state)
{
    const float values[] = {
        1.0F,  1.0F + 0x1p-11F, 1.0F + 0x1.004p-11F, 1.0F + 0x1.8p-10F, 65519.0F,    65520.0F,
        -1e9F, 0x1p-25F,        0x1.8p-24F,          0x1.ffcp-15F,      0x1.ffep-15F};
    const uint16_t expected[] = {0x3c00, 0x3c00, 0x3c01, 0x3c02, 0x7bff, 0x7c00,
                                 0xfc00, 0x0000, 0x0002, 0x0400, 0x0400};
    const uint16_t bf16 = 0xc0c0; /* -6 */
    uint16_t out[11];

    (void)state;
    convert(out, DTYPE_F16, values, DTYPE_F32, 11);
    assert_memory_equal(out, expected, sizeof(out));
    convert(out, DTYPE_F16, &bf16, DTYPE_BF16, 1);
    assert_int_equal(out[0], 0xc600);
}

static void test_the_source_may_lie_at_any_address(void **state)
{
    unsigned char bytes[1 + 3 * sizeof(float)];
    const float values[] = {1.5f, -2.25f, 1e-3f};
    float out[3];

    (void)state;
    memcpy(bytes + 1, values, sizeof(values));
    convert(out, DTYPE_F32, bytes + 1, DTYPE_F32, 3);
    assert_memory_equal(out, values, sizeof(values));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_float16_becomes_its_exact_float32),
        cmocka_unit_test(test_every_bfloat16_survives_the_way_to_float32_and_back),
        cmocka_unit_test(test_bfloat16_takes_the_nearest_and_ties_to_even),
        cmocka_unit_test(test_float16_becomes_bfloat16_by_way_of_float32),
        cmocka_unit_test(test_every_float16_survives_the_way_to_float32_and_back),
        cmocka_unit_test(test_float16_takes_the_nearest_and_ties_to_even),
        cmocka_unit_test(test_the_source_may_lie_at_any_address),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
