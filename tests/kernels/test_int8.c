/* test_int8.c - weights in int8: their rounding, and both matrix products against the definition of
 * a product with the rounded weights, bit for bit in any company. */
#include "tests/check.h"
#include "tests/definitions/basic.h"
#include "tests/kernels/helpers_act.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct shape {
    int rows, n, k, skip; /* elements between the rows of the weights before they are rounded */
};

/* Weights as a device has them, in int8, and what they stand for. */
struct weights {
    struct act act;
    struct matrix before, after;
    int8_t *data;
    float *scale;
    float *means; /* (n, k): data times scale */
};

static void weights_open(struct weights *w, struct device *dev, enum dtype dtype, struct shape s)
{
    uint64_t seed = 5;
    size_t stride = (size_t)s.k + (size_t)s.skip, n = (size_t)s.n, k = (size_t)s.k;

    *w = (struct weights){
        .act = act_random(dtype, n * stride, 1.0f / sqrtf((float)s.k), &seed),
        .data = calloc(n, k),
        .scale = calloc(n, sizeof(float)),
        .means = calloc(n * k, sizeof(float)),
    };
    CHECK(w->data && w->scale && w->means);
    w->before = (struct matrix){.data = w->act.act, .rows = s.n, .cols = s.k, .stride = stride};
    CHECK_OK(op_quantize(dev, w->data, w->scale, &w->before));
    for (size_t i = 0; i < n * k; i++) {
        w->means[i] = (float)w->data[i] * w->scale[i / k];
    }
    w->after =
        (struct matrix){.data = w->data, .scale = w->scale, .rows = s.n, .cols = s.k, .stride = k};
}

static void weights_close(struct weights *w)
{
    free(w->means);
    free(w->scale);
    free(w->data);
    act_free(&w->act);
}

/* Row r is off by half a step at most, and its largest weight is 127 steps. */
static void check_rounded_row(const struct weights *w, struct shape s, int r)
{
    const float *row = w->act.f32 + (size_t)r * w->before.stride;
    float largest = 0.0f;

    for (int c = 0; c < s.k; c++) {
        float error = fabsf(w->means[r * s.k + c] - row[c]);

        largest = fmaxf(largest, fabsf(row[c]));
        CHECK(error <= 0.50002f * w->scale[r]);
    }
    CHECK(w->scale[r] == largest / 127.0f);
}

static void check_rounding(const struct variant *variant, struct shape s)
{
    struct device *dev = act_device(variant, 2);
    struct weights w;

    weights_open(&w, dev, variant->dtype, s);
    for (int r = 0; r < s.n; r++) {
        check_rounded_row(&w, s, r);
    }
    weights_close(&w);
    device_close(dev);
}

static void test_a_weight_is_off_by_half_a_step_of_its_row_at_most(void **state)
{
    const struct shape shapes[] = {{0, 1, 1, 0}, {0, 3, 17, 1}, {0, 33, 70, 6}, {0, 5, 1000, 0}};

    (void)state;
    for (int v = 0; v < n_variants; v++) {
        for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
            check_rounding(&variants[v], shapes[i]);
        }
    }
}

static void test_every_instruction_set_rounds_alike(void **state)
{
    const struct shape s = {0, 40, 531, 3};

    (void)state;
    for (int v = 1; v < n_variants; v++) {
        struct device *one, *other;
        struct weights a, b;
        int first = 0;

        while (variants[first].dtype != variants[v].dtype) {
            first++;
        }
        one = act_device(&variants[first], 1);
        other = act_device(&variants[v], 2);
        weights_open(&a, one, variants[v].dtype, s);
        weights_open(&b, other, variants[v].dtype, s);
        CHECK(memcmp(a.data, b.data, (size_t)s.n * (size_t)s.k) == 0);
        CHECK(memcmp(a.scale, b.scale, (size_t)s.n * sizeof(float)) == 0);
        weights_close(&b);
        weights_close(&a);
        device_close(other);
        device_close(one);
    }
}

static void test_rows_without_a_step_become_zeros_and_endless_ones_are_refused(void **state)
{
    enum { K = 20 };
    struct device *dev = act_device(&variants[0], 1);
    float rows[3 * K] = {0};
    int8_t out[3 * K];
    float scale[3];
    struct matrix w = {.data = rows, .rows = 3, .cols = K, .stride = K};

    (void)state;
    rows[K + 3] = 100.0f * FLT_TRUE_MIN; /* less than a step can say */
    rows[2 * K + 19] = -2.0f;
    CHECK_OK(op_quantize(dev, out, scale, &w));
    CHECK(scale[0] == 0.0f && scale[1] == 0.0f && out[0] == 0 && out[K + 3] == 0);
    CHECK(out[2 * K + 19] == -127);
    rows[K + 5] = INFINITY;
    CHECK_FAILS(op_quantize(dev, out, scale, &w), STATUS_INVALID, "row 1 is not finite");
    rows[K + 5] = NAN;
    CHECK_FAILS(op_quantize(dev, out, scale, &w), STATUS_INVALID, "row 1 is not finite");
    device_close(dev);
}

