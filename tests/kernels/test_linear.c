/* test_linear.c - both matrix products against their definition, and bit for bit in any company. */
#include "tests/check.h"
#include "tests/definitions/basic.h"
#include "tests/kernels/helpers_act.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct shape {
    int rows, n, k, skip; /* elements between the rows of w */
};

/* A product's rounding grows with the root of k; outputs have a standard deviation of 1. */
static double tolerance(enum dtype dtype, enum dtype out)
{
    if (out == DTYPE_F32 || out != dtype) {
        return 3e-6;
    }
    return out == DTYPE_BF16 ? 0x1p-8 : 0x1p-10;
}

typedef status (*product)(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                          const struct matrix *w, int rows);

static void check_product(const struct variant *variant, product op, struct shape s,
                          enum dtype out_dtype)
{
    uint64_t seed = 1;
    struct device *dev = act_device(variant, 2);
    size_t stride = (size_t)s.k + (size_t)s.skip, n_out = (size_t)s.rows * (size_t)s.n;
    struct act x = act_random(variant->dtype, (size_t)s.rows * (size_t)s.k, 1.0f, &seed);
    struct act w =
        act_random(variant->dtype, (size_t)s.n * stride, 1.0f / sqrtf((float)s.k), &seed);
    struct act out = act_zeros(out_dtype, n_out);
    double *expected = calloc(n_out, sizeof(*expected));
    struct matrix matrix = {.data = w.act, .rows = s.n, .cols = s.k, .stride = stride};

    CHECK(expected);
    struct matrix layouts[] = {matrix, act_packed(dev, &matrix)};

