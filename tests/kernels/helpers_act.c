#include "tests/kernels/helpers_act.h"

#include "tests/check.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

uint64_t test_random(uint64_t *seed)
{
    uint64_t x = *seed += 0x9e3779b97f4a7c15u;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

int test_below(uint64_t *seed, int n)
{
    return (int)(test_random(seed) % (uint64_t)n);
}

static double uniform(uint64_t *seed)
{
    return ((double)(test_random(seed) >> 12) + 0.5) * 0x1p-52;
}

static uint16_t to_bf16(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static float from_bf16(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float f;

    memcpy(&f, &bits, sizeof(f));
    return f;
}

/* By the definition of the format: 11 significant bits, multiples of 2^-24 at least. */
static uint16_t to_f16(float x)
{
    int exponent;

    frexpf(x, &exponent);
    exponent = exponent < -13 ? -13 : exponent;
    long steps = lrintf(ldexpf(fabsf(x), 11 - exponent)); /* ties to even */
    return (uint16_t)((signbit(x) ? 0x8000 : 0) | (steps + (long)(exponent + 13) * 1024));
}

static float from_f16(uint16_t x)
{
    int exponent = x >> 10 & 31, fraction = x & 0x3ff;
    float f =
        exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);

    return x & 0x8000 ? -f : f;
}

static void put(enum dtype dtype, void *to, size_t i, float value)
{
    if (dtype == DTYPE_F32) {
        ((float *)to)[i] = value;
    } else {
        ((uint16_t *)to)[i] = dtype == DTYPE_BF16 ? to_bf16(value) : to_f16(value);
    }
}

static float get(enum dtype dtype, const void *from, size_t i)
{
    if (dtype == DTYPE_F32) {
        return ((const float *)from)[i];
    }
    uint16_t bits = ((const uint16_t *)from)[i];
    return dtype == DTYPE_BF16 ? from_bf16(bits) : from_f16(bits);
}

struct act act_zeros(enum dtype dtype, size_t n)
{
    struct act x = {.n = n, .f32 = calloc(n, sizeof(float)), .act = calloc(n, dtype_bytes(dtype))};

    assert(x.f32 && x.act);
    return x;
}

struct act act_random(enum dtype dtype, size_t n, float scale, uint64_t *seed)
{
    struct act x = act_zeros(dtype, n);

    for (size_t i = 0; i < n; i++) {
        double radius = sqrt(-2.0 * log(uniform(seed)));
        float value = scale * (float)(radius * cos(6.283185307179586 * uniform(seed)));

        put(dtype, x.act, i, value);
        x.f32[i] = get(dtype, x.act, i);
    }
    return x;
}

void act_read(enum dtype dtype, struct act *x)
{
    for (size_t i = 0; i < x->n; i++) {
        x->f32[i] = get(dtype, x->act, i);
    }
}

void act_free(struct act *x)
{
    free(x->f32);
    free(x->act);
}

double act_worst(const float *got, const double *expected, size_t n, double floor)
{
    double worst = 0.0;

    for (size_t i = 0; i < n; i++) {
        double scale = fabs(expected[i]) > floor ? fabs(expected[i]) : floor;
        double error = fabs((double)got[i] - expected[i]) / scale;

        if (!(error <= worst)) { /* NaN counts */
            worst = error;
        }
    }
    return worst;
}

struct matrix act_packed(struct device *dev, const struct matrix *w)
{
    enum { GUARD = 64, UNTOUCHED = 0xa5 };
    size_t bytes = op_packed_bytes(dev, w->rows, w->cols);
    struct matrix out = {.rows = w->rows, .cols = w->cols, .layout = MATRIX_PACKED};

    if (bytes == 0) {
        return *w;
    }
    unsigned char *data = aligned_alloc(GUARD, bytes + GUARD);

    assert(data && bytes % GUARD == 0);
    memset(data, UNTOUCHED, bytes + GUARD);
    CHECK_OK(op_pack(dev, data, w));
    for (size_t i = 0; i < GUARD; i++) {
        CHECK(data[bytes + i] == UNTOUCHED);
    }
    out.data = data;
    return out;
}

void act_packed_free(const struct matrix *w)
{
    if (w->layout == MATRIX_PACKED) {
        free((void *)w->data);
    }
}