/* op_linear_rows() reads a row as multiples of a 32512th of its largest magnitude. */
static void round_rows(float *x, int rows, int k)
{
    for (int r = 0; r < rows; r++) {
        float *row = x + (size_t)r * (size_t)k, largest = 0.0f;

        for (int c = 0; c < k; c++) {
            largest = fmaxf(largest, fabsf(row[c]));
        }
        for (int c = 0; c < k; c++) {
            float step = largest / 32512.0f;

            row[c] = step * roundf(row[c] / step);
        }
    }
}

typedef status (*product)(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                          const struct matrix *w, int rows);

static void check_product(const struct variant *variant, product op, struct shape s,
                          enum dtype out_dtype)
{
    uint64_t seed = 1;
    struct device *dev = act_device(variant, 2);
    size_t n_out = (size_t)s.rows * (size_t)s.n;
    struct act x = act_random(variant->dtype, (size_t)s.rows * (size_t)s.k, 1.0f, &seed);
    struct act out = act_zeros(out_dtype, n_out);
    double *expected = calloc(n_out, sizeof(*expected));
    struct weights w;

    CHECK(expected);
    weights_open(&w, dev, variant->dtype, s);
    CHECK_OK(op(dev, out.act, out_dtype, x.act, &w.after, s.rows));
    act_read(out_dtype, &out);
    if (op == op_linear_rows) {
        round_rows(x.f32, s.rows, s.k);
    }
    define_linear(expected, x.f32, w.means, (size_t)s.k, s.rows, s.n, s.k);
    double worst = act_worst(out.f32, expected, n_out, 1.0);
    if (!(worst <= (out_dtype == DTYPE_BF16 ? 0x1p-8 : 4e-6))) {
        fail_msg("%s %s %d x %d x %d: error %g", device_description(dev),
                 dtype_name(variant->dtype), s.rows, s.n, s.k, worst);
    }
    weights_close(&w);
    free(expected);
    act_free(&out);
    act_free(&x);
    device_close(dev);
}

static void check_shapes(product op, const struct shape *shapes, size_t n)
{
    for (int v = 0; v < n_variants; v++) {
        for (size_t i = 0; i < n; i++) {
            check_product(&variants[v], op, shapes[i], DTYPE_F32);
            check_product(&variants[v], op, shapes[i], variants[v].dtype);
        }
    }
}

/* One block of rows and weights, and several. */
static void test_linear_multiplies_by_the_rounded_weights(void **state)
{
    const struct shape shapes[] = {{1, 1, 8, 0},     {3, 5, 7, 1},      {65, 33, 250, 6},
                                   {515, 70, 40, 0}, {2, 70, 32776, 8}, {3, 4100, 16, 2}};

    (void)state;
    check_shapes(op_linear, shapes, sizeof(shapes) / sizeof(shapes[0]));
}

static void test_linear_rows_multiplies_by_the_rounded_weights(void **state)
{
    const struct shape shapes[] = {{1, 1, 1, 0},    {1, 70, 8, 0},     {2, 33, 31, 1},
                                   {3, 64, 33, 0},  {5, 37, 256, 0},   {7, 34, 47, 3},
                                   {33, 67, 72, 0}, {8, 65, 1000, 24}, {64, 40, 129, 1}};

    (void)state;
    check_shapes(op_linear_rows, shapes, sizeof(shapes) / sizeof(shapes[0]));
}

/* Every row alone, on one thread; then with others, at every place: always the same bits. */
static void check_company(const struct variant *variant, int n, int k)
{
    const int counts[] = {1, 2, 3, 5, 8, 17, 32, 48, OP_MAX_DECODE_ROWS};
    uint64_t seed = 7;
    struct device *dev = act_device(variant, 2), *single = act_device(variant, 1);
    size_t rows = OP_MAX_DECODE_ROWS, bytes = (size_t)n * sizeof(float);
    size_t x_bytes = (size_t)k * dtype_bytes(variant->dtype);
    struct act x = act_random(variant->dtype, rows * (size_t)k, 1.0f, &seed);
    char *alone = calloc(rows, bytes), *together = calloc(rows, bytes);
    struct weights w;

    CHECK(alone && together);
    weights_open(&w, dev, variant->dtype, (struct shape){.n = n, .k = k});
    for (size_t r = 0; r < rows; r++) {
        CHECK_OK(op_linear_rows(single, alone + r * bytes, DTYPE_F32, (char *)x.act + r * x_bytes,
                                &w.after, 1));
    }
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        size_t count = (size_t)counts[i], first = rows - count;

        CHECK_OK(op_linear_rows(dev, together, DTYPE_F32, (char *)x.act + first * x_bytes, &w.after,
                                counts[i]));
        CHECK(memcmp(together, alone + first * bytes, count * bytes) == 0);
    }
    weights_close(&w);
    free(together);
    free(alone);
    act_free(&x);
    device_close(single);
    device_close(dev);
}

static void test_a_row_has_the_same_bits_in_any_company(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_company(&variants[v], 97, 520);
        check_company(&variants[v], 3, 77);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_weight_is_off_by_half_a_step_of_its_row_at_most),
        cmocka_unit_test(test_every_instruction_set_rounds_alike),
        cmocka_unit_test(test_rows_without_a_step_become_zeros_and_endless_ones_are_refused),
        cmocka_unit_test(test_linear_multiplies_by_the_rounded_weights),
        cmocka_unit_test(test_linear_rows_multiplies_by_the_rounded_weights),
        cmocka_unit_test(test_a_row_has_the_same_bits_in_any_company),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
