/* traceparent: what W3C Trace Context takes as valid, and nothing else. */
#include "coordinator/trace_context.h"
#include "tests/check.h"

#define ID "0af7651916cd43dd8448eb211c80319c"

static void test_the_trace_id_of_a_valid_header_is_taken(void **state)
{
    const char *const good[] = {
        "00-" ID "-b7ad6b7169203331-01",
        "00-" ID "-b7ad6b7169203331-00",
        "cc-" ID "-b7ad6b7169203331-01",
        "cc-" ID "-b7ad6b7169203331-01-what the future is",
    };
    char id[REQUEST_TRACE_ID + 1];

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        CHECK(trace_context_id(id, good[i]));
        assert_string_equal(id, ID);
    }
}

static void test_everything_else_is_no_trace(void **state)
{
    const char *const bad[] = {
        NULL,
        "",
        "00",
        "00-" ID "-b7ad6b7169203331-0",
        "00-" ID "-b7ad6b7169203331-011",
        "00-" ID "-b7ad6b7169203331-01-more",
        "ff-" ID "-b7ad6b7169203331-01",
        "cc-" ID "-b7ad6b7169203331-01.",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-" ID "-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319\"-b7ad6b7169203331-01",
        "00_" ID "-b7ad6b7169203331-01",
        "0x-" ID "-b7ad6b7169203331-01",
        "00-" ID "_b7ad6b7169203331-01",
        "00-" ID "-b7ad6b7169203331_01",
        "00-" ID "-b7ad6b7169203331-0g",
    };
    char id[REQUEST_TRACE_ID + 1];

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        memset(id, 'x', sizeof(id));
        CHECK(!trace_context_id(id, bad[i]));
        assert_string_equal(id, "");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_trace_id_of_a_valid_header_is_taken),
        cmocka_unit_test(test_everything_else_is_no_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