    define_linear(expected, x.f32, w.f32, stride, s.rows, s.n, s.k);
    for (int i = 0; i < 1 + (layouts[1].layout == MATRIX_PACKED); i++) {
        CHECK_OK(op(dev, out.act, out_dtype, x.act, &layouts[i], s.rows));
        act_read(out_dtype, &out);
        double worst = act_worst(out.f32, expected, n_out, 1.0);
        if (!(worst <= tolerance(variant->dtype, out_dtype))) {
            fail_msg("%s %s %d x %d x %d%s: error %g", device_description(dev),
                     dtype_name(variant->dtype), s.rows, s.n, s.k, i ? " packed" : "", worst);
        }
    }
    act_packed_free(&layouts[1]);
    free(expected);
    act_free(&out);
    act_free(&w);
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

static void test_linear_is_the_matrix_product(void **state)
{
    const struct shape shapes[] = {
        {1, 1, 8, 0}, {3, 5, 7, 1}, {64, 96, 128, 0}, {65, 33, 250, 6}, {130, 64, 96, 32}};

    (void)state;
    check_shapes(op_linear, shapes, sizeof(shapes) / sizeof(shapes[0]));
}

/* More rows and features than one block of either product. */
static void test_linear_in_several_blocks_is_the_matrix_product(void **state)
{
    const struct shape shapes[] = {{515, 70, 40, 0},
                                   {5, 150, 32776, 8},
                                   {29, 35, 4099, 3},
                                   {17, 65, 8200, 8},
                                   {3, 4100, 16, 2}};

    (void)state;
    check_shapes(op_linear, shapes, sizeof(shapes) / sizeof(shapes[0]));
}

static void test_linear_rows_is_the_matrix_product(void **state)
{
    const struct shape shapes[] = {
        {1, 1, 1, 0},    {1, 70, 8, 0},  {2, 33, 31, 1},    {3, 64, 33, 0},  {4, 5, 100, 4},
        {5, 37, 256, 0}, {7, 34, 47, 3}, {8, 65, 1000, 24}, {33, 67, 72, 0}, {64, 40, 129, 1}};

    (void)state;
    check_shapes(op_linear_rows, shapes, sizeof(shapes) / sizeof(shapes[0]));
}

typedef status (*sum_product)(struct device *dev, float *sum, float *scratch, const void *x,
                              const struct matrix *w, int rows);

static void check_sum(const struct variant *variant, sum_product op, struct shape s)
{
    uint64_t seed = 2;
    struct device *dev = act_device(variant, 2);
    size_t stride = (size_t)s.k + (size_t)s.skip, n_out = (size_t)s.rows * (size_t)s.n;
    struct act x = act_random(variant->dtype, (size_t)s.rows * (size_t)s.k, 1.0f, &seed);
    struct act w =
        act_random(variant->dtype, (size_t)s.n * stride, 1.0f / sqrtf((float)s.k), &seed);
    struct act sum = act_random(DTYPE_F32, n_out, 3.0f, &seed);
    struct act scratch = act_zeros(DTYPE_F32, n_out);
    double *expected = calloc(n_out, sizeof(*expected));
    struct matrix by_rows = {.data = w.act, .rows = s.n, .cols = s.k, .stride = stride};
    struct matrix matrix = act_packed(dev, &by_rows);

    CHECK(expected);
    define_linear(expected, x.f32, w.f32, stride, s.rows, s.n, s.k);
    for (size_t i = 0; i < n_out; i++) {
        expected[i] += (double)sum.f32[i];
    }
    CHECK_OK(op(dev, sum.act, scratch.act, x.act, &matrix, s.rows));
    act_read(DTYPE_F32, &sum);
    double worst = act_worst(sum.f32, expected, n_out, 1.0);
    if (!(worst <= 3e-6)) {
        fail_msg("%s %s %d x %d x %d: error %g", device_description(dev),
                 dtype_name(variant->dtype), s.rows, s.n, s.k, worst);
    }
    free(expected);
    act_packed_free(&matrix);
    act_free(&scratch);
    act_free(&sum);
    act_free(&w);
    act_free(&x);
    device_close(dev);
}

static void test_products_are_added_to_what_is_there(void **state)
{
    static const struct shape shapes[] = {
        {1, 1, 8, 0}, {3, 5, 7, 1}, {33, 67, 72, 0}, {64, 34, 250, 6}};

    (void)state;
    for (int v = 0; v < n_variants; v++) {
        for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
            check_sum(&variants[v], op_linear_add, shapes[i]);
            check_sum(&variants[v], op_linear_rows_add, shapes[i]);
        }
    }
}

/* What the same 64 rows give one by one, and where the test is with them. */
struct company {
    struct device *dev, *single;
    struct act x, w;
    struct matrix matrix;
    size_t x_bytes, out_bytes; /* of one row */
    char *alone, *together;
};

static void company_open(struct company *c, const struct variant *variant, int n, int k,
                         enum matrix_layout layout)
{
    uint64_t seed = 7;

    *c = (struct company){
        .dev = act_device(variant, 2),
        .single = act_device(variant, 1),
        .x = act_random(variant->dtype, (size_t)OP_MAX_DECODE_ROWS * (size_t)k, 1.0f, &seed),
        .w = act_random(variant->dtype, (size_t)n * (size_t)k, 0.1f, &seed),
        .x_bytes = (size_t)k * dtype_bytes(variant->dtype),
        .out_bytes = (size_t)n * sizeof(float),
    };
    c->alone = calloc(OP_MAX_DECODE_ROWS, c->out_bytes);
    c->together = calloc(OP_MAX_DECODE_ROWS, c->out_bytes);
    c->matrix = (struct matrix){.data = c->w.act, .rows = n, .cols = k, .stride = (size_t)k};
    if (layout == MATRIX_PACKED) {
        c->matrix = act_packed(c->dev, &c->matrix);
    }
    CHECK(c->alone && c->together);
    for (size_t r = 0; r < OP_MAX_DECODE_ROWS; r++) {
        CHECK_OK(op_linear_rows(c->single, c->alone + r * c->out_bytes, DTYPE_F32,
                                (char *)c->x.act + r * c->x_bytes, &c->matrix, 1));
    }
}

