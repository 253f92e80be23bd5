/* test_device.c - opening devices, choosing instruction sets, and device memory. */
#include "kernels/op.h"
#include "tests/check.h"

#include <string.h>

static const struct device_config config = {.dtype = DTYPE_F32, .threads = 1};

static void test_an_unknown_backend_is_refused_by_name(void **state)
{
    struct device *dev = NULL;

    (void)state;
    CHECK_FAILS(device_open(&dev, "abacus", &config), STATUS_NOT_FOUND, "abacus");
}

static void test_a_dtype_without_kernels_is_refused(void **state)
{
    struct device_config half = config;
    struct device *dev = NULL;

    (void)state;
    half.dtype = DTYPE_F16;
    CHECK_FAILS(device_open(&dev, "cpu", &half), STATUS_UNIMPLEMENTED, "bfloat16");
}

static void test_the_host_is_one_device_with_sensible_threads(void **state)
{
    struct device_config wrong = config;
    struct device *dev = NULL;

    (void)state;
    wrong.index = 1;
    CHECK_FAILS(device_open(&dev, "cpu", &wrong), STATUS_INVALID, "index 1");
    wrong = config;
    wrong.threads = 0;
    CHECK_FAILS(device_open(&dev, "cpu", &wrong), STATUS_INVALID, "0 threads");
    wrong.threads = 1 << 20;
    CHECK_FAILS(device_open(&dev, "cpu", &wrong), STATUS_INVALID, "threads");
}

static void test_the_instruction_set_can_be_lowered_and_is_described(void **state)
{
    struct device_config lowered = config;
    struct device *dev = NULL;

    (void)state;
    lowered.max_isa = "generic";
    lowered.threads = 2;
    CHECK_OK(device_open(&dev, "cpu", &lowered));
    assert_string_equal(device_description(dev), "cpu generic, 2 threads");
    CHECK(device_dtype(dev) == DTYPE_F32);
    device_close(dev);
    lowered.max_isa = "mmx";
    CHECK_FAILS(device_open(&dev, "cpu", &lowered), STATUS_INVALID, "mmx");
}

static void check_memory(struct device *dev, size_t bytes)
{
    void *memory = NULL;
    char copy[1] = {1}, one[1] = {7};

    CHECK_OK(device_alloc(dev, &memory, bytes, "test"));
    CHECK((uintptr_t)memory % 64 == 0);
    CHECK_OK(device_download(dev, copy, (char *)memory + bytes - 1, 1));
    CHECK(copy[0] == 0);
    CHECK_OK(device_upload(dev, memory, one, 1));
    CHECK_OK(device_download(dev, copy, memory, 1));
    CHECK(copy[0] == 7);
    CHECK_OK(device_copy(dev, (char *)memory + bytes - 1, memory, bytes > 1));
    CHECK_OK(device_download(dev, copy, (char *)memory + bytes - 1, 1));
    CHECK(copy[0] == 7);
    device_free(dev, memory);
}

static void test_memory_is_zeroed_and_aligned(void **state)
{
    struct device *dev = NULL;

    (void)state;
    CHECK_OK(device_open(&dev, "cpu", &config));
    check_memory(dev, 1);
    check_memory(dev, 4097);
    check_memory(dev, (size_t)17 << 20);
    CHECK_OK(device_sync(dev));
    uint64_t left = 0;
    CHECK_OK(device_free_memory(dev, &left));
    CHECK(left > 0);
    device_free(dev, NULL);
    device_close(dev);
    device_close(NULL);
}

static void test_memory_that_cannot_be_had_is_refused_by_name(void **state)
{
    struct device *dev = NULL;
    void *memory = NULL;

    (void)state;
    CHECK_OK(device_open(&dev, "cpu", &config));
    CHECK_FAILS(device_alloc(dev, &memory, SIZE_MAX, "pages"), STATUS_EXHAUSTED, "pages");
    CHECK_FAILS(device_alloc(dev, &memory, SIZE_MAX / 2, "pages"), STATUS_EXHAUSTED, "pages");
    device_close(dev);
}

/* A model of one layer, whose every weight is this one. */
static struct op_limits limits_of(const struct matrix *const *w, int keys)
{
    return (struct op_limits){.weights = w,
                              .n_weights = 1,
                              .chunk_rows = 8,
                              .keys = keys,
                              .q_heads = 4,
                              .kv_heads = 2,
                              .group = 2,
                              .head_dim = 8,
                              .vocab_rows = 100};
}

static status draw(struct device *dev, const float *logits, int rows, int n)
{
    struct draw draws[OP_MAX_DECODE_ROWS] = {{.temperature = 0}};
    struct drawn out[OP_MAX_DECODE_ROWS];

    return op_draw(dev, out, logits, rows, n, 0, draws);
}

static void test_a_workspace_that_cannot_be_had_is_refused_when_it_is_reserved(void **state)
{
    static const float data[8 * 8];
    const struct matrix w = {.data = data, .rows = 8, .cols = 8, .stride = 8};
    const struct matrix *weights = &w;
    struct op_limits limits = limits_of(&weights, INT32_MAX);
    struct device *dev = NULL;

    (void)state;
    CHECK_OK(device_open(&dev, "cpu", &config));
    limits.q_heads = 1 << 15;
    limits.head_dim = OP_MAX_HEAD_DIM;
    CHECK_FAILS(op_reserve(dev, &limits), STATUS_EXHAUSTED, "the workspace of operations");
    CHECK_OK(draw(dev, data, 1, 64)); /* nothing is reserved: it grows */
    device_close(dev);
}

static void test_what_is_reserved_is_enough_within_the_limits_and_does_not_grow(void **state)
{
    enum { VOCAB = 1 << 21 };
    static float logits[VOCAB];
    const struct matrix w = {.data = logits, .rows = 8, .cols = 8, .stride = 8};
    const struct matrix *weights = &w;
    struct op_limits limits = limits_of(&weights, 64);
    struct device *dev = NULL;

    (void)state;
    CHECK_OK(device_open(&dev, "cpu", &config));
    CHECK_OK(op_reserve(dev, &limits));
    CHECK_OK(draw(dev, logits, OP_MAX_DECODE_ROWS, 100));
    struct logit_bin bins[OP_HISTOGRAM_BINS];
    const struct logit_filter filter = {.row = 0, .temperature = 1};
    const struct drawn peak = {0};
    struct logit_histogram histogram = {.out = bins,
                                        .logits = logits,
                                        .filters = &filter,
                                        .peaks = &peak,
                                        .rows = 1,
                                        .n = VOCAB,
                                        .shift = 24};
    CHECK_FAILS(op_logit_histogram(dev, &histogram), STATUS_INTERNAL, "reserved are");
    limits.vocab_rows = VOCAB; /* of another model on this device */
    CHECK_OK(op_reserve(dev, &limits));
    CHECK_OK(op_logit_histogram(dev, &histogram));
    device_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_unknown_backend_is_refused_by_name),
        cmocka_unit_test(test_a_dtype_without_kernels_is_refused),
        cmocka_unit_test(test_the_host_is_one_device_with_sensible_threads),
        cmocka_unit_test(test_the_instruction_set_can_be_lowered_and_is_described),
        cmocka_unit_test(test_memory_is_zeroed_and_aligned),
        cmocka_unit_test(test_memory_that_cannot_be_had_is_refused_by_name),
        cmocka_unit_test(test_a_workspace_that_cannot_be_had_is_refused_when_it_is_reserved),
        cmocka_unit_test(test_what_is_reserved_is_enough_within_the_limits_and_does_not_grow),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
