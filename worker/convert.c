#include "worker/convert.h"

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

/* The nearest, ties to even; from 65520 on infinity. */
static uint16_t to_f16(float value)
{
    uint32_t bits = bits_of(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t rest = bits & 0x7fffffff;

    if (rest > 0x7f800000) {
        return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x1ff)); /* a quiet NaN stays one */
    }
    if (rest >= 0x477ff000) {
        return (uint16_t)(sign | 0x7c00);
    }
    if (rest <
        0x38800000) { /* subnormal: adding 0.5 leaves the multiple of 2^-24 in the last bits */
        return (uint16_t)(sign | (bits_of(float_of(rest) + 0.5F) - bits_of(0.5F)));
    }
    return (uint16_t)(sign | ((rest - ((127 - 15) << 23) + 0xfff + (rest >> 13 & 1)) >> 13));
}

static uint16_t read_16(const unsigned char *from, size_t i)
{
    uint16_t value;

    memcpy(&value, from + i * sizeof(value), sizeof(value));
    return value;
}

static float read_float(const unsigned char *from, enum dtype dtype, size_t i)
{
    float value;

    if (dtype != DTYPE_F32) {
        return dtype == DTYPE_BF16 ? float_of((uint32_t)read_16(from, i) << 16)
                                   : from_f16(read_16(from, i));
    }
    memcpy(&value, from + i * sizeof(value), sizeof(value));
    return value;
}

void convert(void *to, enum dtype to_dtype, const void *from, enum dtype from_dtype, size_t n)
{
    if (to_dtype == from_dtype) {
        memcpy(to, from, n * dtype_bytes(to_dtype));
        return;
    }
    for (size_t i = 0; i < n; i++) {
        float value = read_float(from, from_dtype, i);

        if (to_dtype == DTYPE_F32) {
            ((float *)to)[i] = value;
        } else {
            ((uint16_t *)to)[i] = to_dtype == DTYPE_BF16 ? to_bf16(value) : to_f16(value);
        }
    }
}