static void company_close(struct company *c)
{
    act_packed_free(&c->matrix);
    free(c->together);
    free(c->alone);
    act_free(&c->w);
    act_free(&c->x);
    device_close(c->single);
    device_close(c->dev);
}

/* The last `count` rows in one call. */
static void check_count(const struct company *c, product op, int count)
{
    size_t first = (size_t)(OP_MAX_DECODE_ROWS - count);

    CHECK_OK(op(c->dev, c->together, DTYPE_F32, (char *)c->x.act + first * c->x_bytes, &c->matrix,
                count));
    CHECK(memcmp(c->together, c->alone + first * c->out_bytes, (size_t)count * c->out_bytes) == 0);
}

/* Every row alone, then with others, at every place: always the same bits. */
static void check_company(const struct variant *variant, int n, int k, enum matrix_layout layout)
{
    const int counts[] = {1, 2, 3, 5, 8, 13, 17, 32, 48, 61, OP_MAX_DECODE_ROWS};
    struct company c;

    company_open(&c, variant, n, k, layout);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        check_count(&c, op_linear_rows, counts[i]);
        if (c.matrix.layout == MATRIX_PACKED) {
            check_count(&c, op_linear, counts[i]);
        }
    }
    company_close(&c);
}

static void test_a_row_has_the_same_bits_in_any_company(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_company(&variants[v], 97, 520, MATRIX_ROWS);
        check_company(&variants[v], 3, 77, MATRIX_ROWS);
    }
}

/* With packed weights rows of a prompt, too; also in products of several parts. */
static void test_a_row_of_packed_weights_has_the_same_bits_in_any_company(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_company(&variants[v], 97, 520, MATRIX_PACKED);
        check_company(&variants[v], 3, 77, MATRIX_PACKED);
        check_company(&variants[v], 40, 4103, MATRIX_PACKED);
    }
}

/* Products of `rows` rows with three matrices at once, against each alone. */
static void check_each(const struct variant *variant, int rows, bool packed)
{
    enum { K = 2100, MOST = 100 };
    static const int heights[OP_MAX_PRODUCTS] = {MOST, 7, 33};
    struct device *dev = act_device(variant, 2);
    enum dtype act = variant->dtype;
    uint64_t seed = 9;
    struct act x = act_random(act, (size_t)rows * K, 1.0f, &seed), w[OP_MAX_PRODUCTS];
    struct act out[OP_MAX_PRODUCTS], alone = act_zeros(act, (size_t)rows * MOST);
    struct matrix matrices[OP_MAX_PRODUCTS];
    struct weight_product products[OP_MAX_PRODUCTS];

    for (int i = 0; i < OP_MAX_PRODUCTS; i++) {
        w[i] = act_random(act, (size_t)heights[i] * K, 0.25f, &seed);
        out[i] = act_zeros(act, (size_t)rows * (size_t)heights[i]);
        matrices[i] = (struct matrix){.data = w[i].act, .rows = heights[i], .cols = K, .stride = K};
        matrices[i] = packed ? act_packed(dev, &matrices[i]) : matrices[i];
        products[i] = (struct weight_product){out[i].act, &matrices[i]};
    }
    for (int prompt = 0; prompt <= 1; prompt++) {
        CHECK_OK((prompt ? op_linear_each : op_linear_rows_each)(dev, products, OP_MAX_PRODUCTS,
                                                                 x.act, rows));
        for (int i = 0; i < OP_MAX_PRODUCTS; i++) {
            size_t bytes = (size_t)rows * (size_t)heights[i] * dtype_bytes(act);

            CHECK_OK((prompt ? op_linear : op_linear_rows)(dev, alone.act, act, x.act, &matrices[i],
                                                           rows));
            CHECK(memcmp(alone.act, out[i].act, bytes) == 0);
            memset(out[i].act, 0, bytes);
        }
    }
    for (int i = 0; i < OP_MAX_PRODUCTS; i++) {
        if (packed) {
            act_packed_free(&matrices[i]);
        }
        act_free(&out[i]);
        act_free(&w[i]);
    }
    act_free(&alone);
    act_free(&x);
    device_close(dev);
}

