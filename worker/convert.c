#include "worker/convert.h"

#include <assert.h>
#include <string.h>

static uint32_t bits_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static float float_of(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static float from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t rest = half & 0x7fff;

    if (rest >= 0x7c00) { /* infinity or NaN */
        return float_of(sign | 0x7f800000 | rest << 13);
    }
    if (rest >= 0x0400) {
        return float_of(sign | ((rest << 13) + ((127 - 15) << 23)));
    }
    /* Subnormal: a multiple of 2^-24, exact in float32. */
    return float_of(sign | bits_of((float)rest * 0x1p-24f));
}

static uint16_t to_bf16(float value)
{
    uint32_t bits = bits_of(value);

    if ((bits & 0x7fffffff) > 0x7f800000) {
        return (uint16_t)(bits >> 16 | 0x0040); /* a quiet NaN stays one */
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint16_t read_16(const unsigned char *from, size_t i)
{
    uint16_t value;

    memcpy(&value, from + i * sizeof(value), sizeof(value));
    return value;
}

static void to_floats(float *to, const unsigned char *from, enum dtype from_dtype, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        to[i] = from_dtype == DTYPE_BF16 ? float_of((uint32_t)read_16(from, i) << 16)
                                         : from_f16(read_16(from, i));
    }
}

static void to_bf16s(uint16_t *to, const unsigned char *from, enum dtype from_dtype, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float value;
        if (from_dtype == DTYPE_F32) {
            memcpy(&value, from + i * sizeof(value), sizeof(value));
        } else {
            value = from_f16(read_16(from, i));
        }
        to[i] = to_bf16(value);
    }
}

void convert(void *to, enum dtype to_dtype, const void *from, enum dtype from_dtype, size_t n)
{
    assert(to_dtype != DTYPE_F16 || from_dtype == DTYPE_F16);
    if (to_dtype == from_dtype) {
        memcpy(to, from, n * dtype_bytes(to_dtype));
    } else if (to_dtype == DTYPE_F32) {
        to_floats(to, from, from_dtype, n);
    } else {
        to_bf16s(to, from, from_dtype, n);
    }
}