static void test_several_products_at_once_have_the_bits_of_each_alone(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        check_each(&variants[v], 1, false);
        check_each(&variants[v], 1, true);
        check_each(&variants[v], 14, true);
    }
}

/* Whole panels first, as a loader with little room does it. */
static void check_pieces(struct device *dev, int n, int k)
{
    uint64_t seed = 5;
    struct act w = act_random(DTYPE_BF16, (size_t)n * (size_t)k, 1.0f, &seed);
    struct matrix piece = {.data = w.act, .rows = n, .cols = k, .stride = (size_t)k};
    struct matrix whole = act_packed(dev, &piece);
    size_t bytes = op_packed_bytes(dev, n, k);
    char *pieces = aligned_alloc(64, bytes);

    CHECK(pieces);
    for (int first = 0; first < n; first += 2 * OP_PACK_ROWS) {
        piece.data = (const char *)w.act + (size_t)first * (size_t)k * dtype_bytes(DTYPE_BF16);
        piece.rows = n - first < 2 * OP_PACK_ROWS ? n - first : 2 * OP_PACK_ROWS;
        CHECK_OK(op_pack(dev, pieces + op_packed_bytes(dev, first, k), &piece));
    }
    CHECK(memcmp(pieces, whole.data, bytes) == 0);
    free(pieces);
    act_packed_free(&whole);
    act_free(&w);
}

static void test_weights_may_be_packed_in_pieces(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        struct device *dev = act_device(&variants[v], 2);

        if (op_packed_bytes(dev, 1, 1) > 0) {
            check_pieces(dev, 150, 77);
            check_pieces(dev, 128, 64);
        }
        device_close(dev);
    }
}

/* More shapes on one device than the library's primitives are kept for. */
static void test_many_shapes_in_turn_stay_right(void **state)
{
    enum { ROWS = 150, N = 8, K = 16, X = ROWS * K, W = N * K, OUT = ROWS * N };
    uint64_t seed = 3;
    struct device *dev = act_device(&variants[0], 1);
    struct act x = act_random(DTYPE_F32, X, 1.0f, &seed);
    struct act w = act_random(DTYPE_F32, W, 0.25f, &seed);
    struct act out = act_zeros(DTYPE_F32, OUT);
    struct matrix matrix = {.data = w.act, .rows = N, .cols = K, .stride = K};
    double expected[OUT];

    (void)state;
    define_linear(expected, x.f32, w.f32, K, ROWS, N, K);
    for (int i = 0; i < 2 * ROWS; i++) {
        size_t rows = 1 + (size_t)i % ROWS;

        CHECK_OK(op_linear(dev, out.act, DTYPE_F32, x.act, &matrix, (int)rows));
        act_read(DTYPE_F32, &out);
        CHECK(act_worst(out.f32, expected, rows * N, 1.0) < 3e-6);
    }
    act_free(&out);
    act_free(&w);
    act_free(&x);
    device_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear_is_the_matrix_product),
        cmocka_unit_test(test_linear_in_several_blocks_is_the_matrix_product),
        cmocka_unit_test(test_linear_rows_is_the_matrix_product),
        cmocka_unit_test(test_products_are_added_to_what_is_there),
        cmocka_unit_test(test_a_row_has_the_same_bits_in_any_company),
        cmocka_unit_test(test_a_row_of_packed_weights_has_the_same_bits_in_any_company),
        cmocka_unit_test(test_several_products_at_once_have_the_bits_of_each_alone),
        cmocka_unit_test(test_weights_may_be_packed_in_pieces),
        cmocka_unit_test(test_many_shapes_in_turn_stay_right),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
